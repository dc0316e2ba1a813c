"""A sweep's scheduler without Ray: its trials are plain values and its clock is a number."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from service.config import Config, DataConfig
from service.decisions import Decision, Directive
from service.health import HealthReport
from service.orchestration.scheduler import GoNoGoScheduler
from service.orchestration.sweep_journal import SweepJournal


class Sweep:
    """A scheduler with a clock that stands still, and what it sent and said."""

    def __init__(
        self, journal: Path, config: Config | None = None, base: TrialScheduler | None = None
    ) -> None:
        self.config = config or Config(data=DataConfig(records="nowhere"))
        self.journal = SweepJournal(journal)
        self.time = 0.0
        self.sent: list[tuple[str, Directive]] = []
        self.heard: list[tuple[str, Decision]] = []
        self.told: list[tuple[str, Any]] = []
        self.killed: list[str] = []
        self.scheduler = GoNoGoScheduler(
            self.config,
            journal,
            base=base,
            clock=lambda: self.time,
            now=lambda: 1000.0 + self.time,
        )
        self.attach()

    def attach(self) -> None:
        self.scheduler.attach(
            lambda key, directive: self.sent.append((key, directive)),
            lambda key, decision, state: self.heard.append((key, decision)),
            self.killed.append,
        )

    def add(self, trial: str, status: str = "PENDING", **sample: Any) -> Any:
        """Tune makes the trial, or brings it back; gives the trial."""
        found = SimpleNamespace(trial_id=trial, config=sample, status=status)
        found.set_status = lambda status: setattr(found, "status", status)
        found.init_local_path = lambda: None
        search = SimpleNamespace(
            on_trial_complete=lambda key, result: self.told.append((key, result))
        )
        self.scheduler.on_trial_add(SimpleNamespace(search_alg=search), found)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.journal.read()

    def report(self, report: HealthReport, trial: str = "a", directive: int = 0, **sample: Any):
        found = SimpleNamespace(trial_id=trial, config=sample)
        result = {"health": json.dumps(report.to_dict()), "directive": directive}
        result |= {"process": f"process of {trial}", "controller": f"controller of {trial}"}
        return self.scheduler.on_trial_result(None, found, result)


def controller(*trials: str) -> Any:
    """A Tune controller with running trials that notes whom it was told to stop."""
    stopped: list[str] = []
    found = [SimpleNamespace(trial_id=name, status="RUNNING") for name in trials]
    return SimpleNamespace(
        get_trials=lambda: found,
        stop_trial=lambda trial: stopped.append(trial.trial_id),
        stopped=stopped,
        search_alg=None,
    )
