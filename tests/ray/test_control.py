"""The control plane and the exporter as actors: fast, never blocking, and back after a kill."""

import os
import signal
import socket
import time
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from service.config import PolicyConfig, TelemetryConfig
from service.errors import ClusterError
from service.gonogo import Directive
from service.orchestration.control import (
    ControlClient,
    ControlReader,
    find_control,
    start_control,
)
from service.telemetry.exporter import ACTOR_NAME, NAMESPACE, acquire
from service.telemetry.lines import TrialSeries
from tests.ray.processes import pids_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.timeout(60),
]


def polling_worker(name: str, seconds: float) -> dict[str, Any]:
    """Polls as rank 0 does, a step every 10 ms: when directives came, and the longest poll."""
    client = ControlClient(find_control(name), "trial")
    client.report({"event": "workers"})
    applied, came, longest = 0, [], 0.0
    until = time.time() + seconds
    while time.time() < until:
        begin = time.perf_counter()
        directive = client.poll(applied)
        longest = max(longest, time.perf_counter() - begin)
        if directive is not None:
            applied = directive.number
            came.append((directive.number, time.time()))
        time.sleep(0.01)
    return {"came": came, "longest_s": longest}


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def test_a_directive_reaches_a_running_worker_in_a_fraction_of_a_second(record_property: Any):
    control = start_control("latency")
    reader = ControlReader(control)
    task = ray.remote(polling_worker).options(num_cpus=0).remote("latency", 4.0)
    until(lambda: any(news.events for news in reader.read()))
    sent = {}
    for number in (1, 2, 3, 4):
        sent[number] = time.time()
        reader.put("trial", Directive(number, sdm_weight=0.1 * number))
        time.sleep(0.4)
    found = ray.get(task)
    delays = {number: came - sent[number] for number, came in found["came"]}
    record_property("seconds_from_decision_to_worker", [round(d, 3) for d in delays.values()])
    record_property("longest_poll_s", round(found["longest_s"], 4))
    assert set(delays) == {1, 2, 3, 4}
    assert sorted(delays.values())[1] < 0.5
    assert reader.read()[0].applied == 4


def test_a_killed_control_plane_comes_back_and_a_poll_meanwhile_does_not_block():
    control = start_control("killed")
    client = ControlClient(control, "trial")
    reader = ControlReader(control)
    client.report({"event": "workers"})
    until(lambda: any(news.events for news in reader.read()))
    for pid in pids_of("ControlState"):
        os.kill(pid, signal.SIGKILL)
    begin = time.perf_counter()
    for _ in range(5):
        client.poll(0)
    assert time.perf_counter() - begin < 1.0
    reader.put("trial", Directive(1, stop=True))
    found: list[Directive] = []
    until(lambda: found.append(d) or True if (d := client.poll(0)) else False)
    assert found[0].stop
    client.report({"event": "after"})
    until(lambda: any(news.events for news in reader.read()))


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
        lease.push("main", TrialSeries(PolicyConfig()).values)

    def text() -> str:
        with urlopen(first.address, timeout=5) as answer:
            return answer.read().decode()

    until(lambda: 'reid_train_running{run="two",trial="main"} 1.0' in text())
    first.end("main")
    first.release()
    assert 'reid_train_running{run="one",trial="main"} 0.0' in text()
    until(lambda: 'run="one"' not in text())
    assert 'run="two"' in text()
    second.release()
    until(exporter_is_gone)


def test_a_taken_port_is_refused_on_a_shared_cluster_and_replaced_on_ones_own():
    until(exporter_is_gone)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = TelemetryConfig(port=port, linger_s=0.0)
        with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}: .*telemetry\.port"):
            acquire(config, "one", local=False)
        lease = acquire(config, "one", local=True)
    assert f":{port}/" not in lease.address
    assert f"port {port} is taken" in lease.note
    lease.release()
    until(exporter_is_gone)
