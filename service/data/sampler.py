"""The strict PK plan: which rows form the global batch of every step, as a pure function.

A batch is P identities, each giving K of its rows, at least one VIS and one of another modality.
An identity's rows of an epoch are dealt into chunks of K; the chunks of all identities are laid
into steps so that no identity comes twice in a step. The plan depends on the data, the settings,
the seed, the epoch and the step, and on nothing else: a world of any size takes slices of it.
"""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.config import SamplerConfig
from service.data.chunks import deal
from service.data.index import IdentityIndex, named
from service.data.packing import (
    Ints,
    fair_shares,
    permutation,
    shuffled_segments,
    timetable,
    words,
)
from service.errors import SamplerError
from service.modality import Modality

PAIRABLE_WARNING = 0.8
"""Below this share of pairable identities the stats carry a warning."""

_INSPECT = "see which with `crossreid data inspect`"
_ROWS, _ORDER, _EXTRA, _TURN = range(4)


@dataclass(frozen=True, slots=True)
class PlanBatch:
    """One global batch: identity after identity, VIS rows first inside each.

    rows: int64 [n], distinct record rows.
    starts: int64 [P + 1]; rows of identity i are `rows[starts[i]:starts[i + 1]]`.
    class_index: int64 [P], distinct.
    """

    rows: Ints
    starts: Ints
    class_index: Ints


@dataclass(frozen=True, slots=True)
class SamplerStats:
    """What the plan found in the data and makes of it; counts of identities (ids) and rows."""

    num_ids: int
    pairable_ids: int
    soft_ids: int
    """Unpairable ids that are drawn all the same."""
    ragged_ids: int
    """Drawn ids with fewer than K rows, which give all they have."""
    excluded_ids: int
    """Ids with fewer than K rows that are left out."""
    usable_rows: int
    """Rows of the drawn ids; each is seen in every epoch."""
    unusable_rows: int
    ids_asked: int
    ids_per_batch: int
    """P as planned; below `ids_asked` only with on_unpairable: lower_p."""
    rows_per_id: int
    steps_per_epoch: int
    rows_per_epoch: int
    """Expected rows of an epoch; ragged ids make it vary by a few."""

    @property
    def unpairable_ids(self) -> int:
        return self.num_ids - self.pairable_ids

    @property
    def pairable_rate(self) -> float:
        return self.pairable_ids / self.num_ids

    @property
    def inflation(self) -> float:
        """Steps an epoch over the steps that showing each usable row once would take."""
        per_step = self.ids_per_batch * self.rows_per_id
        return self.steps_per_epoch * per_step / self.usable_rows

    @property
    def warning(self) -> str | None:
        if self.pairable_rate >= PAIRABLE_WARNING:
            return None
        return (
            f"only {self.pairable_rate:.1%} of {self.num_ids} ids have VIS and another modality "
            f"(expected {PAIRABLE_WARNING:.0%} or more); {_INSPECT}"
        )

    def text(self) -> str:
        """The stats as one line, which ends with the warning if there is one."""
        left_out = self.unpairable_ids - self.soft_ids + self.excluded_ids
        parts = [
            f"{self.num_ids} ids, pairable rate {self.pairable_rate:.3f}",
            f"{left_out} ids ({self.unusable_rows} rows) not drawn",
            f"{self.soft_ids} unpaired",
            f"{self.ragged_ids} with fewer than {self.rows_per_id} rows",
            f"P={self.ids_per_batch}"
            + (f" (asked {self.ids_asked})" if self.ids_per_batch < self.ids_asked else ""),
            f"{self.steps_per_epoch} steps an epoch, {self.inflation:.2f}x the least",
        ]
        return "; ".join(parts + ([f"warning: {self.warning}"] if self.warning else []))


