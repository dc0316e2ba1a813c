"""The control plane and the exporter as actors: fast, never blocking, and back after a kill."""

import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from service.config import TelemetryConfig
from service.decisions import Action, Directive
from service.errors import ClusterError, RunError
from service.orchestration.control import (
    ControlClient,
    ControlReader,
    News,
    find_control,
    start_control,
)
from service.orchestration.monitor import Monitor
from service.telemetry.exporter import ACTOR_NAME, NAMESPACE, acquire
from service.telemetry.trial import TrialSeries
from tests.ray.processes import pids_of
from tests.reports import CONFIG

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


STILL_S = 20.0
"""Seconds that a call would take which waits for a process that stands still."""
POLLS = 100
AT_ONCE_S = 5.0
"""For so many polls: far more than they need, even on a busy machine, and less than any wait."""


def polling_worker(name: str, last: int) -> dict[int, float]:
    """Polls as rank 0 does, a step every 10 ms, until directive `last` came: when each came."""
    client = ControlClient(find_control(name), "trial")
    client.report({"event": "workers"})
    applied, came = 0, {}
    while applied < last:
        if (directive := client.poll(applied)) is not None:
            applied = directive.number
            came[applied] = time.time()
        time.sleep(0.01)
    client.poll(applied)
    return came


def until(condition: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def test_a_directive_reaches_a_running_worker_in_a_fraction_of_a_second(record_property: Any):
    """Most do: a busy machine may hold one up."""
    control = start_control("latency")
    reader = ControlReader(control)
    numbers = range(1, 8)
    task = ray.remote(polling_worker).options(num_cpus=0).remote("latency", numbers[-1])
    until(lambda: any(news.events for news in reader.read()))
    sent = {}
    for number in numbers:
        sent[number] = time.time()
        reader.put("trial", Directive(number, actions=(Action("sdm_weight", 0.1 * number),)))
        until(lambda number=number: reader.read()[0].applied == number)
    came = ray.get(task)
    assert set(came) == set(numbers)
    delays = [came[number] - sent[number] for number in numbers]
    record_property("seconds_from_decision_to_worker", [round(delay, 3) for delay in delays])
    assert statistics.median(delays) < 1.0


def test_rank_0_does_not_wait_for_a_control_plane_that_stands_still(record_property: Any):
    control = start_control("still")
    client = ControlClient(control, "trial")
    reader = ControlReader(control)
    client.report({"event": "workers"})
    until(lambda: any(news.events for news in reader.read()))
    client.poll(0)
    with standing_still("ray::ControlState"):
        begin = time.perf_counter()
        for step in range(POLLS):
            assert client.poll(0) is None
            assert client.announced() == ""
            client.tell({"step": step}, at_once=True)
            client.report({"step": step})
        spent_s = time.perf_counter() - begin
    record_property(f"seconds_of_{POLLS}_polls_meanwhile", round(spent_s, 4))
    assert spent_s < AT_ONCE_S
    reader.put("trial", Directive.to_stop(1, ""))
    until(lambda: client.poll(0))


def test_a_killed_control_plane_comes_back_empty_and_works_on(record_property: Any):
    control = start_control("killed")
    client = ControlClient(control, "trial")
    reader = ControlReader(control)
    client.report({"event": "workers"})
    until(lambda: any(news.events for news in reader.read()))
    # Without Ray's own head it stays away for as long as is looked at here.
    with standing_still("gcs/gcs_server"):
        kill("ControlState")
        begin = time.perf_counter()
        for _ in range(POLLS):
            assert client.poll(0) is None
        spent_s = time.perf_counter() - begin
    record_property(f"seconds_of_{POLLS}_polls_meanwhile", round(spent_s, 4))
    assert spent_s < AT_ONCE_S
    reader.put("trial", Directive.to_stop(1, ""))
    given: list[Directive] = []
    until(lambda: given.append(d) or True if (d := client.poll(0)) else False)
    assert given[0].stop
    client.report({"event": "after"})
    kept: list[dict[str, Any]] = []
    until(lambda: kept.extend(e for news in reader.read() for e in news.events) or kept)
    everything = [event for news in ControlReader(control).read() for event in news.events]
    assert kept == everything == [{"event": "after"}]


def kill(name: str) -> None:
    """Kills the actors of this class as the kernel would."""
    send(found(f"ray::{name}"), signal.SIGKILL)


def found(name: str) -> list[int]:
    pids = pids_of(name)
    assert pids, f"no process of {name}"
    return pids


def send(pids: list[int], sign: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


@contextmanager
def standing_still(name: str) -> Iterator[None]:
    """Processes of this name are stopped for the block, and for `STILL_S` at most: who waits for
    them goes on at last."""
    pids = found(name)
    again = threading.Timer(STILL_S, send, (pids, signal.SIGCONT))
    send(pids, signal.SIGSTOP)
    again.start()
    try:
        yield
    finally:
        again.cancel()
        send(pids, signal.SIGCONT)


def scraped(address: str) -> str:
    """What is served at `address`; nothing while nobody listens there."""
    try:
        with urlopen(address, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def test_a_killed_exporter_gets_everything_again_from_its_drivers_at_the_same_port(
    record_property: Any,
):
    """A trial that goes on, one that stands still, and one that has ended but is to be seen yet."""
    config = TelemetryConfig(port=0, linger_s=60.0)
    lease = acquire(config, "one", local=True)
    monitor = Monitor(CONFIG, lease)
    quiet: Any = SimpleNamespace(read=list, failures=0)
    for trial in ("stands", "ended"):
        monitor.hear(News(trial, 0, {"step": 7, "total": 100, "line": {}}, ()))
    monitor.ended("ended")
    until(lambda: 'reid_train_running{run="one",trial="ended"} 0.0' in scraped(lease.address))
    before = scraped(lease.address)
    monitor.look(quiet)
    kill("Exporter")
    until(lambda: scraped(lease.address) == "")
    killed_at = time.monotonic()

    def is_whole() -> bool:
        monitor.look(quiet)
        return scraped(lease.address) == before

    until(is_whole)
    record_property("seconds_to_full_state", round(time.monotonic() - killed_at, 1))
    monitor.hear(News("stands", 0, {"step": 8, "total": 100, "line": {}}, ()))
    until(lambda: 'reid_train_global_step{run="one",trial="stands"} 8.0' in scraped(lease.address))
    other = acquire(config, "two", local=False)
    assert other.address == lease.address
    other.release()
    ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE), no_restart=True)
    until(exporter_is_gone)


def test_a_run_that_starts_while_the_exporter_is_down_gets_it_all_the_same():
    config = TelemetryConfig(port=0, linger_s=0.0)
    first = acquire(config, "one", local=False)
    kill("Exporter")
    second = acquire(config, "two", local=False)
    second.push("main", TrialSeries(CONFIG).values)
    until(lambda: 'reid_train_running{run="two",trial="main"} 1.0' in scraped(second.address))
    for lease in (first, second):
        lease.release()
    until(exporter_is_gone)


def test_an_exporter_that_ended_while_a_driver_stood_still_is_back_at_the_same_port():
    """As it ends when no lease was renewed for a minute: for good."""
    lease = acquire(TelemetryConfig(port=0, linger_s=0.0), "one", local=False)
    monitor = Monitor(CONFIG, lease)
    monitor.hear(News("main", 0, {"step": 7, "total": 100, "line": {}}, ()))
    until(lambda: 'reid_train_running{run="one",trial="main"} 1.0' in scraped(lease.address))
    before = scraped(lease.address)
    ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE), no_restart=True)
    until(lambda: scraped(lease.address) == "")

    def is_whole() -> bool:
        lease.renew()
        return scraped(lease.address) == before

    until(is_whole)
    lease.release()
    until(exporter_is_gone)


