"""What a doctor's command finds: checks and tables as values, and the exit code they mean."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from service.causes import WORDS, Cause
from service.errors import ExitCode


class Status(StrEnum):
    """ok: as it should be. warn: worth a look, a run can go on. fail: a run would go wrong."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    found: in words, with its numbers. expected, remedy: empty when the status is ok.
    cause: what a verdict would call it, where there is a name for it.
    """

    name: str
    status: Status
    found: str
    expected: str = ""
    remedy: str = ""
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers behind the checks; cells are shown as they are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What one command found out about `subject`.

    notes: lines that are no check. closing: the last line; empty has the checks counted.
    code: an exit code that says more than the checks, such as a verdict's; None leaves it to them.
    """

    subject: str
    checks: tuple[Check, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    closing: str = ""
    code: int | None = None

    @property
    def failed(self) -> bool:
        return any(check.status is Status.FAIL for check in self.checks)

    @property
    def exit_code(self) -> int:
        if self.code is not None:
            return self.code
        return int(ExitCode.NO_GO if self.failed else ExitCode.OK)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = asdict(self)
        values.pop("code")
        return {**values, "failed": self.failed, "exit_code": self.exit_code}


def judged(
    name: str,
    good: bool,
    found: str,
    expected: str,
    remedy: str = "",
    *,
    cause: Cause | None = None,
    otherwise: Status = Status.FAIL,
) -> Check:
    """A check that is ok when `good`, else `otherwise`, with the cause's own remedy if none is
    given."""
    if good:
        return Check(name, Status.OK, found)
    if not remedy and cause is not None:
        remedy = WORDS[cause][1]
    return Check(name, otherwise, found, expected, remedy, cause)


def spread(number: int, limit: int) -> np.ndarray:
    """At most `limit` of the positions 0..number-1, evenly spread: int64."""
    if number <= limit:
        return np.arange(number)
    return np.linspace(0, number - 1, limit).astype(np.int64)


def listed(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, and how many more there are."""
    every = [str(item) for item in items]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
