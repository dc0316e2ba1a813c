"""Batches for one rank: the plan's rows decoded by threads, in order, a few steps ahead.

    loader = Loader(records, PKPlan(index, config.sampler, seed), seed, rank, world, config.loader)
    for batch in loader.epoch(epoch, start_step):
        ...

There are no worker processes: the JPEG decoder releases the interpreter lock, and threads spare
the copies between processes.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
import simplejpeg
import torch

from service.config import LoaderConfig
from service.data.layout import Batch
from service.data.records import Records
from service.data.sampler import PlanBatch, id_slice
from service.data.shares import Share, fused_members, lay_out, take_share
from service.data.threads import in_order
from service.errors import DataError, LabelRangeError
from service.modality import IMAGE_MODALITIES, Modality


class Plan(Protocol):
    """What the loader asks of a plan, from several threads; `PKPlan` is one."""

    @property
    def steps_per_epoch(self) -> int: ...

    def batch(self, epoch: int, step: int) -> PlanBatch: ...


def decode_rows(
    records: Records, rows: Sequence[int] | np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """The images of some rows: uint8 RGB [n, H, W, 3], written into `out` where given.

    Raises:
        DataError: naming the row and its source, when a row is no image of the records' size.
    """
    shape = (len(rows), *records.image_size, 3)
    block = np.empty(shape, np.uint8) if out is None else out
    for image, row in zip(block, rows, strict=True):
        _decode(records, int(row), image)
    return block


class Loader:
    """One rank's batches.

    records: the train split. plan: the global batches. seed: of the run.
    rank, world: which share is taken; the plan, the seed and the fused queries do not depend on
        them.
    pin_memory: whether images and tokens lie in page-locked memory, for copies to a GPU that do
        not block.
    """

    def __init__(
        self,
        records: Records,
        plan: Plan,
        seed: int,
        rank: int,
        world: int,
        config: LoaderConfig,
        *,
        pin_memory: bool = False,
    ):
        self._records = records
        self._plan = plan
        self._seed = seed
        self._rank, self._world = rank, world
        self._config = config
        self._pin = pin_memory

    @property
    def steps_per_epoch(self) -> int:
        return self._plan.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch in order, from `start_step` (0-based) on.

        Threads run only while the iterator lives; `close()` it to end early, or use it up.

        Raises:
            ValueError: for a `start_step` outside [0, steps_per_epoch].
            DataError: from the iterator, when a row cannot be decoded or a label does not fit.
        """
        num_steps = self._plan.steps_per_epoch
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step {start_step} of an epoch of {num_steps} steps")
        return self._epoch(epoch, start_step)

    def _epoch(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        cursors = ((epoch, step) for step in range(start_step, self._plan.steps_per_epoch))
        config = self._config
        with closing(in_order(self._prepare, cursors, config.threads, config.prefetch)) as batches:
            yield from batches

    def _prepare(self, cursor: tuple[int, int]) -> Batch:
        """Runs in a thread; the plan may be asked from several."""
        epoch, step = cursor
        plan = self._plan.batch(epoch, step)
        _check_labels(self._records, plan, epoch, step)
        shares = self._shares(epoch, step, plan)
        mine = shares[self._rank]
        is_text = mine.kind == Modality.TEXT
        counts = np.bincount(mine.kind, minlength=len(Modality))
        vis, nir, cp, sk = (int(counts[m]) for m in IMAGE_MODALITIES)
        return Batch(
            epoch=epoch,
            step=step,
            images=self._images(mine.row[~is_text]),
            image_counts=(vis, nir, cp, sk),
            tokens=self._tokens(mine.row[is_text]),
            row=mine.row,
            fused=torch.from_numpy(mine.fused),
            layout=lay_out(shares, self._rank),
        )

    def _shares(self, epoch: int, step: int, plan: PlanBatch) -> list[Share]:
        """Every rank's share of the step."""
        modality = self._records.modality[plan.rows]
        num_ids = len(plan.class_index)
        person = np.repeat(np.arange(num_ids), np.diff(plan.starts))
        key = (self._seed, epoch, step)
        members = fused_members(modality, person, plan.class_index, key)
        slices = [id_slice(num_ids, rank, self._world) for rank in range(self._world)]
        return [
            take_share(plan.rows, modality, plan.starts, plan.class_index, members, ids)
            for ids in slices
        ]

    def _images(self, rows: np.ndarray) -> torch.Tensor:
        shape = (len(rows), *self._records.image_size, 3)
        block = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        decode_rows(self._records, rows, block.numpy())
        return block

    def _tokens(self, rows: np.ndarray) -> torch.Tensor:
        tokens = torch.from_numpy(self._records.tokens(rows))
        return tokens.pin_memory() if self._pin else tokens


def _decode(records: Records, row: int, out: np.ndarray) -> None:
    """Decodes one row into `out`, uint8 [H, W, 3]."""
    try:
        shape = simplejpeg.decode_jpeg(records.jpeg(row), "RGB", buffer=out).shape
        if shape != out.shape:
            raise ValueError(f"it has {shape[0]}x{shape[1]} pixels")
    except ValueError as error:
        raise DataError(
            f"row {row} of the {records.split} split ({records.source(row)}) is not an image of "
            f"{out.shape[0]}x{out.shape[1]} pixels: {error}; the records are damaged: ingest the "
            "data set again"
        ) from error


def _check_labels(records: Records, plan: PlanBatch, epoch: int, step: int) -> None:
    """The plan's classes must be in range and those of the records it names."""
    at = f"epoch {epoch}, step {step}"
    low, high = int(plan.class_index.min()), int(plan.class_index.max())
    num_classes = records.num_classes
    if low < 0 or high >= num_classes:
        raise LabelRangeError(
            f"{at}: class indices {low}..{high}, but {num_classes} classes need 0 to "
            f"{num_classes - 1}; the plan was not made from these records"
        )
    planned = np.repeat(plan.class_index, np.diff(plan.starts))
    wrong = np.flatnonzero(records.class_index[plan.rows] != planned)
    if len(wrong):
        row = int(plan.rows[wrong[0]])
        raise DataError(
            f"{at}: the plan takes row {row} ({records.source(row)}) for class "
            f"{planned[wrong[0]]}, the records say {records.class_index[row]}; the plan was not "
            "made from these records"
        )
