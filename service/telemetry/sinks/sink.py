"""What goes to TensorBoard, MLflow and Weights & Biases, and what each of them must be able to do.

A *sink* is one run over there, and shows one trial here. A *place* is where such runs are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

Setting = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of one step by tag, as in `health/ce`. time: Unix seconds."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Text:
    """Words of one step. kind: the journal's event. facts: what holds from now on, as verdict and
    cause. time: Unix seconds."""

    step: int
    time: float
    kind: str
    words: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


Entry = Numbers | Text


@dataclass(frozen=True, slots=True)
class Subject:
    """The trial that a sink shows.

    group: the sweep's id, or the run's own. trial: its id in the sweep, empty for a plain run.
    folder: its run folder. attempt: the newest; at 1 it was never continued. settings: its config
    by dotted name. began: Unix time of its first line.
    """

    group: str
    trial: str
    folder: Path
    attempt: int
    settings: Mapping[str, Setting]
    began: float

    @property
    def name(self) -> str:
        """The trial's or the run's id, with the number of its attempt from the second on."""
        name = self.trial or self.group
        return name if self.attempt == 1 else f"{name} attempt {self.attempt}"


class Status(StrEnum):
    """How the trial ended. SUPERSEDED: part of what the sink shows was trained again, and another
    one shows the trial now."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    SUPERSEDED = "SUPERSEDED"


class Sink(Protocol):
    """Any of its methods but `put` may wait for a server, and raise whatever goes wrong."""

    @property
    def where(self) -> str:
        """Where a person finds it."""
        ...

    @property
    def changed(self) -> Mapping[str, int]:
        """What could not be kept as it was, in words, and how often."""
        ...

    def put(self, entry: Entry) -> None:
        """Takes an entry for the next `flush`."""
        ...

    def flush(self) -> None:
        """Sends what was put; what cannot be sent is kept for the next call."""
        ...

    def close(self, status: Status) -> None:
        """Ends it over there, after the last `flush`."""
        ...


class Place(Protocol):
    def open(self, subject: Subject) -> Sink:
        """A new, empty sink that takes the place of older ones for the same subject."""
        ...


def flat(values: Mapping[str, object], joint: str) -> dict[str, object]:
    """Nested values by their names, put together with `joint`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = flat(value, joint)
            found |= {f"{name}{joint}{key}": each for key, each in inner.items()}
        else:
            found[name] = value
    return found
