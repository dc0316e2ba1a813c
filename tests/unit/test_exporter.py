"""The exporter's series over a real HTTP server on loopback, read with Prometheus' own parser."""

import math
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from socketserver import BaseServer
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.exceptions import ActorDiedError, RayActorError

from service.config import TelemetryConfig
from service.decisions import Verdict
from service.errors import ClusterError
from service.telemetry import exporter
from service.telemetry.exporter import Exporter, ExporterLease, Place, acquire
from service.telemetry.lines import LINES, PREFIX
from service.telemetry.series import Series, Server
from service.telemetry.trial import TrialSeries
from tests.reports import CONFIG, HEALTHY, LN_C, START, decision, healthy


@pytest.fixture(autouse=True, scope="module")
def quick_ends() -> Iterator[None]:
    """A server looks only every half second whether it is to end; here more often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseServer.serve_forever, "__defaults__", (0.01,))
        yield


class Scraped:
    """A `Series` whose clock stands still, served on a free port."""

    def __init__(self) -> None:
        self.time = 0.0
        self.series = Series(clock=lambda: self.time)
        self.server = Server(self.series, "127.0.0.1", 0)

    def text(self) -> str:
        with urlopen(self.server.address, timeout=5) as answer:
            return answer.read().decode()

    def samples(self, name: str) -> list[Sample]:
        families = text_string_to_metric_families(self.text())
        return [s for f in families for s in f.samples if s.name == PREFIX + name]

    def value(self, name: str) -> float:
        (sample,) = self.samples(name)
        return sample.value


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    found = Scraped()
    yield found
    found.server.close()


def trial() -> TrialSeries:
    series = TrialSeries(CONFIG)
    series.step(200, 1000, now=1e9)
    series.health(HEALTHY)
    series.decision(decision(Verdict.GO, best=0.9, head_limit=21.0), now=1e9)
    series.start(START)
    series.steps({"count": 10, "images": 800.0, "seconds": 0.1, "data_wait_s": 0.0})
    series.checkpoint(200, now=1e9)
    series.error("non_finite", now=1e9)
    series.stopped(200)
    series.sink_failures({"mlflow": 2})
    return series


def test_every_line_is_scraped_with_its_labels_kind_and_help(scraped: Scraped):
    scraped.series.lease("r", 60)
    scraped.series.push("r", "t", trial().values, 60)
    families = {f.name: f for f in text_string_to_metric_families(scraped.text())}
    for line in LINES:
        family = families[
            PREFIX + line.name.removesuffix("_total" if line.kind == "counter" else "")
        ]
        assert (family.type, family.documentation) == (line.kind, line.help)
        for sample in family.samples:
            assert set(sample.labels) == {"run", "trial", *line.labels}
            assert (sample.labels["run"], sample.labels["trial"]) == ("r", "t")


def test_the_values_are_those_of_the_report(scraped: Scraped):
    scraped.series.lease("r", 60)
    scraped.series.push("r", "t", trial().values, 60)
    assert scraped.value("cross_entropy_nats") == 5.46
    assert scraped.value("cross_entropy_chance_ratio") == pytest.approx(5.46 / LN_C)
    assert scraped.value("global_step") == 200
    assert scraped.value("memory_hash_equal") == 1
    thresholds = {s.labels["gate"]: s.value for s in scraped.samples("gate_threshold")}
    assert thresholds["go"] == CONFIG.policy.go
    assert thresholds["coverage"] == 0.85
    kinds = {s.labels["kind"]: s.value for s in scraped.samples("cross_entropy_by_kind_nats")}
    assert kinds == {"vis": 5.4, "text": 5.6}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_no_numbers_are_served_as_such(scraped: Scraped, value: float):
    series = trial()
    series.health(healthy(200, ce=value))
    scraped.series.push("r", "t", series.values, 60)
    assert scraped.value("cross_entropy_nats") == pytest.approx(value, nan_ok=True)


def test_any_label_value_survives(scraped: Scraped):
    name = 'a "quoted" \\ name\nof two lines {x="1"}'
    scraped.series.push(name, "t", trial().values, 60)
    (sample,) = scraped.samples("running")
    assert sample.labels["run"] == name


def test_an_ended_trial_stays_as_not_running_for_its_linger_time(scraped: Scraped):
    scraped.series.lease("r", 1000)
    scraped.series.push("r", "a", trial().values, 60)
    scraped.series.push("r", "b", trial().values, 60)
    scraped.series.end("r", "a")
    scraped.time = 59.0
    scraped.series.sweep()
    assert {s.labels["trial"]: s.value for s in scraped.samples("running")} == {"a": 0, "b": 1}
    scraped.time = 60.0
    scraped.series.sweep()
    assert {s.labels["trial"]: s.value for s in scraped.samples("running")} == {"b": 1}


def test_a_driver_that_stops_renewing_loses_its_series(scraped: Scraped):
    scraped.series.lease("dead", 60)
    scraped.series.lease("alive", 60)
    for run in ("dead", "alive"):
        scraped.series.push(run, "t", trial().values, 30)
    scraped.time = 50.0
    scraped.series.lease("alive", 60)
    scraped.time = 61.0
    assert not scraped.series.sweep()
    scraped.time = 92.0
    assert not scraped.series.sweep()
    assert {s.labels["run"] for s in scraped.samples("running")} == {"alive"}


def test_nothing_is_left_only_after_the_last_lease_and_the_last_series(scraped: Scraped):
    scraped.series.lease("r", 60)
    scraped.series.push("r", "t", trial().values, 30)
    assert not scraped.series.sweep()
    scraped.series.release("r")
    assert not scraped.series.sweep()
    scraped.time = 30.0
    assert scraped.series.sweep()


def test_a_new_snapshot_of_an_ended_trial_brings_it_back(scraped: Scraped):
    scraped.series.lease("r", 1000)
    scraped.series.push("r", "t", trial().values, 10)
    scraped.series.end("r", "t")
    scraped.series.push("r", "t", trial().values, 10)
    scraped.time = 20.0
    scraped.series.sweep()
    assert scraped.value("running") == 1


def test_what_a_lost_driver_left_goes_though_its_run_is_resumed(scraped: Scraped):
    """The new driver pushes what runs now; one that waits for room must not seem to run."""
    scraped.series.take("r", 60)
    for name in ("goes on", "waits"):
        scraped.series.push("r", name, trial().values, 60)
    for scraped.time in range(30, 130, 5):
        if scraped.time == 30:
            scraped.series.take("r", 60)
        scraped.series.lease("r", 60)
        scraped.series.push("r", "goes on", trial().values, 60)
        scraped.series.sweep()
    assert {s.labels["trial"] for s in scraped.samples("running")} == {"goes on"}


def test_an_unknown_line_or_a_wrong_number_of_labels_is_refused(scraped: Scraped):
    with pytest.raises(KeyError, match="nonsense"):
        scraped.series.push("r", "t", {"nonsense": {(): 1.0}}, 60)
    with pytest.raises(ValueError, match="gate_state has the labels"):
        scraped.series.push("r", "t", {"gate_state": {(): 1.0}}, 60)


def test_a_taken_port_is_an_os_error():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Server(Series(), "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("scrapes", "released", "seconds"),
    [
        ((), 100.0, 0.0),
        ((90.0,), 100.0, 0.0),
        ((80.0, 95.0), 100.0, 31.0),
        ((10.0, 95.0), 100.0, 60.0),
        ((50.0, 60.0), 100.0, 0.0),
    ],
)
def test_only_who_scrapes_regularly_is_waited_for_and_for_two_intervals(
    scraped: Scraped, scrapes: tuple[float, ...], released: float, seconds: float
):
    scraped.series.push("r", "t", trial().values, 60)
    for scraped.time in scrapes:
        scraped.series.scraped_by("Prometheus")
    scraped.time = released
    assert scraped.series.release("r") == seconds
    assert scraped.series.is_seen("r") == (seconds == 0.0)
    scraped.time = released + 1.0
    scraped.series.scraped_by("somebody else")
    assert scraped.series.is_seen("r") == (seconds == 0.0)
    scraped.series.scraped_by("Prometheus")
    assert scraped.series.is_seen("r")


def test_of_several_who_scrape_the_slowest_is_waited_for(scraped: Scraped):
    scraped.series.push("r", "t", trial().values, 60)
    for scraped.time in range(41):
        scraped.series.scraped_by("a page that reloads")
        if scraped.time % 15 == 0:
            scraped.series.scraped_by("Prometheus/3.0")
    assert scraped.series.release("r") == 31.0
    scraped.time = 41.0
    scraped.series.scraped_by("a page that reloads")
    assert not scraped.series.is_seen("r")
    scraped.time = 45.0
    scraped.series.scraped_by("Prometheus/3.0")
    assert scraped.series.is_seen("r")


def test_the_server_notes_who_scrapes(scraped: Scraped):
    scraped.series.push("r", "t", trial().values, 60)
    for scraped.time in (1.0, 2.0):
        scraped.text()
    assert scraped.series.release("r") == 3.0


def test_those_who_scrape_under_one_name_are_told_apart_by_their_address(scraped: Scraped):
    scraped.series.push("r", "t", trial().values, 60)
    for scraped.time, host in ((0.0, "127.0.0.2"), (10.0, "127.0.0.2"), (11.0, ""), (12.0, "")):
        address = ("127.0.0.1", scraped.server.port)
        call = HTTPConnection(*address, source_address=(host, 0), timeout=5)
        call.request("GET", "/metrics", headers={"User-Agent": "Prometheus/3.0"})
        assert call.getresponse().read()
        call.close()
    assert scraped.series.release("r") == 21.0


def test_a_run_that_has_nothing_to_show_is_not_waited_for(scraped: Scraped):
    for _ in range(2):
        scraped.text()
    assert scraped.series.release("r") == 0.0


def test_a_lease_is_known_until_it_expires(scraped: Scraped):
    assert not scraped.series.lease("r", 60)
    assert scraped.series.lease("r", 60)
    scraped.time = 61.0
    scraped.series.sweep()
    assert not scraped.series.lease("r", 60)


def test_a_scrape_during_shutdown_gets_a_whole_answer_or_a_refusal():
    """Never half a page: every answer that comes ends with the last line of the table."""
    series = Series()
    for number in range(8):
        series.push("r", f"t{number}", trial().values, 60)
    server = Server(series, "127.0.0.1", 0)
    whole, answers, refused = server_text(server.address), list[str](), threading.Event()

    def scrape() -> None:
        while not refused.is_set():
            try:
                answers.append(server_text(server.address))
            except OSError:
                refused.set()

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answers) < 5:
        time.sleep(0.01)
    server.close()
    for thread in threads:
        thread.join(timeout=10)
    assert set(answers) == {whole}


def server_text(address: str) -> str:
    with urlopen(address, timeout=5) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("host", "reach"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "10.1.2.3"), ("::1", "[::1]")]
)
def test_others_reach_it_at_an_address_of_the_machine(
    actor: Exporter, monkeypatch: pytest.MonkeyPatch, host: str, reach: str
):
    monkeypatch.setattr(exporter.ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    place = actor.acquire("r", host, 0, False)
    assert place.reach == f"{reach}:{place.port}"
    actor.release("r")
    with pytest.raises(Gone):
        actor.sweep()


def test_an_address_that_is_not_the_machines_is_refused_also_with_any_port(actor: Exporter):
    with pytest.raises(OSError, match="assign"):
        actor.acquire("r", "192.0.2.1", 0, True)
    with pytest.raises(Gone):
        actor.sweep()


class Gone(Exception):
    """The actor has ended itself."""


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """The actor's class without Ray and without its own clock."""

    def leave() -> None:
        raise Gone

    here = SimpleNamespace(current_actor=None)
    monkeypatch.setattr(exporter.ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(exporter, "exit_actor", leave)
    monkeypatch.setattr(Exporter, "_tick", lambda self: None)
    return Exporter()


def test_an_exporter_that_nobody_comes_to_ends_after_its_grace(
    actor: Exporter, monkeypatch: pytest.MonkeyPatch
):
    actor.sweep()
    later = time.monotonic() + exporter.LEASE_S + 1
    monkeypatch.setattr(exporter.time, "monotonic", lambda: later)
    with pytest.raises(Gone):
        actor.sweep()


def test_an_exporter_whose_port_is_refused_ends_at_once(actor: Exporter):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        actor.acquire("r", "127.0.0.1", taken.getsockname()[1], False)
    with pytest.raises(Gone):
        actor.sweep()


def test_a_restarted_exporter_tries_its_port_until_it_is_free(actor: Exporter):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            actor.renew("r", "127.0.0.1", port)
        actor.push("r", "t", trial().values, 0.0)
    assert actor.renew("r", "127.0.0.1", port)
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert "reid_train_global_step" in answer.read().decode()
    actor.release("r")
    with pytest.raises(Gone):
        actor.sweep()


class Lost(RayActorError):
    """What a call says while the actor is being started again."""


class Ended(ActorDiedError):
    """What a call says once the actor has ended and is not started again."""


class Handle:
    """The actor's handle, with an actor in this process that can be lost and started again, or end
    for good."""

    def __init__(self, series: Series | None) -> None:
        self.series = series
        self.has_ended = False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self._call(name, *given))

    def _call(self, name: str, *given: Any) -> Any:
        if self.has_ended:
            return Ended()
        if self.series is None:
            return Lost()
        if name == "renew":
            return self.series.lease(given[0], exporter.LEASE_S)
        return getattr(self.series, name)(*given)


