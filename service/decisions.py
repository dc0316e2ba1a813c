"""The values that travel from the policy to whoever carries a decision out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from service.causes import WORDS, Cause


class Verdict(StrEnum):
    """WAIT: too early to say. GO: it learns. RAISE: GO, and the SDM weight rises a notch. HOLD: GO,
    but the SDM weight may not rise. ROLLBACK: the SDM weight falls a notch and the memory is
    flushed. PAUSE: save, free the machines, and let a person look; the run can be resumed. NO_GO:
    stop, the cause is named."""

    WAIT = "WAIT"
    GO = "GO"
    HOLD = "HOLD"
    RAISE = "RAISE"
    ROLLBACK = "ROLLBACK"
    PAUSE = "PAUSE"
    NO_GO = "NO_GO"

    @property
    def ends(self) -> bool:
        """Whether the run stops on it."""
        return self in (Verdict.PAUSE, Verdict.NO_GO)

    @property
    def learns(self) -> bool:
        """Whether the run has been found to learn and goes on."""
        return self in (Verdict.GO, Verdict.HOLD, Verdict.RAISE, Verdict.ROLLBACK)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line on the wrong side of its bound, at `step`; it has been there since step `since`."""

    line: str
    observed: float
    bound: float
    step: int
    since: int


ACTIONS = (
    "sdm_weight",
    "head_lr",
    "head_probe",
    "flush_memory",
    "audit_sampler",
    "ids_per_batch",
    "stop",
    "pause",
)
"""What a decision can ask for. `head_lr` never raises the rate in force; only `head_probe` does,
while the first entry of the head's schedule is in force. `ids_per_batch` takes effect at the next
epoch's start, and from then on identities that cannot pair are not drawn."""


@dataclass(frozen=True, slots=True)
class Action:
    """What to change: one of ACTIONS, with its new value where it has one."""

    name: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    step: int
    verdict: Verdict
    cause: Cause = Cause.NONE
    findings: tuple[Finding, ...] = ()
    actions: tuple[Action, ...] = ()
    reason: str = ""
    """Why this, or why nothing more, was done, in words; empty when there is nothing to say."""
    sdm_reason: str = ""
    """Why the SDM weight is what it is from now on; empty when that has not changed."""
    suggestions: tuple[str, ...] = ()
    """Overrides worth trying in the next run, as one would type them."""

    @property
    def words(self) -> str:
        return WORDS[self.cause][0]

    @property
    def remedy(self) -> str:
        return WORDS[self.cause][1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with `words` and `remedy`; `from_dict` gives an equal decision."""
        return {**asdict(self), "words": self.words, "remedy": self.remedy}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Decision":
        return cls(
            step=values["step"],
            verdict=Verdict(values["verdict"]),
            cause=Cause(values["cause"]),
            findings=tuple(Finding(**f) for f in values["findings"]),
            actions=tuple(Action(**a) for a in values["actions"]),
            reason=values["reason"],
            sdm_reason=values["sdm_reason"],
            suggestions=tuple(values["suggestions"]),
        )


@dataclass(frozen=True, slots=True)
class PolicyState:
    """All that the policy remembers: bounded, and part of the train state.

    verdict: WAIT, GO, PAUSE or NO_GO. notch: SDM notches taken, 0 is off; notch_step: of the last
    change. rollbacks: how often the weight was taken back; rollback_step: when last. taken_back:
    the notches at which that began. best: lowest ce_fraction since GO. low: the first ce_fraction
    whose window lies behind the last notch; has_fallen: it clearly fell since. head_limit: head
    norm at which the head's rate is cut, None until it is known; head_cuts, head_cut_step: cuts so
    far. ids_from: P when a lower one was asked for, None before; ids_step: when that was, or, once
    ids_applied, when a lower P was first seen. probed: the head's probe has been decided. since:
    bound to the step at which it was crossed.
    """

    verdict: Verdict = Verdict.WAIT
    cause: Cause = Cause.NONE
    notch: int = 0
    notch_step: int = 0
    rollbacks: int = 0
    rollback_step: int = 0
    taken_back: tuple[int, ...] = ()
    best: float | None = None
    low: float | None = None
    has_fallen: bool = False
    head_limit: float | None = None
    head_cuts: int = 0
    head_cut_step: int = 0
    ids_from: int | None = None
    ids_step: int = 0
    ids_applied: bool = False
    probed: bool = False
    since: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def since_go(self) -> dict[str, float | None]:
        """What later reports are held against, for whoever shows them; None before it is known."""
        return {"best": self.best, "head_limit": self.head_limit}

    def to_dict(self) -> dict[str, Any]:
        """Plain values only; `from_dict` gives an equal state."""
        values = asdict(self)
        return {**values, "verdict": self.verdict.value, "cause": self.cause.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PolicyState":
        read: dict[str, Any] = {
            **values,
            "verdict": Verdict(values["verdict"]),
            "cause": Cause(values["cause"]),
            "taken_back": tuple(values["taken_back"]),
        }
        return cls(**read)


@dataclass(frozen=True, slots=True)
class Directive:
    """What a running trial must do, sent from outside the loop.

    number: rises with every directive of a trial, so repeating one changes nothing.
    apply_at_step: first step that runs with it; 0 is at once. actions: in order. verdict: of the
    decision behind it, empty when a person asked. state: the policy's after that decision, which
    the trial keeps, so that it can go on alone.
    """

    number: int
    apply_at_step: int = 0
    actions: tuple[Action, ...] = ()
    reason: str = ""
    verdict: str = ""
    state: PolicyState | None = None

    @property
    def stop(self) -> bool:
        """Whether the trial must end, for good or as a pause."""
        return any(action.name in ("stop", "pause") for action in self.actions)

    @classmethod
    def to_stop(cls, number: int, reason: str) -> "Directive":
        return cls(number, actions=(Action("stop"),), reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with `stop`; `from_dict` gives an equal directive."""
        state = self.state.to_dict() if self.state else None
        return {**asdict(self), "state": state, "stop": self.stop}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Directive":
        return cls(
            number=values["number"],
            apply_at_step=values["apply_at_step"],
            actions=tuple(Action(**action) for action in values["actions"]),
            reason=values["reason"],
            verdict=values["verdict"],
            state=PolicyState.from_dict(values["state"]) if values["state"] else None,
        )
