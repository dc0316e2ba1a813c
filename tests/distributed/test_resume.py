"""A resumed run on several ranks equals the uninterrupted one, as far as arithmetic lets it."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from service.data.layout import Batch
from service.data.records import Records
from service.distributed import Distributed
from service.launch import launch
from service.training.journal import read_journal
from service.training.loop import Trainer
from service.training.meters import _added as added
from service.training.ports import Ports
from service.training.saving import Saving
from service.training.store import STATE_FILE, FolderStore
from tests.distributed.test_loop import OVERRIDES
from tests.small import make_records, small_config
from tests.states import checkpoints, lines, read_checkpoint, step_of, without_clock

pytestmark = pytest.mark.distributed

CUT = 8
TIMELESS = ["policy.min_throughput=0", "policy.max_data_wait=1"]
"""No decision finds fault with the clock, which no two runs share."""
SAVED = ["train.checkpoint_every=4", "train.keep_checkpoints=99", "log.every=5", *TIMELESS]
Rows = dict[int, list[int]]


def run(
    world: Distributed, records: str, folder: Path, *overrides: str, ports: Ports | None = None
) -> Rows:
    """Trains in `folder`; the record rows of each step's global batch."""
    config = small_config(Path(records), [*OVERRIDES, *SAVED, *overrides])
    trainer = Trainer(config, folder, world, ports or Ports())
    step, rows = trainer._step, {}

    def watched(batch: Batch, waited_s: float) -> None:
        shares = world.gather_objects(batch.row.tolist())
        rows[trainer.progress.step + 1] = sorted(row for share in shares for row in share)
        step(batch, waited_s)

    trainer._step = watched
    try:
        trainer.run()
    finally:
        trainer.close()
    return rows


def cut(world: Distributed, source: Path, target: Path) -> Path:
    """What a run in `source` would have left if it had been lost after step CUT."""
    if world.rank == 0:
        shutil.copytree(source, target)
        for folder in checkpoints(target):
            if step_of(folder) != CUT:
                shutil.rmtree(folder)
    world.agree([0.0])
    return target


def both(world: Distributed, records: str, base: str, name: str, *overrides: str) -> list[Rows]:
    """An uninterrupted run, and one that is resumed after step CUT and saves once more where the
    other does not, as a machine is about to leave."""
    straight, resumed = Path(base) / name / "straight", Path(base) / name / "resumed"
    if world.rank == 0:
        straight.mkdir(parents=True)
    world.agree([0.0])
    first = run(world, records, straight, *overrides)
    answers = iter(["", "", ""])
    ports = Ports(leaving=lambda: next(answers, "a machine"), leaving_every_s=0.0)
    again = run(world, records, cut(world, straight, resumed), *overrides, ports=ports)
    return [first, again]


def on_one(world: Distributed, records: str, base: str) -> list[Rows]:
    return both(world, records, base, "one")


def on_two(world: Distributed, records: str, base: str) -> list[Rows]:
    found = both(world, records, base, "two")
    more = cut(world, Path(base, "one", "straight"), Path(base, "one", "on two"))
    return [*found, run(world, records, more)]


def check_sums(world: Distributed) -> None:
    """What is added up over the ranks depends on no more than what is added: a reduction's order
    depends on the size of the whole."""
    table = torch.randn(12, 20, generator=torch.Generator().manual_seed(world.rank))
    whole, part = added(table, world), added(table[:5], world)
    assert torch.equal(whole[:5], part)
    torch.testing.assert_close(part, sum(world.gather_objects(table[:5])))


def on_three(world: Distributed, records: str, base: str) -> list[Rows]:
    check_sums(world)
    both(world, records, base, "step", "train.max_steps=9")
    fixed = both(world, records, base, "fixed", "train.deterministic=true")
    more = cut(world, Path(base, "two", "straight"), Path(base, "two", "on three"))
    return [*fixed, run(world, records, more)]


LIMIT_S = 1.5


def read_slowly(world: Distributed, records: str, base: str) -> int:
    """The step of a checkpoint whose reading takes longer than a collective may."""
    read = FolderStore.read

    def slow(store: FolderStore, step: int, file: str) -> bytes | None:
        if file == STATE_FILE:
            time.sleep(2.5 * LIMIT_S)
        return read(store, step, file)

    setattr(FolderStore, "read", slow)  # noqa: B010  pyright minds the name `store`
    config = small_config(
        Path(records), [*OVERRIDES, *SAVED, f"cluster.collective_timeout_s={LIMIT_S}"]
    )
    drawn_from = Records.open(config.data.records, "train").fingerprint
    folder = Path(base, "two", "straight")
    saving = Saving(config, folder, world.limited(LIMIT_S), drawn_from, lambda event: None)
    found = saving.newest(0)
    assert found is not None
    return found["progress"]["step"]