@pytest.fixture
def handle(scraped: Scraped, monkeypatch: pytest.MonkeyPatch) -> Handle:
    def get(answer: Any, timeout: float | None = None) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(exporter.ray, "get", get)
    monkeypatch.setattr(exporter.ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(exporter, "_BACK_S", 0.5)
    return Handle(scraped.series)


def lease_on(handle: Handle, linger_s: float = 60.0) -> ExporterLease:
    lease = ExporterLease(handle, "r", linger_s, Place("127.0.0.1", 1, "127.0.0.1:1", ""))
    lease.renew()
    return lease


def shown(series: Series) -> dict[str, float]:
    """Whether each trial runs, as it is served."""
    (running,) = [f for f in series.collect() if f.name == PREFIX + "running"] or [None]
    return {s.labels["trial"]: s.value for s in running.samples} if running else {}


def test_an_exporter_that_came_back_empty_gets_everything_it_would_still_show(handle: Handle):
    lease = lease_on(handle)
    for name in ("alive", "late", "old"):
        lease.push(name, trial().values)
    lease.end("late")
    lease.end("old")
    lease._told["old"].ended_at = time.monotonic() - 61.0
    lease.renew()
    handle.series = Series()
    lease.renew()
    lease.renew()
    assert shown(handle.series) == {"alive": 1.0, "late": 0.0}


def test_an_end_that_falls_together_with_the_exporters_is_not_lost(handle: Handle):
    lease = lease_on(handle)
    lease.push("main", trial().values)
    handle.series = None
    lease.end("main")
    back = Series()
    threading.Timer(0.2, lambda: setattr(handle, "series", back)).start()
    lease.release()
    assert shown(back) == {"main": 0.0}


def test_an_exporter_that_does_not_come_back_holds_nobody_for_ever(handle: Handle):
    lease = lease_on(handle)
    lease.push("main", trial().values)
    handle.series = None
    assert lease.release() == 0.0


def test_an_exporter_that_ended_while_its_driver_stood_still_is_started_anew(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
):
    anew = Handle(Series())
    monkeypatch.setattr(exporter, "_actor", lambda: anew)
    lease = lease_on(handle)
    lease.push("main", trial().values)
    handle.has_ended = True
    for _ in range(3):
        lease.renew()
    assert anew.series is not None
    assert (shown(anew.series), lease.trouble) == ({"main": 1.0}, "")


def test_an_end_is_told_again_to_an_exporter_that_is_lost_before_it_was_seen(handle: Handle):
    lease = lease_on(handle)
    lease.push("main", trial().values)
    lease.end("main")
    lease.release()
    handle.series, back = None, Series()
    threading.Timer(0.2, lambda: setattr(handle, "series", back)).start()
    begin = time.monotonic()
    assert not lease.wait_until_seen(0.6)
    assert shown(back) == {"main": 0.0}
    assert time.monotonic() - begin >= 0.6


def test_a_lease_forgets_the_trials_that_nobody_shows_any_more(handle: Handle):
    lease = lease_on(handle, linger_s=0.0)
    for number in range(100):
        lease.push(f"t{number}", trial().values)
        lease.end(f"t{number}")
    lease.push("goes on", trial().values)
    lease.renew()
    assert list(lease._told) == ["goes on"]


@pytest.mark.parametrize("lost", [Lost(), Ended()])
def test_who_finds_an_exporter_that_is_just_gone_asks_again(
    handle: Handle, monkeypatch: pytest.MonkeyPatch, lost: Exception
):
    place = Place("127.0.0.1", 1, "127.0.0.1:1", "")
    answers = iter([lost, lost, place])
    asked = SimpleNamespace(acquire=SimpleNamespace(remote=lambda *given: next(answers)))
    monkeypatch.setattr(exporter, "_actor", lambda: asked)
    assert acquire(TelemetryConfig(), "r", local=True).reach == place.reach


def test_an_exporter_that_never_stays_is_an_error_that_says_what_to_do(
    handle: Handle, monkeypatch: pytest.MonkeyPatch
):
    asked = SimpleNamespace(acquire=SimpleNamespace(remote=lambda *given: Ended()))
    monkeypatch.setattr(exporter, "_actor", lambda: asked)
    with pytest.raises(ClusterError, match=r"as soon as it starts.*telemetry\.enabled=false"):
        acquire(TelemetryConfig(), "r", local=True)
