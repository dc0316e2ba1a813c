"""Every collective in real processes over gloo; several checks share one launch, as starts cost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from service.distributed import Distributed
from service.errors import ClusterError, DataError, LostRankError
from service.launch import launch
from service.losses.memory import CrossBatchMemory

pytestmark = pytest.mark.distributed

COUNTS = {
    2: [(3, 3), (5, 2), (0, 4), (1, 0), (0, 0)],
    3: [(2, 2, 2), (4, 0, 3), (0, 1, 0), (1, 2, 3)],
}


def rows(seed: int, n: int, dim: int = 3) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gather_check(world: Distributed, counts: tuple[int, ...]) -> tuple[bool, float]:
    """Whether forward is the concatenation, and how far backward is from one process's autograd.

    Rank r's loss weighs all gathered rows with its own weights, so each row's gradient has a part
    from every rank.
    """
    locals_ = [rows(rank, n).requires_grad_() for rank, n in enumerate(counts)]
    weights = [rows(100 + rank, sum(counts)) for rank in range(world.world)]
    gathered = world.gather_rows(locals_[world.rank], counts)
    found = torch.autograd.grad((weights[world.rank] * gathered**2).sum(), locals_[world.rank])[0]
    whole = torch.cat(locals_)
    loss = sum((weight * whole**2).sum() for weight in weights)
    expected = torch.autograd.grad(loss, locals_)[world.rank]
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    return torch.equal(gathered, whole), error


def memory_check(world: Distributed) -> tuple[bool, bool]:
    """Whether memories fed from a gather are equal everywhere, and a differing one is noticed."""
    memory = CrossBatchMemory(3, 5, 3, dtype=torch.float64)
    counts = tuple(range(1, world.world + 1))
    for step in range(4):
        local = rows(10 * step + world.rank, counts[world.rank])
        memory.push(world.gather_rows(local, counts)[:5], torch.arange(5)[: sum(counts)], step)
    equal = world.same(memory.fingerprint())
    if world.rank == 1:
        memory.push(rows(0, 1), torch.tensor([0]), 9)
    return equal, world.same(memory.fingerprint())


def beside_nccl(world: Distributed) -> tuple[bool, list[float], list[int]]:
    """Flags and objects over a second group, as when tensors go over NCCL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "get_backend", lambda: "nccl")
        beside = Distributed.adopt("cpu", timeout_s=60)
    separate = beside._control is not None and beside._control is not torch.distributed.group.WORLD
    return separate, beside.agree([world.rank]), beside.gather_objects(world.rank)


