"""What a terminal is told of alerts, over HTTP as Alertmanager tells them."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.watching.alerts import SILENCE_S, WATCHDOG, Board
from service.watching.listener import MOST_BYTES, Listener


def alert(status: str = "firing", name: str = "DataBound", start: int = 0, **labels: str) -> Any:
    """As version 4 of the webhook has it."""
    labels = {"alertname": name, "severity": "warning", "run": "r", "trial": "main", **labels}
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": "r/main waits", "runbook_url": "deploy/README.md#databound"},
        "startsAt": f"2026-01-01T00:00:{start:02}Z",
        "fingerprint": f"{name}-{labels.get('run')}",
    }


def message(*alerts: Any) -> dict[str, Any]:
    return {"version": "4", "alerts": list(alerts)}


def test_a_line_says_how_grave_it_is_what_and_where_to_read_on():
    board = Board(0.0)
    assert board.hear(message(alert()), 0.0) == [
        "warning   DataBound  r/main waits  deploy/README.md#databound"
    ]
    assert board.hear(message(alert("resolved")), 0.0) == ["resolved  DataBound  r/main"]


def test_an_alert_without_our_labels_is_told_by_what_it_has():
    bare = {"status": "firing", "labels": {"instance": "h:1"}, "startsAt": "", "fingerprint": "a"}
    for start in ("a", "b"):
        assert Board(0.0).hear(message({**bare, "startsAt": start}), 0.0) == [
            "firing    an alert without a name  h:1"
        ]


@given(st.data())
def test_however_often_and_to_however_many_it_is_told_each_change_is_one_line(data: st.DataObject):
    """Alerts that fire and end in turn; receivers that each hear every state, some of them late by
    no more than one."""
    episodes = data.draw(st.integers(1, 4))
    states = [(start, status) for start in range(episodes) for status in ("firing", "resolved")]
    board, lines = Board(0.0), []
    for start, status in states:
        copies = data.draw(st.integers(1, 3))
        for _ in range(copies):
            lines += board.hear(message(alert(status, start=start)), 0.0)
        if status == "resolved" and data.draw(st.booleans()):
            lines += board.hear(message(alert("firing", start=start)), 0.0)
    assert [line.split()[0] for line in lines] == ["warning", "resolved"] * episodes


def test_an_alert_that_was_taken_for_over_is_told_again_when_it_still_fires():
    board = Board(0.0)
    for status, now in (("firing", 0.0), ("resolved", 60.0), ("firing", 63.0)):
        board.hear(message(alert(status)), now)
    assert board.hear(message(alert("firing")), 75.0) != []
    assert board.hear(message(alert("firing")), 80.0) == []
    assert board.hear(message(alert("resolved")), 90.0) == ["resolved  DataBound  r/main"]


def test_what_ended_before_anybody_was_told_is_not_told():
    assert Board(0.0).hear(message(alert("resolved")), 0.0) == []


def test_alerts_on_several_runs_are_several_lines():
    lines = Board(0.0).hear(message(alert(), alert(run="other")), 0.0)
    assert len(lines) == 2


def test_the_watchdog_is_not_shown_but_its_absence_is_once():
    board = Board(0.0)
    dog = message(alert(name=WATCHDOG))
    assert board.hear(dog, 60.0) == []
    assert board.silence(60.0 + SILENCE_S - 1, "there") == []
    (line,) = board.silence(60.0 + SILENCE_S, "there")
    assert line.startswith(f"critical  {WATCHDOG}  has not come for 3 minutes")
    assert line.endswith("look at there")
    assert board.silence(1000.0, "there") == []
    assert board.hear(dog, 1001.0) == [f"resolved  {WATCHDOG}  comes again, and so do alerts"]
    assert board.hear(dog, 1002.0) == []
    assert board.silence(1002.0 + SILENCE_S, "there")


def test_a_watchdog_that_never_comes_is_missed_too():
    assert Board(5.0).silence(5.0 + SILENCE_S, "there")


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def listener(heard: list[Any]) -> Iterator[Listener]:
    board = Board(0.0)
    one = Listener(lambda message: heard.extend(board.hear(message, 0.0)))
    one.start()
    yield one
    one.close()


def ask(listener: Listener, method: str, body: bytes, **headers: str) -> int:
    """The status of the answer."""
    host = listener.url.removeprefix("http://").removesuffix("/alerts")
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, "/alerts", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_posted_message_is_heard(listener: Listener, heard: list[Any]):
    assert ask(listener, "POST", json.dumps(message(alert())).encode()) == 200
    assert len(heard) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"alerts": 1}', b'{"alerts": [1]}', b'{"alerts": [{}]}']
)
def test_what_is_no_message_is_refused_and_the_next_is_heard(
    listener: Listener, heard: list[Any], body: bytes
):
    assert ask(listener, "POST", body) == 400
    assert ask(listener, "POST", json.dumps(message(alert())).encode()) == 200
    assert len(heard) == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_only_post_is_answered(listener: Listener, method: str):
    assert ask(listener, method, b"") == 501


@pytest.mark.parametrize(("length", "status"), [(str(MOST_BYTES + 1), 413), ("-1", 411), ("", 411)])
def test_a_message_that_is_too_long_or_of_no_length_is_refused_unread(
    listener: Listener, heard: list[Any], length: str, status: int
):
    headers = {"Content-Length": length}
    assert ask(listener, "POST", b"", **headers) == status
    assert heard == []
