"""All collectives: who this process is among its peers, and everything they do together.

The only module that uses `torch.distributed`. Every method marked *collective* must be called by
all ranks, in the same order. If one rank does not call it, the others wait until the time limit of
the process group and then raise a RuntimeError from the backend, which `names_the_lost` turns into
an error that says who did not come; the run is restarted from its checkpoint. So nothing may leave
the step on one rank alone: first `agree`, then all raise.
"""

import contextlib
import gc
import hashlib
import math
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from service.errors import ClusterError
from service.rollcall import (
    Store,
    backstop_s,
    is_late,
    is_lost_peer,
    lost_ranks,
    name_of_this_process,
)

T = TypeVar("T")

TIMEOUT_S = 600.0
"""Seconds that a rank waits for the others before it gives up."""
TURN_S = 5.0
"""Seconds, at most, after which ranks that wait for something slow hear of each other."""


@dataclass(frozen=True, slots=True)
class Distributed:
    """One process among `world`; made by `single`, `from_environment`, `adopt` or `launch`.

    rank: 0-based. world: number of processes. device: where this rank's tensors live.
    backend: "gloo", "nccl", or "none" for a single process, where every collective is the identity
    and no process group exists.
    """

    rank: int
    world: int
    device: torch.device
    backend: str
    _side: "weakref.ref[dist.ProcessGroup] | None" = None
    """Beside NCCL, a gloo group for flags and objects: they wait for no device. Weak, because
    gloo's threads end with the group object, which must be before the interpreter ends."""
    _owned: bool = False
    _limit_s: float = TIMEOUT_S
    _names: tuple[str, ...] = ()
    """Of the processes behind the ranks."""
    _store: Store | None = None
    """A connection of its own to the ranks' store."""

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> "Distributed":
        """The only process."""
        return cls(0, 1, torch.device(device), "none")

    @classmethod
    def from_environment(cls, timeout_s: float = TIMEOUT_S) -> "Distributed":
        """As torchrun says in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. *Collective*.

        NCCL on this rank's GPU where there are GPUs, gloo on the CPU otherwise. Without WORLD_SIZE,
        or with 1, it is `single`. timeout_s: seconds, > 0, for the start and every collective.

        Raises:
            ClusterError: variables are missing, or the ranks do not find each other in time.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls.single(device)
        missing = [k for k in ("RANK", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
        if missing:
            raise ClusterError(
                f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun, or unset "
                "WORLD_SIZE for a single process"
            )
        return cls.start("nccl" if cuda else "gloo", device, timeout_s)

    @classmethod
    def adopt(cls, device: torch.device | str, timeout_s: float = TIMEOUT_S) -> "Distributed":
        """Join the process group that somebody else, such as Ray Train, has started. *Collective*.

        `close` leaves that group alone. timeout_s: seconds, > 0, for every collective; over NCCL
        tensors keep the limit that the group was started with.

        Raises:
            ClusterError: no process group has been started.
        """
        if not dist.is_initialized():
            raise ClusterError(
                "no process group in this process; expected one from Ray Train. Outside Ray use "
                "torchrun or a single process"
            )
        return cls._of_running_group(torch.device(device), timeout_s, owned=False)

    @classmethod
    def start(
        cls, backend: str, device: torch.device, timeout_s: float, **rendezvous: Any
    ) -> "Distributed":
        """Starts a process group that this object owns. *Collective*.

        rendezvous: as `init_process_group` takes it; none reads torchrun's environment.

        Raises:
            ClusterError: the ranks do not find each other in time.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
            rendezvous["device_id"] = device
        limit_s = backstop_s(timeout_s) if backend == "nccl" else timeout_s
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=limit_s), **rendezvous)
        except (dist.DistError, ValueError) as error:
            raise ClusterError(
                f"the ranks did not find each other: {error}; check that all of them were started "
                "and that MASTER_ADDR and MASTER_PORT can be reached from each"
            ) from error
        return cls._of_running_group(device, timeout_s, owned=True)

    @classmethod
    def _of_running_group(
        cls, device: torch.device, timeout_s: float, owned: bool
    ) -> "Distributed":
        backend, side = dist.get_backend(), None
        if backend != "gloo":
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)
            side = weakref.ref(group)
        store: Any = _default_group().get_group_store().clone()
        here = cls(
            dist.get_rank(), dist.get_world_size(), device, backend, side, owned, _store=store
        ).limited(timeout_s)
        return replace(here, _names=tuple(here.gather_objects(name_of_this_process())))

    def limited(self, timeout_s: float) -> "Distributed":
        """The same, with another time limit for its collectives. Every rank must call it.

        timeout_s: seconds, > 0. Over NCCL it holds for flags and objects, at the next step at the
        latest; NCCL itself aborts the process when its own limit ends, so that stays longer.
        """
        if self.world > 1:
            group = self._control or _default_group()
            group.set_timeout(timedelta(seconds=timeout_s))
        return replace(self, _limit_s=timeout_s)

    @contextlib.contextmanager
    def names_the_lost(self) -> Iterator[None]:
        """Turns the failure of a collective in the block into an error that says who did not come.

        It asks the other ranks, for `patience_s` at most. The process group is of no use any more.

        Raises:
            LostRankError: another rank hangs or has ended.
        """
        try:
            yield
        except Exception as error:
            if self._store is None or not is_lost_peer(error):
                raise
            late, limit_s = is_late(error), self._limit_s
            raise lost_ranks(
                self._store, self.rank, self._names, limit_s=limit_s, late=late
            ) from error

    @property
    def _control(self) -> dist.ProcessGroup | None:
        """The group for flags and objects; None is the default group."""
        return self._side() if self._side is not None else None

    def close(self) -> None:
        """End the process group if this object started it. *Collective*; nothing may follow.

        Drop what `wrap` returned before: it keeps the group's threads alive, and a thread that
        outlives the interpreter aborts the process.
        """
        if self._owned and dist.is_initialized():
            dist.barrier(self._control)
            gc.collect()
            dist.destroy_process_group()

    def gather_rows(self, local: Tensor, counts: Sequence[int]) -> Tensor:
        """All ranks' rows in rank order, with gradient. *Collective*, and so is its backward.

        local: [counts[rank], ...] on `device`; the same trailing shape and dtype on all ranks, and
            requires_grad on all or on none. float64 is exact; cast bfloat16 to float32 before, as
            backward adds the ranks' gradients in this dtype.
        counts: rows of each rank, known to all from the plan. Zeros are fine.

        Returns [sum(counts), ...]. Its gradient with respect to `local` is the sum over all ranks
        of their gradients for these rows. All ranks must run backward through the result, also
        when their own loss is 0. Waits for nothing on the host.

        Raises:
            ValueError: `local` or `counts` do not fit.
        """
        if len(counts) != self.world or local.shape[0] != counts[self.rank]:
            raise ValueError(
                f"rank {self.rank} of {self.world} has {local.shape[0]} rows; the plan says "
                f"{list(counts)} rows by rank"
            )
        if self.world == 1 or max(counts) == 0:
            return local
        return _GatherRows.apply(local, tuple(counts), self.rank)

    @property
    def turn_s(self) -> float:
        """Seconds after which ranks that wait for something slow must hear of each other: well
        within the time limit of a collective."""
        return min(TURN_S, self._limit_s / 4)

    def agree(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all ranks, equal on all ranks. *Collective*.

        values: the same number on each rank; a NaN counts as +inf. One small message between
        hosts that waits for no device: meant for a step's flags (non-finite, stop, error).
        """
        numbers = [math.inf if math.isnan(value) else float(value) for value in values]
        if self.world == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._control)
        return tensor.tolist()

    def same(self, value: str) -> bool:
        """Whether all ranks pass an equal string; all get the same answer. *Collective*."""
        if self.world == 1:
            return True
        digest = torch.tensor(list(hashlib.sha256(value.encode()).digest()), dtype=torch.int64)
        extremes = torch.cat([digest, -digest])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=self._control)
        highest, lowest = extremes.chunk(2)
        return torch.equal(highest, -lowest)

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on all ranks. *Collective*.

        Pickled and sent between hosts: for error texts and summaries, a few times a run.
        """
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._control)
        return found

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """The value that rank `source` passes; the others' values are ignored. *Collective*."""
        if self.world == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, src=source, group=self._control)
        return found[0]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Add up `tensor` over all ranks in place, without gradient, and return it. *Collective*.

        tensor: on `device`, the same shape and dtype on all ranks.
        """
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def wrap(self, module: nn.Module, *, fixed_order: bool = False) -> nn.Module:
        """`module` in DistributedDataParallel, or itself in a single process. *Collective*.

        The wrapped module averages gradients over the ranks, so a rank's loss is
        `world * (its rows' sum) / (global number of rows)`. Every trainable parameter must take
        part in every backward on every rank. Parameters and buffers are rank 0's at the start;
        forward does not sync buffers again, because the neck computes its statistics from globally
        gathered rows, equal everywhere.
        Reach the module itself through the caller's own reference to it, not through the wrapper.

        fixed_order: gradients are added in one order for ever, so that a process that begins at
        some step gives the bits of one that has come there. Otherwise the buckets, and with them
        the order from three ranks on, change after a process's first step; only with
        `find_unused_parameters` they do not. That costs a walk through the graph each step.
        """
        if self.world == 1:
            return module
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            _WithSpare(module) if fixed_order else module,
            device_ids=[self.device] if on_gpu else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=fixed_order,
        )


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


class _WithSpare(nn.Module):
    """`module` with a parameter that nothing uses: where `find_unused_parameters` finds none, DDP
    warns of it on standard error, which no filter of warnings reaches."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.spare = nn.Parameter(next(module.parameters()).new_zeros(1))

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


class _GatherRows(torch.autograd.Function):
    """All-gather of ragged rows; backward is the sum-reduce-scatter that belongs to it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        own = _pad(local, max(counts))
        gathered = own.new_empty(len(counts) * max(counts), *local.shape[1:])
        dist.all_gather_into_tensor(gathered, own)
        blocks = gathered.chunk(len(counts))
        if min(counts) == max(counts):
            return gathered
        return torch.cat([block[:n] for block, n in zip(blocks, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        counts, widest = ctx.counts, max(ctx.counts)
        blocks = [_pad(part, widest) for part in grads[0].split(counts)]
        summed = grads[0].new_empty(widest, *grads[0].shape[1:])
        dist.reduce_scatter_tensor(summed, torch.cat(blocks))
        return summed[: counts[ctx.rank]], None, None


def _pad(rows: Tensor, length: int) -> Tensor:
    """`rows` with zero rows appended up to `length`, contiguous."""
    if rows.shape[0] == length:
        return rows.contiguous()
    padded = rows.new_zeros(length, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    return padded
