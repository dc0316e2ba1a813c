"""A host that is lost to its network, its power or its cloud, in the middle of a training."""

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.training.journal import Event
from tests.chaos.trace import differences
from tests.hosts.alone import train_alone
from tests.hosts.driving import Driver, drive
from tests.hosts.nodes import Machines
from tests.small import CONFIG, small_config
from tests.states import checkpoints, step_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 600
"""Enough for a loss to come before the end, also on a fast machine."""
EVERY = 20
SETTINGS = (
    f"train.max_steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "log.every=1",
    # Two runs have two clocks, which must decide nothing.
    "policy.max_data_wait=1.0",
    "policy.min_throughput=0.0",
)
CLUSTER = ("cluster.num_workers=2", "cluster.collective_timeout_s=10")
WORKER = "ray::RayTrainWorker"
WAITED = re.compile("until a worker of an earlier attempt has ended: (.*)")
GONE_S = 60.0
"""Seconds in which all that a run held is gone after its end."""


@pytest.fixture(scope="module")
def uninterrupted(records: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    folder = tmp_path_factory.mktemp("alone") / "run"
    return train_alone(small_config(records, SETTINGS), 2, folder)


def started(machines: Machines, records: Path, folder: Path, *overrides: str) -> Driver:
    """A run on the hosts `one` and `two`, which has made some steps."""
    machines.start(one=1, two=1)
    driver = command(machines, records, folder, *overrides)
    driver.step(3 * EVERY)
    return driver


def command(
    machines: Machines, records: Path, folder: Path, *overrides: str, is_new: bool = True
) -> Driver:
    config = folder / "small.yaml"
    config.write_text(CONFIG.format(records=records))
    words = (*SETTINGS, *CLUSTER, *overrides)
    return drive(machines, config, folder / "runs", "lost", *words, is_new=is_new)


def host_of(rank: int, machines: Machines, driver: Driver) -> str:
    """Rank 0 is on the host where the run's journal is open, rank 1 on the other."""
    journal = str(driver.folder / "journal.jsonl")
    found = [name for name, host in machines.hosts.items() if host.has_open(journal)]
    assert found in (["one"], ["two"])
    return found[0] if rank == 0 else {"one": "two", "two": "one"}[found[0]]


def starts(driver: Driver) -> list[int]:
    """How many workers each attempt had."""
    return [event["world_size"] for event in driver.events("start")]


def back_after_s(driver: Driver, lost_at: float, attempt: int, timeout_s: float = 300.0) -> float:
    """Seconds from a loss to the first step of an attempt after it."""
    return round(driver.step(1, timeout_s, attempt)["time"] - lost_at, 1)


def leaves_nothing(machines: Machines) -> None:
    until = time.monotonic() + GONE_S
    while any(machines.where(name) for name in (WORKER, "ray::TrainController")):
        assert time.monotonic() < until
        time.sleep(0.5)
    while set(machines.placement_groups()) != {"REMOVED"}:
        assert time.monotonic() < until
        time.sleep(0.5)


@pytest.mark.prove
@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_dies_and_comes_back_changes_nothing(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    uninterrupted: list[Event],
    rank: int,
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path)
    name = host_of(rank, two_hosts, driver)
    lost_at = time.time()
    two_hosts.hosts[name].kill()
    lost = driver.wait_for(lambda e: e["event"] == "lost", 120)
    record_property("seconds_from_loss_to_word", round(lost["time"] - lost_at, 1))
    two_hosts.start(**{name: 1})
    record_property("seconds_from_loss_to_step", back_after_s(driver, lost_at, attempt=2))
    assert driver.ended() == 0, driver.log.read_text()
    assert lost["ranks"] == [rank]
    assert list(differences(uninterrupted, driver.events(), STEPS)) == []
    assert step_of(checkpoints(driver.folder)[-1]) == STEPS
    leaves_nothing(two_hosts)


@pytest.mark.prove
@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_is_cut_off_is_named_and_the_run_goes_on_once_it_is_back(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    uninterrupted: list[Event],
    rank: int,
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path)
    name = host_of(rank, two_hosts, driver)
    lost_at = time.time()
    two_hosts.hosts[name].cut()
    lost = driver.wait_for(lambda e: e["event"] == "lost", 120)
    record_property("seconds_from_loss_to_word", round(lost["time"] - lost_at, 1))
    two_hosts.hosts[name].join()
    # Ray's node ends when it hears that it was given up; whoever runs it starts it again.
    two_hosts.nodes[name].wait(90)
    two_hosts.start(**{name: 1})
    record_property("seconds_from_loss_to_step", back_after_s(driver, lost_at, attempt=2))
    assert driver.ended() == 0, driver.log.read_text()
    assert lost["ranks"] == [rank]
    assert f"on {name}" in lost["words"]
    assert list(differences(uninterrupted, driver.events(), STEPS)) == []
    leaves_nothing(two_hosts)


@pytest.mark.prove
def test_workers_that_reach_the_head_and_not_each_other_go_on_once_they_do(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    uninterrupted: list[Event],
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path, "cluster.max_failures=6")
    lost_at = time.time()
    for name in ("one", "two"):
        two_hosts.hosts[name].isolate()
    lost = driver.wait_for(lambda e: e["event"] == "lost", 300)
    record_property("seconds_from_loss_to_word", round(lost["time"] - lost_at, 1))
    # The next workers do not meet either.
    driver.wait_for(lambda e: e["event"] == "lost" and e["time"] > lost["time"], 300)
    for name in ("one", "two"):
        two_hosts.hosts[name].isolate(False)
    record_property("seconds_from_loss_to_step", back_after_s(driver, lost_at, attempt=2))
    assert driver.ended() == 0, driver.log.read_text()
    assert list(differences(uninterrupted, driver.events(), STEPS)) == []
    leaves_nothing(two_hosts)


ELASTIC = ("cluster.min_workers=1", "cluster.resize_s=2", "train.max_steps=4000")


@pytest.mark.parametrize("loss", [pytest.param("dies", marks=pytest.mark.prove), "is cut off"])
def test_a_run_goes_on_with_fewer_hosts_and_grows_again_over_the_same_batches(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    loss: str,
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path, *ELASTIC)
    two, lost_at = two_hosts.hosts["two"], time.time()
    two.kill() if loss == "dies" else two.cut()
    record_property("seconds_from_loss_to_step", back_after_s(driver, lost_at, attempt=2))
    if loss == "is cut off":
        two.join()
        # Ray's node ends when it hears that it was given up; whoever runs it starts it again.
        two_hosts.nodes["two"].wait(90)
    two_hosts.start(two=1)
    grown_at = time.time()
    record_property("seconds_from_host_to_step", back_after_s(driver, grown_at, attempt=3))
    assert starts(driver) == [2, 1, 2]
    left = next(e["step"] for e in driver.events("leaving") if e["attempt"] == 2)
    assert driver.events("start")[-1]["step"] >= left
    last = driver.events("start")[-1]["step"] + EVERY
    driver.step(last, attempt=3)
    driver.stop()
    assert driver.ended() == 130, driver.log.read_text()
    leaves_nothing(two_hosts)

    config = small_config(records, (*SETTINGS, "train.max_steps=4000"))
    expected = {
        e["step"]: e["ce"]
        for e in train_alone(config, 2, tmp_path / "alone", last)
        if e["event"] == "steps"
    }
    found = [(e["step"], e["ce"]) for e in driver.events("steps") if e["step"] <= last]
    assert {step for step, _ in found} == expected.keys() == set(range(1, last + 1))
    # The order of additions drifts; another batch is as far away as the next one.
    another = statistics.median(abs(expected[n + 1] - expected[n]) for n in range(1, last))
    assert [pair for pair in found if abs(pair[1] - expected[pair[0]]) > another / 20] == []


@pytest.mark.prove
def test_the_rest_takes_over_from_a_host_that_stays_cut_off_while_its_rank_0_still_hangs(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path, *ELASTIC, "cluster.collective_timeout_s=600")
    name = host_of(0, two_hosts, driver)
    lost_at = time.time()
    two_hosts.hosts[name].cut()
    record_property("seconds_from_loss_to_step", back_after_s(driver, lost_at, 2))
    assert starts(driver) == [2, 1]
    assert [e["ranks"] for e in driver.events("lost")] == [[0]]
    driver.stop()
    assert driver.ended() == 130, driver.log.read_text()


@pytest.mark.prove
def test_another_cluster_goes_on_once_the_workers_end_that_outlived_their_lost_head_and_driver(
    two_clusters: tuple[Machines, Machines],
    records: Path,
    tmp_path: Path,
    uninterrupted: list[Event],
    record_property: Callable[[str, Any], None],
):
    first, second = two_clusters
    # It is there before the loss, so that its workers come while the old rank 0 still hangs.
    second.start(three=1, four=1)
    hangs = "cluster.collective_timeout_s=600"
    driver = started(first, records, tmp_path, hangs)
    name = host_of(0, first, driver)
    lost_at = time.time()
    # Without power nobody hears of the end of a connection.
    first.head.cut()
    first.head.kill()
    again = command(second, records, tmp_path, hangs, is_new=False)
    record_property("seconds_from_loss_to_step", back_after_s(again, lost_at, attempt=2))
    assert again.ended() == 0, again.log.read_text()
    waited = WAITED.findall(again.log.read_text())
    assert len(waited) == 1
    assert f"on {name}" in waited[0]
    assert list(differences(uninterrupted, again.events(), STEPS)) == []
    leaves_nothing(second)
    # Neither waits for as long as its collective may take.
    ended_by = time.monotonic() + GONE_S
    while first.where(WORKER):
        assert time.monotonic() < ended_by
        time.sleep(0.5)


@pytest.mark.prove
def test_a_host_that_will_be_taken_away_is_saved_from_and_trained_without(
    two_hosts: Machines,
    records: Path,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
):
    driver = started(two_hosts, records, tmp_path, *ELASTIC, "train.checkpoint_every=100000")
    two_hosts.preempt("two", notice_s=30)
    noticed_at = time.time()
    leaving = driver.wait_for(lambda e: e["event"] == "leaving", 120)
    record_property("seconds_from_notice_to_word", round(leaving["time"] - noticed_at, 1))
    assert "two" in leaving["machines"]
    record_property("seconds_from_notice_to_step", back_after_s(driver, noticed_at, attempt=2))
    assert starts(driver) == [2, 1]
    assert [e["step"] for e in driver.events("start")] == [0, leaving["step"]]
    saved = [e["step"] for e in driver.events("checkpoint") if e["attempt"] == 1]
    assert saved == [leaving["step"]]
    assert max(e["step"] for e in driver.events("steps") if e["attempt"] == 1) > leaving["step"]
    two_hosts.wait_until_left("two", 120)
    driver.stop()
    assert driver.ended() == 130, driver.log.read_text()
    leaves_nothing(two_hosts)
