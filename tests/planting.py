"""Runs one planted fault, or a healthy run, in the plain loop, and says what was named when."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from service.causes import Cause
from service.config import Config
from service.decisions import Decision, Directive, Verdict
from service.distributed import Distributed
from service.errors import CrossReidError
from service.training.loop import train
from service.training.ports import Ports
from tests.faults import WITHOUT_CLOCK, Fault, Said, Shelf
from tests.plants import Clock
from tests.small import small_config


@dataclass(slots=True)
class Told:
    """What a run said of itself, decision by decision.

    error: the cause with which it broke off, at step `error_step`. code: its exit code.
    """

    decisions: list[Decision] = field(default_factory=list)
    error: Cause = Cause.NONE
    error_step: int = 0
    code: int = 0
    verdict: str = ""

    def first(self, wanted: Said, start: int = 0) -> int | None:
        """Where among the decisions, from `start` on, that verdict with that cause was given.

        A hint comes with GO or RAISE alike: it stands in the way of nothing.
        """
        verdict, cause = wanted
        allowed = _FREE if verdict is Verdict.GO else (verdict,)
        for i, d in enumerate(self.decisions[start:], start):
            if d.verdict in allowed and d.cause is cause:
                return i
        return None

    def places(self, wanted: tuple[Said, ...]) -> list[int]:
        """Where those decisions were given, one after the other; shorter when some were not."""
        found: list[int] = []
        for said in wanted:
            at = self.first(said, found[-1] + 1 if found else 0)
            if at is None:
                break
            found.append(at)
        return found

    @property
    def actions(self) -> set[str]:
        return {action.name for d in self.decisions for action in d.actions}

    @property
    def causes(self) -> set[Cause]:
        return {d.cause for d in self.decisions} - {Cause.NONE}

    @property
    def hints(self) -> list[Decision]:
        """Decisions that name a cause and stand in the way of nothing."""
        return [d for d in self.decisions if d.verdict in _FREE and d.cause is not Cause.NONE]


_FREE = (Verdict.GO, Verdict.RAISE)


def follow(
    config: Config,
    folder: Path,
    clock: Clock | None = None,
    *,
    until: tuple[Said, ...] = (),
    since: int = 0,
) -> Told:
    """The run's own decisions from step `since` on. With `until` the run is stopped once those have
    been given in order."""
    told, clock = Told(), clock or Clock()

    def note(event: dict) -> None:
        if event["event"] == "decision" and event["step"] >= since:
            told.decisions.append(Decision.from_dict(event))

    def tick(step: int, total: int, lines: dict) -> None:
        clock.step = step + 1

    def poll(known: int) -> Directive | None:
        is_told = until and len(told.places(until)) == len(until)
        return Directive.to_stop(1, "enough") if is_told and not known else None

    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        ports = Ports(event=note, progress=tick, poll=poll)
        outcome = train(config, folder, Distributed.single(), ports)
    except CrossReidError as error:
        told.error, told.code = error.cause, int(error.exit_code)
        told.error_step = clock.step if told.decisions or clock.step > 1 else 0
    else:
        told.code, told.verdict = outcome.exit_code, outcome.verdict
    return told


@dataclass(frozen=True, slots=True)
class Named:
    """How a fault was recognised: `step` is None when it was not, `wrong` says what is amiss."""

    fault: Fault
    seed: int
    step: int | None
    verdict: str
    cause: str
    wrong: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        return not self.wrong

    def to_dict(self) -> dict[str, object]:
        return {
            "fault": self.fault.name,
            "planted": self.fault.planted,
            "seed": self.seed,
            "shows_at": self.fault.shows,
            "named_at": self.step,
            "verdict": self.verdict,
            "cause": self.cause,
            "ok": self.is_ok,
            "wrong": list(self.wrong),
        }


WITHIN = 200
"""Steps after it can show by which a fault must be named."""


def recognise(fault: Fault, shelf: Shelf, folder: Path, seed: int = 0) -> Named:
    """Plants the fault in a small run and compares what the run says with what it must say."""
    records = fault.data(shelf, seed)
    clockless = () if fault.timed else WITHOUT_CLOCK
    config = small_config(records, [f"run.seed={seed}", *clockless, *fault.overrides])
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch, clock)
        told = follow(
            config,
            folder,
            clock,
            until=() if fault.code else fault.says,
            since=fault.shows if fault.timed else 0,
        )
    judge = _judged if fault.error is Cause.NONE else _broken_off
    return judge(fault, told, seed)


def _broken_off(fault: Fault, told: Told, seed: int) -> Named:
    wrong = []
    if told.error is not fault.error:
        wrong.append(f"error {told.error or 'none'}, expected {fault.error}")
    if told.code != fault.code:
        wrong.append(f"exit code {told.code}, expected {fault.code}")
    if told.causes:
        wrong.append(f"named {sorted(told.causes)} before")
    wrong += _late(fault, told.error_step)
    return Named(fault, seed, told.error_step, "error", str(told.error), tuple(wrong))


def _judged(fault: Fault, told: Told, seed: int) -> Named:
    wrong = []
    places = told.places(fault.says)
    if len(places) < len(fault.says):
        missing = fault.says[len(places)]
        given = [(d.step, str(d.verdict), str(d.cause)) for d in told.decisions]
        wrong.append(f"never said {missing[0]} {missing[1]}; said {given}")
    if told.error is not Cause.NONE:
        wrong.append(f"broke off with {told.error}")
    strange = told.causes - {c for _, c in fault.says} - fault.also
    if strange:
        wrong.append(f"also named {sorted(strange)}")
    if not fault.actions <= told.actions:
        wrong.append(f"actions {sorted(told.actions)}, expected {sorted(fault.actions)}")
    if fault.code and told.code != fault.code:
        wrong.append(f"exit code {told.code}, expected {fault.code}")
    if not places:
        return Named(fault, seed, None, told.verdict, "", tuple(wrong))
    first = told.decisions[places[0]]
    wrong += _late(fault, first.step)
    last = told.decisions[places[-1]]
    return Named(fault, seed, first.step, str(last.verdict), str(first.cause), tuple(wrong))


def _late(fault: Fault, step: int) -> list[str]:
    """Named before it can show is as wrong as named too late."""
    if fault.shows <= step <= fault.shows + WITHIN:
        return []
    return [f"named at step {step}, can show from {fault.shows} on"]