def test_two_runs_of_one_name_are_refused_and_the_name_is_free_after_the_first():
    first = start_control("night")
    with pytest.raises(RunError, match="a run named night is going on on this cluster"):
        start_control("night", patience_s=0.5)
    del first
    assert start_control("night") is not None


def exporter_is_gone() -> bool:
    try:
        ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return True
    return False


def test_one_exporter_serves_all_runs_and_ends_after_the_last_one():
    config = TelemetryConfig(port=0, linger_s=1.0)
    first = acquire(config, "one", local=False)
    second = acquire(config, "two", local=False)
    assert first.address == second.address
    for lease in (first, second):
        lease.push("main", TrialSeries(CONFIG).values)

    until(lambda: 'reid_train_running{run="two",trial="main"} 1.0' in scraped(first.address))
    first.end("main")
    first.release()
    assert 'reid_train_running{run="one",trial="main"} 0.0' in scraped(first.address)
    until(lambda: 'run="one"' not in scraped(first.address))
    assert 'run="two"' in scraped(first.address)
    second.release()
    until(exporter_is_gone)


def test_a_taken_port_is_refused_on_a_shared_cluster_and_replaced_on_ones_own():
    until(exporter_is_gone)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = TelemetryConfig(port=port, linger_s=0.0)
        with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}: .*telemetry\.port"):
            acquire(config, "one", local=False)
        until(exporter_is_gone)
        lease = acquire(config, "one", local=True)
    assert f":{port}/" not in lease.address
    assert f"port {port} is taken" in lease.note
    lease.release()
    until(exporter_is_gone)
