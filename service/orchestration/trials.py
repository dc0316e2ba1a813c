"""What is known of a sweep's trials, and how it is rebuilt from the sweep's journal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from service.config import Config
from service.decisions import Decision, Directive, PolicyState, Verdict
from service.errors import ConfigError, RunError
from service.gonogo import Rules
from service.orchestration.space import with_sample
from service.orchestration.sweep_journal import Line
from service.orchestration.worker import error_values, rebuilt

INTERRUPTED = "interrupted"
"""The reason of the directive by which a driver stops its trials when the user stops it."""


@dataclass(slots=True)
class TrialRecord:
    """What the scheduler knows of one trial.

    step, total: of the last report. metrics: what it is compared by, at the last judged report.
    outcome: how it ended, as the trial told, {} if it was killed; None while it may go on.
    stop_at: clock time of the first request to stop. killed: the grace period ran out. process,
    controller: ids of the actors that it runs in and that starts its workers, as last reported.
    """

    rules: Rules
    sample: dict[str, Any] = field(default_factory=dict)
    state: PolicyState = field(default_factory=PolicyState)
    step: int = -1
    total: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    directive: Directive | None = None
    outcome: dict[str, Any] | None = None
    stop_at: float | None = None
    killed: bool = False
    process: str = ""
    controller: str = ""

    @property
    def verdict(self) -> Decision | None:
        """The decision that counts: the last that is more than WAIT, else the last."""
        told = [d for d in self.decisions if d.verdict is not Verdict.WAIT]
        return (told or self.decisions or [None])[-1]

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop; nothing more is decided about it then."""
        return self.directive is not None and self.directive.stop

    @property
    def note(self) -> str:
        """Who else than the policy asked it to stop, and when; empty when nobody did."""
        asked = self.directive
        return asked.reason if asked and asked.stop and not asked.verdict else ""

    @property
    def is_at_end(self) -> bool:
        """Whether it has made its last step, and so ends by itself."""
        return 0 < self.total <= self.step

    @property
    def failure(self) -> str:
        """What error it ended with, by name, or "lost" when its process went without a word; empty
        when it ended otherwise."""
        if self.outcome is None:
            return "" if self.is_stopping else "lost"
        if "error" in self.outcome:
            return rebuilt(self.outcome["error"]).name
        return self.outcome["cause"] if self.outcome.get("verdict") == "ERROR" else ""

    @property
    def is_unfit(self) -> bool:
        """Whether it never ran since its sample is no config."""
        return self.step < 0 and (self.outcome or {}).get("error", {}).get("type") == "ConfigError"


def new_record(config: Config, sample: dict[str, Any]) -> TrialRecord:
    """The record of a trial that has not reported; it has ended already if its sample laid over
    `config` contradicts itself."""
    try:
        return TrialRecord(Rules.of(with_sample(config, sample)), sample)
    except ConfigError as error:
        outcome = {"error": error_values(error)}
        return TrialRecord(Rules.of(config), sample, outcome=outcome)


def is_end(outcome: dict[str, Any]) -> bool:
    """Whether a trial that told `outcome` will not go on when its sweep is continued.

    One that the user stopped goes on, and so does one whose cluster failed.
    """
    if outcome.get("error", {}).get("type") == "ClusterError":
        return False
    return not (outcome.get("verdict") == "STOPPED" and outcome.get("words") == INTERRUPTED)


def rebuilt_records(config: Config, lines: Iterable[Line]) -> dict[str, TrialRecord]:
    """The trials as the journal's lines leave them, by id.

    Raises:
        RunError: a line is another version's.
    """
    records: dict[str, TrialRecord] = {}
    try:
        for line in lines:
            _take(config, records, line)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"the sweep's journal holds a line that this version cannot read: {error!r}; continue "
            "the sweep with the version that started it"
        ) from error
    return records


def _take(config: Config, records: dict[str, TrialRecord], line: Line) -> None:
    key = line["trial"]
    if key not in records:
        # The line that named the trial may be lost; every other line names its sample too.
        records[key] = new_record(config, line["sample"])
    record = records[key]
    if line["event"] == "decision":
        record.state = PolicyState.from_dict(line["state"])
        record.step, record.total = line["step"], line["total"]
        record.metrics = line["metrics"]
        record.decisions.append(Decision.from_dict(line["decision"]))
        if line["directive"] is not None:
            record.directive = Directive.from_dict(line["directive"])
    if line["event"] == "end":
        record.outcome = line["outcome"]
