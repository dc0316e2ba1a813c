"""DDP gives the gradient of one big process: CE + SDM in both directions, memory, ragged ranks.

Losses are not compared: schemes with wrong gradients have right losses.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.distributed import Distributed
from service.launch import launch
from service.losses.memory import CrossBatchMemory
from service.losses.sdm import CE_FORM, KL_FORM, SdmForm, sdm_rows

pytestmark = pytest.mark.distributed

INPUTS, DIM, CLASSES, STEPS = 6, 8, 5, 3


class Rows(NamedTuple):
    """Rows of one step: inputs [N, INPUTS], class_index [N], is_vis [N]."""

    inputs: Tensor
    class_index: Tensor
    is_vis: Tensor


class Net(nn.Module):
    """A small network whose forward gathers, as the model's does."""

    def __init__(self, world: Distributed) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.world = world
        self.body = nn.Sequential(
            nn.Linear(INPUTS, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, DIM)
        )
        self.head = nn.Linear(DIM, CLASSES, bias=False)
        self.double()

    def forward(self, inputs: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [n, C] and unit rows [n, D] of this rank, unit rows [N, D] of all."""
        rows = self.body(inputs)
        gathered = F.normalize(self.world.gather_rows(rows, counts), dim=1)
        return self.head(rows), F.normalize(rows, dim=1), gathered


def global_rows(step: int, counts: tuple[int, ...]) -> Rows:
    """The same on every rank; class 4 has no VIS and class 3 nothing else: rows without a positive.

    The last rank has no VIS at all, so it has zero rows in one direction.
    """
    n = sum(counts)
    generator = torch.Generator().manual_seed(step)
    class_index = torch.randint(0, CLASSES, (n,), generator=generator)
    is_vis = torch.rand(n, generator=generator) < 0.5
    is_vis[class_index == 4], is_vis[class_index == 3] = False, True
    is_vis[n - counts[-1] :] = False
    inputs = torch.randn(n, INPUTS, generator=generator, dtype=torch.float64)
    return Rows(inputs, class_index, is_vis)


def sdm_direction(local: Tensor, columns: Tensor, local_rows: Rows, rows: Rows, memory, form, vis):
    """Sum of this rank's rows of one direction, and the global number of valid rows.

    vis: whether VIS rows ask (live columns only) or the others do (memory columns too).
    """
    mine, live = local_rows.is_vis == vis, rows.is_vis != vis
    kept, kept_class = (None, None) if vis else memory.view()
    own = sdm_rows(
        local[mine], columns[live], kept,
        local_rows.class_index[mine], rows.class_index[live], kept_class, form,
    )  # fmt: skip
    reachable = rows.class_index[live]
    if kept_class is not None:
        reachable = torch.cat([reachable, kept_class])
    return own.loss.sum(), torch.isin(rows.class_index[~live], reachable).sum(), own.valid.sum()


def run(world: Distributed, ragged: tuple[int, ...], form: SdmForm, scheme: str) -> dict[str, list]:
    """Gradients of three SGD steps, and how many rows were valid where.

    ragged: rows by rank; one process has them all. scheme "own mean" is a wrong one, in which each
    rank takes the mean over its own valid rows.
    """
    counts = ragged if world.world > 1 else (sum(ragged),)
    net = Net(world)
    wrapped = world.wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    memory = CrossBatchMemory(2, sum(counts), DIM, dtype=torch.float64)
    seen: dict[str, list] = {"gradients": [], "valid": [], "hash": []}
    for step in range(STEPS):
        rows = global_rows(step, ragged)
        start = sum(counts[: world.rank])
        mine = Rows(*(t[start : start + counts[world.rank]] for t in rows))
        logits, local, gathered = wrapped(mine.inputs, counts)
        ce = F.cross_entropy(logits, mine.class_index, reduction="sum") / len(rows.inputs)
        sdm = torch.zeros((), dtype=torch.float64)
        for vis in (False, True):
            total, valid, own_valid = sdm_direction(local, gathered, mine, rows, memory, form, vis)
            if scheme == "own mean":
                sdm = sdm + total / (own_valid.clamp_min(1) * world.world)
            else:
                sdm = sdm + total / valid
            seen["valid"].append((int(valid), int(own_valid)))
        optimizer.zero_grad()
        (world.world * (ce + 0.5 * sdm)).backward()
        memory.push(gathered[rows.is_vis], rows.class_index[rows.is_vis], step)
        seen["gradients"].append([p.grad.clone() for p in net.parameters()])
        seen["hash"].append(world.same(memory.fingerprint()))
        optimizer.step()
    return seen


COUNTS = {2: (11, 6), 3: (9, 5, 4)}


def every_scheme(world: Distributed) -> dict[str, dict[str, list]]:
    counts = COUNTS[world.world]
    return {
        "ce": run(world, counts, CE_FORM, "ours"),
        "kl": run(world, counts, KL_FORM, "ours"),
        "own mean": run(world, counts, CE_FORM, "own mean"),
    }


def relative_error(found: dict[str, list], expected: dict[str, list]) -> float:
    """The largest over steps and parameters, relative to the parameter's largest gradient."""
    return max(
        ((a - b).abs().max() / b.abs().max()).item()
        for step_found, step_expected in zip(found["gradients"], expected["gradients"], strict=True)
        for a, b in zip(step_found, step_expected, strict=True)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_equal_those_of_one_process_with_the_whole_batch(size):
    ranks = launch(every_scheme, size, timeout_s=60)
    single, ragged = Distributed.single(), COUNTS[size]
    for form in (CE_FORM, KL_FORM):
        expected = run(single, ragged, form, "ours")
        for found in ranks:
            assert relative_error(found[form.name], expected) <= 1e-12
            assert all(found[form.name]["hash"])
    wrong = relative_error(ranks[0]["own mean"], run(single, ragged, CE_FORM, "ours"))
    assert wrong > 1e-3
    for direction in range(2 * STEPS):
        (total, *others), own = zip(
            *(rank["ce"]["valid"][direction] for rank in ranks), strict=True
        )
        assert set(others) == {total}
        assert sum(own) == total
        assert 0 < total < sum(COUNTS[size])
    assert any(own == 0 for rank in ranks for _, own in rank["ce"]["valid"])
