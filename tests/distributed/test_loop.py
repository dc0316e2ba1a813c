"""The whole loop on several ranks: one trajectory, one memory, one error."""

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.data import loader as loader_module
from service.data.records import Records
from service.distributed import Distributed
from service.errors import CheckpointError, DataError, RunError
from service.launch import launch
from service.training import parts as parts_module
from service.training import writer as writer_module
from service.training.journal import read_journal
from service.training.loop import Trainer
from service.training.parts import build_parts
from service.training.ports import Ports
from service.training.store import folder_name
from tests.small import make_records, small_config

OVERRIDES = [
    "train.max_steps=24",
    "policy.first_look=8",
    "policy.no_go_from=20",
    "policy.final_look=24",
    "policy.go=0.9999",
    "policy.hold=0.99999",
    "policy.collapse=0.999999",
    "policy.learning=0.999",
    "policy.min_fall=0",
    "policy.min_grad=0",
    "loss.sdm.min_steps=4",
    "log.health_every=4",
    "sampler.ids_per_batch=7",
]
"""Every line is so lax that SDM starts within a few steps."""


def trained(world: Distributed, records: str, folder: str) -> dict[str, Any]:
    """A short run; what this rank holds at its end."""
    trainer = Trainer(small_config(Path(records), OVERRIDES), Path(folder), world, Ports())
    outcome = trainer.run()
    trainer.close()
    assert trainer.parts.memory is not None
    return {
        "weights": trainer.parts.model.classifier.weight.detach().numpy(),
        "memory": trainer.parts.memory.fingerprint(),
        "summary": outcome.summary,
    }


LIMIT_S = 1.5


def fetching(world: Distributed, records: str, folder: str) -> tuple[str, list[float]]:
    """Rank 1 is on a machine that has yet to fetch the records, for longer than a collective may
    last. The fingerprint of what it got, and the seconds of which this rank told."""
    told: list[float] = []
    open_plan = parts_module.open_plan

    def slow(*args: Any) -> Any:
        time.sleep(2.5 * LIMIT_S * world.rank)
        return open_plan(*args)

    setattr(parts_module, "open_plan", slow)  # noqa: B010  pyright minds the types
    setattr(parts_module, "TELL_S", LIMIT_S)  # noqa: B010
    ports = Ports(event=lambda event: told.append(event["seconds"]))
    config = small_config(Path(records), OVERRIDES)
    trainer = Trainer(config, Path(folder), world.limited(LIMIT_S), ports)
    trainer.close()
    return trainer.parts.records.fingerprint, told


def broken(world: Distributed, records: str, folder: str) -> str:
    """Rank 1 cannot decode its third batch."""
    decode, calls = loader_module.decode_rows, []

    def fail_once(*args: Any) -> np.ndarray:
        calls.append(1)
        if world.rank == 1 and len(calls) == 3:
            raise DataError("row 5 (vis/0001/x.jpg) is not a JPEG")
        return decode(*args)

    loader_module.decode_rows = fail_once
    trainer = Trainer(small_config(Path(records), OVERRIDES), Path(folder), world, Ports())
    try:
        trainer.run()
    except DataError as error:
        return str(error)
    return "no error"


def unwritable(world: Distributed, records: str, folder: str) -> str:
    """Rank 0 can write no checkpoint but its first, and none may fail; which of them it comes to
    depends on its disk, since a newer one replaces one that waits."""
    writer_module.PAUSES_S = (0.01, 0.01)
    overrides = [*OVERRIDES, "train.checkpoint_every=5", "train.failed_checkpoints=0"]
    trainer = Trainer(small_config(Path(records), overrides), Path(folder), world, Ports())
    if world.rank == 0:
        for step in (10, 15, 20, 24):
            (Path(folder) / folder_name(step)).write_text("in the way")
    try:
        trainer.run()
    except CheckpointError as error:
        return str(error)
    return "no error"


def incomplete(world: Distributed, records: str, folder: str) -> str:
    """Rank 1 does not see the records."""
    seen = records if world.rank == 0 else f"{records}-elsewhere"
    try:
        Trainer(small_config(Path(seen), OVERRIDES), Path(folder), world, Ports())
    except DataError as error:
        return str(error)
    return "no error"


def drifted(world: Distributed, records: str, folder: str) -> str:
    """Rank 1's memory changes by itself, as a flipped bit would."""
    trainer = Trainer(small_config(Path(records), OVERRIDES), Path(folder), world, Ports())
    memory = trainer.parts.memory
    assert memory is not None
    push = memory.push

    def wrong(features: torch.Tensor, classes: torch.Tensor, step: int) -> None:
        push(features + 1e-3 * world.rank, classes, step)

    memory.push = wrong
    try:
        trainer.run()
    except RunError as error:
        return str(error)
    return "no error"