def id_slice(num_ids: int, rank: int, world: int) -> slice:
    """The identities of a global batch that belong to `rank`: contiguous, even to within one."""
    return slice(rank * num_ids // world, (rank + 1) * num_ids // world)


@dataclass(frozen=True, eq=False, slots=True)
class _Epoch:
    """One epoch's draw. rows: int32 [N], the index's order, shuffled in each group;
    ids, chunk: int32 [T, P]; lead: int64 [U, G]."""

    rows: NDArray[np.int32]
    ids: NDArray[np.int32]
    chunk: NDArray[np.int32]
    lead: Ints


class PKPlan:
    """The batches of every epoch.

    For every seed and epoch, over the ids that the policies admit:
      * each batch has exactly `ids_per_batch` distinct ids, and distinct rows;
      * each id gives min(K, its rows) rows, at least one VIS and one other (soft ids apart);
      * every row of every admitted id is seen at least once an epoch;
      * an epoch has exactly `steps_per_epoch` batches.

    `batch` may be called from several threads. Any (epoch, step) can be asked for at any time; the
    draws of the last two epochs asked for are kept, at about 4 bytes a record and 8 a chunk each.

    Raises:
        SamplerError: at construction, if the ids cannot fill the batches.
    """

    def __init__(self, index: IdentityIndex, config: SamplerConfig, seed: int) -> None:
        self._index = index
        self._config = config
        self._seed = seed
        paired, soft, excluded = _admitted(index, config)
        self._classes = np.concatenate((paired, soft))
        self._num_paired = len(paired)
        self.ids_per_batch, self._soft_lanes = _lanes(index, config, len(paired), len(soft))
        counts = index.counts[self._classes].astype(np.int64)
        first = index.offsets[:-1].reshape(index.num_classes, -1)[self._classes].astype(np.int64)
        self._chunks = deal(counts, first, config)
        self._needed = self._chunks.needed
        self.steps_per_epoch = self._least_steps()
        self._sure, self._left, self._open = self._filling()
        self.stats = self._stats(counts.sum(axis=1), len(soft), excluded)
        self._lock = threading.Lock()
        self._epochs: dict[int, _Epoch] = {}

    def batch(self, epoch: int, step: int) -> PlanBatch:
        """The global batch of a 1-based epoch and a 0-based step inside it."""
        if epoch < 1 or not 0 <= step < self.steps_per_epoch:
            raise IndexError(
                f"no batch at epoch {epoch}, step {step}; epochs start at 1 and steps are in "
                f"[0, {self.steps_per_epoch})"
            )
        drawn = self._epoch(epoch)
        chunks, ids = self._chunks, drawn.ids[step]
        rate, turns, size = chunks.rate[ids], chunks.turns[ids], chunks.size[ids].ravel()
        reached = rate * drawn.chunk[step][:, None] + drawn.lead[ids]
        first = reached // turns
        counts = (reached + rate) // turns - first
        group = np.repeat(np.arange(counts.size, dtype=np.int64), counts.ravel())
        ends = np.cumsum(counts.ravel())
        position = np.arange(len(group)) + (first.ravel() - ends + counts.ravel())[group]
        position %= size[group]
        position += chunks.base[ids].ravel()[group]
        starts = np.zeros(len(ids) + 1, np.int64)
        starts[1:] = ends[counts.shape[1] - 1 :: counts.shape[1]]
        return PlanBatch(drawn.rows[position].astype(np.int64), starts, self._classes[ids])

    @property
    def drawn(self) -> Ints:
        """The classes that any batch can hold, rising: those between which a run has to choose."""
        return np.sort(self._classes)

    @property
    def max_vis_rows(self) -> int:
        """The most VIS rows that a global batch can hold, which is the size of a memory slot."""
        vis = self._chunks.rate[:, Modality.VIS]
        soft = np.sort(vis[self._num_paired :])[::-1][: self._soft_lanes]
        return int(np.sort(np.append(vis[: self._num_paired], soft))[-self.ids_per_batch :].sum())

    def check_world(self, world: int) -> None:
        """Refuses a world of which some rank would have no identity or too many rows.

        Raises:
            SamplerError: naming the numbers and the worlds that fit.
        """
        num_ids, limit = self.ids_per_batch, self._config.max_rows_per_rank
        if world > num_ids:
            raise SamplerError(
                f"{world} workers share P={num_ids} identities a batch, so some would have none; "
                f"use at most {num_ids} workers or raise sampler.ids_per_batch"
            )
        rows = -(-num_ids // world) * self._config.rows_per_id
        if limit is None or rows <= limit:
            return
        ids_that_fit = limit // self._config.rows_per_id
        hint = f"use at least {-(-num_ids // ids_that_fit)} workers, " if ids_that_fit else ""
        raise SamplerError(
            f"{world} workers would hold up to {rows} rows each of P={num_ids} x "
            f"K={self._config.rows_per_id}; sampler.max_rows_per_rank is {limit}; {hint}"
            "lower sampler.ids_per_batch or raise the limit"
        )

    def _least_steps(self) -> int:
        """Steps that hold every needed chunk, at most one of an id in each."""
        soft_chunks = int(self._needed[self._num_paired :].sum())
        return max(
            -(-int(self._needed.sum()) // self.ids_per_batch),
            int(self._needed.max()),
            -(-soft_chunks // self._soft_lanes) if soft_chunks else 0,
        )

    def _filling(self) -> tuple[Ints, int, NDArray[np.bool_]]:
        """Extra chunks that fill the last cells: pairable ids first, soft ids when those are full.

        Returns: extra chunks for sure [U]; ids that get one more, drawn anew each epoch; the
            candidates [U].
        """
        room = self.steps_per_epoch - self._needed
        slack = self.steps_per_epoch * self.ids_per_batch - int(self._needed.sum())
        paired, soft = room[: self._num_paired], room[self._num_paired :]
        for_paired = min(slack, int(paired.sum()))
        sure, left, candidates = fair_shares(paired, for_paired)
        soft_sure, soft_left, soft_candidates = fair_shares(soft, slack - for_paired)
        return (
            np.concatenate((sure, soft_sure)),
            left + soft_left,
            np.concatenate((candidates & (left > 0), soft_candidates & (soft_left > 0))),
        )

    def _stats(self, rows: Ints, num_soft: int, excluded: int) -> SamplerStats:
        index, num_rows = self._index, self._config.rows_per_id
        given = np.minimum(rows, num_rows)
        expected = float(((self._needed + self._sure) * given).sum())
        if self._left:
            expected += self._left * float(given[self._open].mean())
        return SamplerStats(
            num_ids=index.num_classes,
            pairable_ids=int(index.pairable.sum()),
            soft_ids=num_soft,
            ragged_ids=int((rows < num_rows).sum()),
            excluded_ids=excluded,
            usable_rows=int(rows.sum()),
            unusable_rows=index.num_rows - int(rows.sum()),
            ids_asked=self._config.ids_per_batch,
            ids_per_batch=self.ids_per_batch,
            rows_per_id=num_rows,
            steps_per_epoch=self.steps_per_epoch,
            rows_per_epoch=round(expected),
        )

    def _epoch(self, epoch: int) -> _Epoch:
        found = self._epochs.get(epoch)
        if found is not None:
            return found
        with self._lock:
            if epoch not in self._epochs:
                drawn = self._draw(epoch)
                for old in list(self._epochs)[:-1]:
                    del self._epochs[old]
                self._epochs[epoch] = drawn
            return self._epochs[epoch]

    def _draw(self, epoch: int) -> _Epoch:
        groups = self._chunks.size.shape[1]
        first = self._index.offsets[:-1].reshape(self._index.num_classes, -1)[:, :groups].ravel()
        starts = np.append(first, self._index.num_rows)
        shuffled = shuffled_segments(words(self._seed, epoch, _ROWS), starts)
        order, num_paired = words(self._seed, epoch, _ORDER), self._num_paired
        jobs = permutation(order, num_paired)
        if len(self._classes) > num_paired:
            soft = num_paired + permutation(order, len(self._classes) - num_paired)
            jobs = np.concatenate((jobs, soft))
        ids, chunk = timetable(
            order, jobs, self._lengths(epoch), self.steps_per_epoch, self.ids_per_batch
        )
        lead = self._chunks.lead(words(self._seed, epoch, _TURN))
        return _Epoch(self._index.order[shuffled], ids, chunk, lead)

    def _lengths(self, epoch: int) -> Ints:
        length = self._needed + self._sure
        if self._left:
            candidates = np.flatnonzero(self._open)
            drawn = permutation(words(self._seed, epoch, _EXTRA), len(candidates))
            length[candidates[drawn[: self._left]]] += 1
        return length


def _admitted(index: IdentityIndex, config: SamplerConfig) -> tuple[Ints, Ints, int]:
    """The pairable and the soft classes that are drawn, and how many few-row ids are left out."""
    paired, soft = np.flatnonzero(index.pairable), np.flatnonzero(~index.pairable)
    if config.on_unpairable == "error" and len(soft):
        raise SamplerError(
            f"{len(soft)} of {index.num_classes} ids lack VIS or any other modality: class "
            f"indices {named(soft)}; sampler.on_unpairable: error admits none ({_INSPECT})"
        )
    if config.on_unpairable != "soft":
        soft = soft[:0]
    few = index.counts.sum(axis=1) < config.rows_per_id
    if config.on_few_rows == "ragged" or not (few[paired].any() or few[soft].any()):
        return paired, soft, 0
    found = np.sort(np.concatenate((paired[few[paired]], soft[few[soft]])))
    if config.on_few_rows == "error":
        raise SamplerError(
            f"{len(found)} of {index.num_classes} ids have fewer than K={config.rows_per_id} rows: "
            f"class indices {named(found)}; sampler.on_few_rows: error admits none; lower "
            f"sampler.rows_per_id or choose ragged or exclude ({_INSPECT})"
        )
    return paired[~few[paired]], soft[~few[soft]], len(found)


def _lanes(
    index: IdentityIndex, config: SamplerConfig, num_paired: int, num_soft: int
) -> tuple[int, int]:
    """P, and how many of a batch's ids may be soft; refuses what the ids cannot fill."""
    num_ids = config.ids_per_batch
    if not num_paired:
        raise SamplerError(
            f"none of the {index.num_classes} ids can be drawn: each needs a VIS row, a row of "
            f"another modality and, unless on_few_rows is ragged, K={config.rows_per_id} rows "
            f"({_INSPECT})"
        )
    if config.on_unpairable == "lower_p":
        return min(num_ids, num_paired), 0
    soft_lanes = int(config.soft_share * num_ids + 1e-9) if num_soft else 0
    if num_soft and not soft_lanes:
        raise SamplerError(
            f"sampler.soft_share={config.soft_share} of P={num_ids} is less than one identity, "
            f"but {num_soft} ids cannot pair; raise it to at least {1 / num_ids:.3f} or set "
            "sampler.on_unpairable: replace"
        )
    if num_paired >= num_ids - soft_lanes and num_paired + num_soft >= num_ids:
        return num_ids, soft_lanes
    least = f"{num_ids - soft_lanes} pairable and {num_ids} in all" if soft_lanes else str(num_ids)
    raise SamplerError(
        f"P={num_ids} needs {least} ids with VIS, another modality and enough rows; found "
        f"{num_paired} pairable and {num_soft} unpairable ones admitted of {index.num_classes} "
        f"ids; lower sampler.ids_per_batch or set sampler.on_unpairable: lower_p ({_INSPECT})"
    )
