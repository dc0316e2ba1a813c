"""Whatever answers at the address, or nothing: one message that says what to do."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.errors import WatchError
from service.watching.page import write_page
from service.watching.prometheus import Prometheus

BUILD = {"status": "success", "data": {"version": "2.20.1"}}


@contextmanager
def answering(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """The address of a server that answers a path with a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            with contextlib.suppress(OSError):  # Whoever asked may have given up.
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error(kind: str, said: str) -> str:
    return json.dumps({"status": "error", "errorType": kind, "error": said})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "<html>A page of something else</html>"),
        (404, "404 page not found"),
        (401, ""),
        (200, "[]"),
        (200, '{"status": "success"}'),
        (200, '{"status": "success", "data": {"result": [{"metric": {}}]}}'),
        (200, '{"status": "success", "data": {"result": [{"metric": {}, "value": "x"}]}}'),
        (200, '{"status": "success", "data": null}'),
    ],
)
def test_what_is_not_a_prometheus_is_named_with_what_it_said(status: int, body: str):
    with (
        answering(lambda path: (status, body)) as url,
        pytest.raises(WatchError, match="is not a Prometheus") as caught,
    ):
        Prometheus(url).at("up", 1.0)
    assert url in str(caught.value)
    assert "/api/v1" in str(caught.value)


def test_a_long_page_of_something_else_is_not_repeated_whole():
    with (
        answering(lambda path: (200, "<p>" * 10_000)) as url,
        pytest.raises(WatchError) as caught,
    ):
        Prometheus(url).version()
    assert len(str(caught.value)) < 600


def test_a_refused_query_is_told_with_prometheus_own_words():
    with (
        answering(lambda path: (400, error("bad_data", "parse error: unexpected )"))) as url,
        pytest.raises(WatchError, match="parse error: unexpected \\)") as caught,
    ):
        Prometheus(url).at("up)", 1.0)
    assert "up)" in str(caught.value)


def test_one_that_is_too_old_is_told_with_its_version_and_what_is_needed():
    def answer(path: str) -> tuple[int, str]:
        if "buildinfo" in path:
            return 200, json.dumps(BUILD)
        return 400, error("bad_data", 'parse error: unknown function with name "last_over_time"')

    with (
        answering(answer) as url,
        pytest.raises(WatchError, match=r"too old.*2\.20\.1.*last_over_time.*2\.26"),
    ):
        Prometheus(url).at("last_over_time(up[5m])", 1.0)


def test_nothing_that_answers_is_told_with_the_address_and_the_reason():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(WatchError, match=r"Connection refused.*crossreid watch") as caught:
            Prometheus(url).at("up", 1.0)
    assert url in str(caught.value)


def test_one_that_is_too_slow_is_given_up():
    def answer(path: str) -> tuple[int, str]:
        time.sleep(1.0)
        return 200, "{}"

    with (
        answering(answer) as url,
        pytest.raises(WatchError, match=r"no answer within 0\.2 s"),
    ):
        Prometheus(url, timeout_s=0.2).at("up", 1.0)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://host/", "127.0.0.1:9090", "http://", "", "http://h:x"),
        *("http://h:99999", "http://h?query=up", "http://h#up", "http://[::1"),
    ],
)
def test_an_address_of_another_kind_is_refused_before_it_is_opened(url: str):
    with pytest.raises(WatchError, match="expected http://HOST:PORT"):
        Prometheus(url)


def test_a_login_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(WatchError) as caught:
        Prometheus("http://me:secret/part@host:9090")
    assert "secret" not in str(caught.value)


def test_odd_numbers_and_raw_samples_are_read():
    found = [
        {"metric": {"a": "b"}, "value": [1.5, "NaN"]},
        {"metric": {}, "values": [[1, "+Inf"], [2, "-Inf"], [3, "1e-3"]]},
    ]
    body = json.dumps({"status": "success", "data": {"result": found}})
    with answering(lambda path: (200, body)) as url:
        one, many = Prometheus(url).at("x[5m]", 1.0)
    assert one.labels == {"a": "b"}
    assert str(one.points) == "((1.5, nan),)"
    assert many.points == ((1.0, float("inf")), (2.0, float("-inf")), (3.0, 0.001))


def test_a_prometheus_below_a_path_is_asked_there():
    asked: list[str] = []

    def answer(path: str) -> tuple[int, str]:
        asked.append(path)
        return 200, '{"status": "success", "data": {"result": []}}'

    with answering(answer) as url:
        Prometheus(f"{url}/prometheus/").between('x{a="\udcff"}', 1.0, 2.0, 0.5)
    assert asked[0].startswith("/prometheus/api/v1/query_range?query=x")
    assert asked[0].endswith("&start=1.000&end=2.000&step=0.500")


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_hours_that_are_none_or_too_many_are_refused(tmp_path: Path, hours: float):
    with pytest.raises(WatchError, match="above 0 and at most 8760"):
        write_page("http://h", tmp_path / "a.html", run=None, trial=None, hours=hours, every_s=0.0)
