"""A split's rows as columns for the doctor's looks."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.data.records import Records
from service.doctor.check import spread
from service.modality import Modality

MAX_ROWS = 200_000
"""Rows of a split whose names and hashes are read; of a larger split as many, evenly spread."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Columns of a split's rows, or of as many as are read of it.

    row: int64 [n], their numbers. class_index, label: int [n]. modality: int8 [n].
    """

    row: np.ndarray
    class_index: np.ndarray
    label: np.ndarray
    modality: np.ndarray
    dir_id: list[str]
    caption: list[str]
    sha256: list[bytes]

    @classmethod
    def of(cls, records: Records, limit: int = MAX_ROWS) -> "Rows":
        row = spread(records.num_rows, limit)
        numbers = row.tolist()
        return cls(
            row=row,
            class_index=np.asarray(records.class_index[row]),
            label=np.asarray(records.label[row]),
            modality=np.asarray(records.modality[row]),
            dir_id=[records.dir_id(r) for r in numbers],
            caption=[records.caption(r) for r in numbers],
            sha256=[records.sha256(r) for r in numbers],
        )

    @property
    def is_image(self) -> np.ndarray:
        return self.modality != Modality.TEXT


def groups(values: Iterable[Hashable]) -> dict[Any, list[int]]:
    """Positions of each value, in order."""
    found: dict[Any, list[int]] = defaultdict(list)
    for at, value in enumerate(values):
        found[value].append(at)
    return found
