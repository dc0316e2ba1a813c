"""What the training loop tells the outside and asks of it; the defaults do nothing."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from service.decisions import Directive


def _ignore(*_: Any) -> None:
    return None


def _nobody() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Ports:
    """How a run is watched and steered.

    report: called by every rank at each report step with {step, epoch, health, decision, directive,
        finished}; it may be a barrier.
    poll: rank 0, every step, must not block; gets the number of the last directive applied and
        returns a newer one, or None.
    progress: rank 0, every step: step, total steps, and the newest health lines.
    event: rank 0, every journal line as it is written.
    leaving: called by every rank when rank 0 asks for it, some seconds apart; it may be a barrier.
        Says which machines will be taken away soon, or what else will end these processes; empty
        while nothing will: the run saves once for each new answer, and trains on.
    decides: False when a scheduler outside decides and the loop only obeys directives.
    """

    report: Callable[[dict[str, Any]], None] = _ignore
    poll: Callable[[int], Directive | None] = _ignore
    progress: Callable[[int, int, dict[str, Any]], None] = _ignore
    event: Callable[[dict[str, Any]], None] = _ignore
    leaving: Callable[[], str] = _nobody
    leaving_every_s: float = 5.0
    decides: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    verdict: GO, NO_GO, or STOPPED when a directive ended it. cause, words, remedy: empty for GO.
    exit_code: an `ExitCode` value. summary: what summary.json holds.
    """

    verdict: str
    cause: str
    words: str
    remedy: str
    exit_code: int
    summary: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