def all_checks(world: Distributed) -> dict[str, object]:
    total = torch.full((2,), float(world.rank + 1))
    with torch.no_grad():
        classes = world.gather_rows(torch.full((world.rank,), world.rank), range(world.world))
    return {
        "rank": (world.rank, world.world, world.device.type, world.backend),
        "threads": torch.get_num_threads(),
        "gather": [gather_check(world, counts) for counts in COUNTS[world.world]],
        "gather_int": classes.tolist(),
        "agree": world.agree([float(world.rank), -float(world.rank), 0.0]),
        "agree_nan": world.agree([float("nan") if world.rank == 1 else 0.0]),
        "same": (world.same("a"), world.same(f"{world.rank}"), world.same("")),
        "objects": world.gather_objects({"rank": world.rank}),
        "broadcast": world.broadcast_object(f"from {world.rank}", source=1),
        "sum": (world.all_reduce_sum(total) is total, total.tolist()),
        "memory": memory_check(world),
        "beside_nccl": beside_nccl(world),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_collectives_do_what_they_say_in_every_rank(size):
    results = launch(all_checks, size, timeout_s=60)
    for rank, found in enumerate(results):
        assert found["rank"] == (rank, size, "cpu", "gloo")
        assert found["threads"] == 1
        assert all(equal and error <= 1e-14 for equal, error in found["gather"])
        assert found["gather_int"] == [r for r in range(size) for _ in range(r)]
        assert found["agree"] == [size - 1, 0, 0]
        assert found["agree_nan"] == [float("inf")]
        assert found["same"] == (True, False, True)
        assert found["objects"] == [{"rank": r} for r in range(size)]
        assert found["broadcast"] == "from 1"
        assert found["sum"] == (True, [size * (size + 1) / 2] * 2)
        assert found["memory"] == (True, False)
        assert found["beside_nccl"] == (True, [size - 1], list(range(size)))


def test_a_single_process_needs_no_process_group():
    world = Distributed.single()
    local = torch.randn(3, 2, requires_grad=True)
    assert world.gather_rows(local, [3]) is local
    assert world.agree([1.5, float("nan")]) == [1.5, float("inf")]
    assert world.same("x")
    assert world.gather_objects("x") == ["x"]
    assert world.broadcast_object("x") == "x"
    assert world.all_reduce_sum(local) is local
    module = torch.nn.Linear(2, 2)
    assert world.wrap(module) is module
    world.close()


def test_rows_that_are_not_the_plans_are_refused():
    with pytest.raises(ValueError, match=r"rank 0 of 1 has 3 rows; the plan says \[2\]"):
        Distributed.single().gather_rows(torch.zeros(3, 2), [2])


def test_one_launched_process_is_a_single_one():
    assert launch(describe, 1, "x") == [("x", "none", 1)]


def describe(world: Distributed, text: str) -> tuple[str, str, int]:
    return text, world.backend, world.world


class AwkwardError(Exception):
    """Cannot be unpickled: it needs two arguments and passes on one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def fail(world: Distributed, how: str) -> None:
    """Rank 1 leaves in some way while rank 0 waits for it in a collective."""
    if world.rank == 1:
        if how == "user error":
            raise DataError("label 7 is not in [0, 5)")
        if how == "awkward error":
            raise AwkwardError("a", "b")
        if how == "dies":
            os._exit(3)
        return
    world.agree([0.0])


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("user error", DataError, "label 7"),
        ("awkward error", ClusterError, "AwkwardError: ab"),
        ("dies", ClusterError, "rank 1 ended with exit code 3"),
    ],
)
def test_launch_raises_what_the_first_failing_rank_raised(how, error, text):
    with pytest.raises(error, match=text) as caught:
        launch(fail, 2, how, timeout_s=60)
    if how != "dies":
        (note,) = caught.value.__notes__
        assert note.startswith("in rank 1:\nTraceback")


def stay_away(world: Distributed) -> None:
    """For longer than the others wait; the launch's own limit holds for their start, too."""
    if world.rank == 1:
        time.sleep(60)
    waiting = world.limited(1.0)
    with waiting.names_the_lost():
        waiting.agree([1.0])


def test_a_rank_that_stays_away_makes_the_others_fail_in_time():
    with pytest.raises(LostRankError, match=r"^rank 1 .* did not come within 1 s") as caught:
        launch(stay_away, 2, timeout_s=60)
    assert "Timed out" in str(caught.value.__notes__)


TORCHRUN_SCRIPT = """
import sys, torch
from service.distributed import Distributed
world = Distributed.from_environment(timeout_s=60)
total = world.all_reduce_sum(torch.ones(1)).item()
adopted = Distributed.adopt("cpu")
adopted.close()
assert adopted.agree([world.rank])[0] == 1.0
world.close()
open(f"{sys.argv[1]}/{world.rank}", "w").write(f"{total} {adopted.rank} {adopted.backend}")
"""


def test_torchrun_starts_the_same_world_which_can_be_adopted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*command, str(script), str(tmp_path)], env=env, check=True, timeout=120)
    assert [Path(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [
        "2.0 0 gloo",
        "2.0 1 gloo",
    ]


def test_an_environment_without_a_world_is_a_single_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Distributed.from_environment().world == 1


def test_half_an_environment_is_refused_with_the_missing_names(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClusterError, match="RANK, MASTER_ADDR, MASTER_PORT"):
        Distributed.from_environment()


def test_adopting_nothing_is_refused():
    with pytest.raises(ClusterError, match="no process group"):
        Distributed.adopt("cpu")