def elsewhere(world: Distributed, records: str, folder: str) -> str:
    """Rank 1 has other records."""
    seen = records if world.rank == 0 else str(make_records(Path(folder), seed=1))
    try:
        Trainer(small_config(Path(seen), OVERRIDES), Path(folder), world, Ports())
    except DataError as error:
        return str(error)
    return "no error"


def unshared(world: Distributed, records: str, folder: str) -> str:
    """Rank 1's machine has another file system under the same path."""
    config = small_config(Path(records), [*OVERRIDES, f"run.checkpoints={folder}/scratch"])
    with pytest.MonkeyPatch.context() as patched:
        if world.rank == 1:
            isdir = os.path.isdir
            patched.setattr(os.path, "isdir", lambda path: "scratch" not in path and isdir(path))
        try:
            Trainer(config, Path(folder), world, Ports())
        except RunError as error:
            return str(error)
    return "no error"


def drawn(world: Distributed, records: str) -> list[list[int]]:
    """The record rows of each global batch of two epochs, as all ranks together decoded them."""
    config = small_config(Path(records), OVERRIDES)
    loader = build_parts(config, world).loader
    found = []
    for epoch in (1, 2):
        for batch in loader.epoch(epoch):
            shares = world.gather_objects(batch.row.tolist())
            found.append(sorted(row for share in shares for row in share))
    return found


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_records(tmp_path_factory.mktemp("small")))


@pytest.mark.distributed
def test_one_two_and_three_ranks_draw_the_same_global_batches(records: str):
    alone = drawn(Distributed.single(), records)
    assert len(alone) > 4
    assert all(len(set(rows)) == len(rows) for rows in alone)
    for size in (2, 3):
        assert launch(drawn, size, records, timeout_s=60) == [alone] * size


@pytest.mark.distributed
def test_two_ranks_train_like_one(records: str, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (alone,) = launch(trained, 1, records, str(tmp_path / "one"))
    both = launch(trained, 2, records, str(tmp_path / "two"), timeout_s=120)
    assert np.array_equal(both[0]["weights"], both[1]["weights"])
    assert both[0]["memory"] == both[1]["memory"]
    assert both[0]["summary"]["memory_hash_equal"] is True
    assert both[0]["summary"]["sdm_weight"] > 0
    np.testing.assert_allclose(both[0]["weights"], alone["weights"], rtol=0, atol=2e-3)
    health = [
        [e["health"] for e in read_journal(tmp_path / name) if e["event"] == "health"]
        for name in ("one", "two")
    ]
    for a, b in zip(*health, strict=True):
        assert a["ce_by_kind"] == pytest.approx(b["ce_by_kind"], rel=1e-3)
        for line in ("ce", "sdm", "sdm_rows", "head_norm", "feature_norm", "pair_coverage"):
            assert a[line] == pytest.approx(b[line], rel=1e-3), (a["step"], line)


def each(world: Distributed, records: str, folder: str) -> list[str]:
    """What this rank was told of each fault, in order."""
    found = []
    for fault in (incomplete, elsewhere, unwritable, drifted, broken, unshared):
        place = Path(folder) / fault.__name__
        place.mkdir(exist_ok=True)
        found.append(fault(world, records, str(place)))
    return found


@pytest.mark.distributed
def test_a_rank_may_fetch_records_for_longer_than_a_collective_lasts(records: str, tmp_path: Path):
    expected = Records.open(records, "train").fingerprint
    first, second = launch(fetching, 2, records, str(tmp_path), timeout_s=60)
    assert (first[0], second) == (expected, (expected, []))
    assert first[1] == sorted(first[1])
    assert first[1][0] >= LIMIT_S


@pytest.mark.distributed
def test_an_error_on_one_rank_is_raised_on_all(records: str, tmp_path: Path):
    first, second = launch(each, 2, records, str(tmp_path), timeout_s=60)
    assert first == second
    assert "elsewhere" in first[0]
    assert "different records" in first[1]
    assert "cannot write checkpoint" in first[2]
    assert "different memories" in first[3]
    assert first[4] == "row 5 (vis/0001/x.jpg) is not a JPEG"
    names = r"rank 0 \(pid \d+ on \S+\) is not there for rank 1 \(pid \d+ on \S+\)"
    assert re.search(rf"/scratch/unshared of {names}; run\.checkpoints must be a folder", first[5])
    scratch = tmp_path / "unshared" / "scratch" / "unshared"
    assert (list(scratch.iterdir()), list(tmp_path.glob("*/.checkpoint*"))) == ([], [])
