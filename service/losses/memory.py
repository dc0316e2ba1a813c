"""Cross-batch memory: the VIS rows of the last steps, as extra gallery columns for SDM.

It holds what the step has gathered anyway, so it needs no collective of its own and is equal on
all ranks as long as all push alike; `fingerprint()` proves it.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from service.errors import CheckpointError

UNFILLED = -1
"""Class of a slot row that holds nothing."""


class _Held(NamedTuple):
    """What is known on the host about a filled slot; classes: int64 [n] on the CPU."""

    step: int
    classes: Tensor


class CrossBatchMemory:
    """A ring of `steps` slots with `rows_per_step` rows each, in (step, rank, row) order.

    A plain object: no parameters, no buffers, nothing that DDP or an optimiser could touch. Its
    tensors are allocated once, never require gradients and keep no graph.

    One step uses it so: `view()` for the loss, backward, then `push()` of the same step's rows.
    A row is thus never its own gallery column, and meets the loss from the next step on. All ranks
    push the same rows, or (after a skipped step) none.
    """

    def __init__(
        self,
        steps: int,
        rows_per_step: int,
        dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocates steps * rows_per_step * dim values on `device`.

        rows_per_step: the most rows that one push may bring (global VIS rows of a batch).

        Raises:
            ValueError: a size below 1.
        """
        if min(steps, rows_per_step, dim) < 1:
            raise ValueError(
                f"a memory needs at least one step, row and dimension; found steps={steps}, "
                f"rows_per_step={rows_per_step}, dim={dim}"
            )
        self.steps = steps
        self.rows_per_step = rows_per_step
        self.dim = dim
        self._features = torch.zeros(steps, rows_per_step, dim, device=device, dtype=dtype)
        self._class = torch.full((steps, rows_per_step), UNFILLED, device=device, dtype=torch.int64)
        self._held: dict[int, _Held] = {}
        self._cursor = 0

    @property
    def slots(self) -> int:
        """Steps held now, at most `steps`."""
        return len(self._held)

    @property
    def rows(self) -> int:
        """Rows held now."""
        return sum(len(held.classes) for held in self._held.values())

    def held_classes(self) -> Tensor:
        """Class of every held row, int64 [rows] on the CPU, oldest first; never waits."""
        classes = [self._held[slot].classes for slot in self._oldest_first()]
        return torch.cat(classes) if classes else torch.empty(0, dtype=torch.int64)

    def ages(self, step: int) -> list[int]:
        """Age in steps of each slot seen from `step`, oldest first."""
        return [step - self._held[slot].step for slot in self._oldest_first()]

    @torch.no_grad()
    def push(self, features: Tensor, class_index: Tensor, step: int) -> None:
        """Keep this step's rows, over the oldest step once all slots are used.

        features: [n, dim], n <= rows_per_step; copied and detached. n = 0 is a step without rows.
        class_index: int64 [n], on the CPU as the step's layout has it; a device tensor works, but
            the host then waits for the device.
        step: the batch's number; must rise from push to push, so that no batch is kept twice.

        Call it after backward; pushing between the loss and its backward makes backward raise.

        Raises:
            ValueError: too many rows, other shapes, or a step that does not rise.
        """
        n = features.shape[0]
        if features.shape != (n, self.dim) or class_index.shape != (n,) or n > self.rows_per_step:
            raise ValueError(
                f"cannot keep features {tuple(features.shape)} with classes "
                f"{tuple(class_index.shape)}; expected [n, {self.dim}] and [n] with "
                f"n <= rows_per_step={self.rows_per_step}"
            )
        newest = max((held.step for held in self._held.values()), default=None)
        if newest is not None and step <= newest:
            raise ValueError(f"step {step} is pushed after step {newest}; steps must rise")
        slot, classes = self._cursor, class_index.to("cpu", torch.int64, copy=True)
        self._features[slot, :n].copy_(features)
        self._features[slot, n:].zero_()
        self._class[slot, :n].copy_(classes, non_blocking=True)
        self._class[slot, n:].fill_(UNFILLED)
        self._held[slot] = _Held(step, classes)
        self._cursor = (slot + 1) % self.steps

    def view(self) -> tuple[Tensor, Tensor]:
        """The filled slots as gallery columns, without copying.

        Returns features [slots * rows_per_step, dim] and class_index int64 of that length, where
        UNFILLED (-1) marks rows that a short step left empty. Later pushes change both in place.
        Columns are in slot order, so a restored memory gives bit-identical losses.
        """
        filled = self.slots
        return self._features[:filled].flatten(0, 1), self._class[:filled].flatten()

    def flush(self) -> None:
        """Forget everything, as after construction."""
        self._features.zero_()
        self._class.fill_(UNFILLED)
        self._held, self._cursor = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """A copy of the filled slots: tensors, ints and lists of ints, slot by slot."""
        held = [self._held[slot] for slot in range(self.slots)]
        return {
            "steps": self.steps,
            "cursor": self._cursor,
            "stamps": [slot.step for slot in held],
            "counts": [len(slot.classes) for slot in held],
            "features": self._features[: self.slots].clone(),
            "class_index": self._class[: self.slots].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved memory; the following losses equal those of the saved one.

        With another `steps` the newest steps that fit are kept; with another `rows_per_step` each
        step's rows are kept together. The world size does not matter: rows are global.

        Raises:
            CheckpointError: rows of another dimension, or a step that has more rows than fit.
                The memory is then as before.
        """
        features, classes = state["features"], state["class_index"].cpu()
        counts, stamps = state["counts"], state["stamps"]
        widest = max(counts, default=0)
        if features.shape[-1] != self.dim or widest > self.rows_per_step:
            raise CheckpointError(
                f"the saved memory has up to {widest} rows a step of dimension "
                f"{features.shape[-1]}; this run holds {self.rows_per_step} of dimension "
                f"{self.dim}. Resume with the run's own model and sampler settings"
            )
        order = sorted(range(len(stamps)), key=stamps.__getitem__)[-self.steps :]
        self.flush()
        if state["steps"] == self.steps and order:
            self._cursor = order[0]
        for slot in order:
            self.push(features[slot, : counts[slot]], classes[slot, : counts[slot]], stamps[slot])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the held features, classes and steps, oldest first.

        Equal on all ranks, or something pushed differently. Copies to the host and waits for the
        device, so call it on a check cadence.
        """
        digest = hashlib.sha256()
        for slot in self._oldest_first():
            n = len(self._held[slot].classes)
            digest.update(f"{self._held[slot].step}:{n};".encode())
            for rows in (self._features[slot, :n], self._class[slot, :n]):
                digest.update(rows.cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _oldest_first(self) -> list[int]:
        return sorted(self._held, key=lambda slot: self._held[slot].step)