def test_ranks_may_read_a_checkpoint_for_longer_than_a_collective_lasts(
    played: tuple[Path, list[Rows]],
):
    base, _ = played
    last = step_of(checkpoints(base / "two" / "straight")[-1])
    assert launch(read_slowly, 2, str(base / "records"), str(base), timeout_s=60) == [last, last]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Rows]]:
    """The folder of all runs, and the rows that each of them drew."""
    base = tmp_path_factory.mktemp("resume")
    records = str(make_records(base))
    drawn: list[Rows] = []
    for size, play in ((1, on_one), (2, on_two), (3, on_three)):
        found = launch(play, size, records, str(base), timeout_s=60)
        assert all(rows == found[0] for rows in found)
        drawn += found[0]
    alone = Distributed.single()
    more = cut(alone, base / "two" / "straight", base / "two" / "on one")
    return base, [*drawn, run(alone, records, more)]


def state(folder: Path) -> dict[str, Any]:
    """The last checkpoint without its clocks."""
    found = checkpoints(folder)[-1]
    kept = read_checkpoint(found)
    assert kept["progress"]["step"] == step_of(found)
    return without_clock(kept)


def difference(a: Any, b: Any) -> float:
    """The largest between two states; infinite where they are not of one form."""
    if isinstance(a, torch.Tensor):
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, dict):
        return max([difference(a[k], b[k]) for k in a.keys() | b.keys()], default=0.0)
    if isinstance(a, list | tuple):
        return max([difference(x, y) for x, y in zip(a, b, strict=True)], default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


@pytest.mark.parametrize("name", ["one", "two", "fixed"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    played: tuple[Path, list[Rows]], name: str
):
    straight, resumed = (played[0] / name / how for how in ("straight", "resumed"))
    assert difference(state(straight), state(resumed)) == 0.0
    leaving = [e["step"] for e in read_journal(resumed) if e["event"] == "leaving"]
    assert leaving == [CUT + 3]
    told = lines(straight, "steps", "health", "decision", after=CUT)
    assert [e["step"] for e in told if e["event"] == "steps"] == [10, 15, 20, 24]
    assert told == lines(resumed, "steps", "health", "decision", after=CUT)
    assert state(straight)["progress"]["sdm"]["weight"] > 0


def test_on_three_ranks_only_the_order_of_additions_differs_where_it_is_not_fixed(
    played: tuple[Path, list[Rows]],
):
    """After one step; Adam makes more of it with every further one."""
    straight, resumed = (state(played[0] / "step" / how) for how in ("straight", "resumed"))
    assert 0.0 < difference(straight["model"], resumed["model"]) < 1e-6


@pytest.mark.parametrize(("name", "size"), [("one", "two"), ("two", "three"), ("two", "one")])
def test_a_run_may_go_on_with_another_number_of_ranks(
    played: tuple[Path, list[Rows]], name: str, size: str
):
    straight, other = (played[0] / name / how for how in ("straight", f"on {size}"))
    starts = [e for e in read_journal(other) if e["event"] == "start"]
    sizes = {"one": 1, "two": 2, "three": 3}
    assert (starts[-1]["world_size"], starts[-1]["step"]) == (sizes[size], CUT)
    before, after = (
        [e["health"] for e in lines(folder, "health", after=CUT)] for folder in (straight, other)
    )
    assert [line["step"] for line in before] == [line["step"] for line in after]
    for a, b in zip(before, after, strict=True):
        assert a["ce_by_kind"] == pytest.approx(b["ce_by_kind"], rel=1e-3)
        for line in ("ce", "sdm", "sdm_rows", "head_norm", "feature_norm", "pair_coverage"):
            assert a[line] == pytest.approx(b[line], rel=1e-3), (a["step"], line)


def test_every_run_draws_the_same_global_batches(played: tuple[Path, list[Rows]]):
    first = played[1][0]
    assert sorted(first) == list(range(1, 25))
    for rows in played[1][1:]:
        assert sorted(rows) in (list(range(1, 25)), list(range(CUT + 1, 25)))
        assert all(rows[step] == first[step] for step in rows)
