"""Training whose workers are on several hosts is the training of one host."""

from collections import Counter
from pathlib import Path

import pytest

from service.data.manifest import MANIFEST_FILE
from tests.hosts.alone import train_alone
from tests.hosts.driving import drive
from tests.hosts.nodes import Machines
from tests.hosts.serving import served
from tests.small import CONFIG, small_config
from tests.states import checkpoints, read_checkpoint, same, step_of, without_clock

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_three_workers_on_two_hosts_train_what_three_on_one_do_and_each_host_fetches_once(
    two_hosts: Machines, records: Path, tmp_path: Path
):
    two_hosts.start(one=2, two=1)
    storage, config = tmp_path / "runs", tmp_path / "small.yaml"
    with served(records, two_hosts.head, tmp_path / "fetched.log") as shelf:
        config.write_text(CONFIG.format(records=shelf.url))
        driver = drive(two_hosts, config, storage, "spread", "cluster.num_workers=3", "log.every=1")
        driver.step(1)
        assert two_hosts.where("ray::RayTrainWorker") == {"one": 2, "two": 1}
        assert two_hosts.where("ray::ControlState") == {"head": 1}
        assert driver.ended() == 0, driver.log.read_text()
        fetched = shelf.fetched()
    assert two_hosts.where("ray::RayTrainWorker") == {}
    assert set(two_hosts.placement_groups()) == {"REMOVED"}

    shards = {file for _, file in fetched} - {MANIFEST_FILE}
    workers = [two_hosts.hosts[name].address for name in ("one", "two")]
    once = Counter((host, shard) for host in workers for shard in shards)
    assert {key: count for key, count in fetched.items() if key in once} == once
    assert not (two_hosts.head.folder / "home" / ".cache" / "crossreid").exists()

    train_alone(small_config(records, ["log.every=1"]), 3, tmp_path / "alone")
    found, expected = checkpoints(driver.folder)[-1], checkpoints(tmp_path / "alone")[-1]
    assert step_of(found) == step_of(expected) == 120
    assert same(without_clock(read_checkpoint(found)), without_clock(read_checkpoint(expected)))
