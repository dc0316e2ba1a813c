"""The base scheduler under Go/No-Go: it compares trials with each other, and may only stop them.

A nested run writes its own checkpoints and hands Tune none, so a trial that Tune pauses starts
again from wherever its run was. Schedulers that work by pausing are refused.
"""

import math
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
    TrialScheduler,
)

from service.config import TuneConfig
from service.errors import ConfigError, RunError
from service.orchestration.scalars import MODES, TIME

_PAUSING = (
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    HyperBandScheduler,
    ResourceChangingScheduler,
)
_NAMES = {FIFOScheduler: "fifo", AsyncHyperBandScheduler: "asha", MedianStoppingRule: "median"}


@dataclass(frozen=True, slots=True)
class StandIn:
    """A trial as a base scheduler sees it: the same one after a restart of the driver."""

    trial_id: str

    def __str__(self) -> str:
        return self.trial_id


def make_base(tune: TuneConfig, max_steps: int) -> TrialScheduler:
    """The scheduler that `tune.base` names; max_steps: of the longest trial.

    Raises:
        ConfigError: no trial is as long as the first rung.
    """
    if tune.base == "fifo":
        return FIFOScheduler()
    if tune.base_grace_steps > max_steps:
        raise ConfigError(
            f"tune.base_grace_steps={tune.base_grace_steps} is more than the {max_steps} steps of "
            f"the longest trial, so {tune.base} would never stop one; lower it or use "
            "tune.base=fifo"
        )
    compared: dict[str, Any] = {
        "time_attr": TIME,
        "metric": tune.metric,
        "mode": MODES[tune.metric],
        "grace_period": tune.base_grace_steps,
    }
    if tune.base == "median":
        # A finite slice would pause trials to let others catch up.
        return MedianStoppingRule(
            **compared, min_samples_required=tune.min_trials, min_time_slice=_never()
        )
    return AsyncHyperBandScheduler(
        **compared,
        max_t=max_steps,
        reduction_factor=tune.reduction_factor,
        stop_last_trials=False,
    )


def _never() -> Any:
    return math.inf


class Base:
    """A base scheduler behind a wall: it hears of reports and ends, and answers `stop` or not.

    Raises:
        ConfigError: it works by pausing trials, or counts time in something else than steps.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        name = type(scheduler).__name__
        if isinstance(scheduler, _PAUSING) or getattr(scheduler, "_hard_stop", True) is False:
            raise ConfigError(
                f"{name} works by pausing trials and starting them again from Tune's checkpoints, "
                "but a trial here nests a training run that writes its own and hands Tune none. "
                "Use asha or median as tune.base; Go/No-Go itself changes settings of running "
                "trials"
            )
        time = getattr(scheduler, "_time_attr", TIME)
        if time != TIME:
            raise ConfigError(
                f"{name} counts time in {time!r}; give it time_attr={TIME!r}: everything else "
                "starts again when a trial does"
            )
        # Stand-ins are not Tune's trials; those that are not refused read their id only.
        self.scheduler: Any = scheduler
        self.name = _NAMES.get(type(scheduler), name)
        self._metric = scheduler.metric or TIME
        self._let_go: set[str] = set()
        self._known: set[str] = set()

    def added(self, tune_controller: Any, key: str) -> None:
        """The trial will run; saying so again changes nothing."""
        if key not in self._known:
            self._known.add(key)
            self.scheduler.on_trial_add(tune_controller, StandIn(key))

    def stops(self, tune_controller: Any, key: str, metrics: dict[str, Any]) -> bool:
        """Whether it wants the trial stopped, given what it is compared by at a step.

        A number that is not finite is kept from it: the policy names that cause. So are reports
        after its stop.

        Raises:
            RunError: the number it compares by is missing, or it wants to pause the trial.
        """
        for name in (TIME, self._metric):
            if name not in metrics:
                raise RunError(
                    f"trial {key} reported without {name!r}, by which {self.name} compares trials; "
                    f"found {sorted(metrics)}"
                )
        if key in self._let_go or not math.isfinite(metrics[self._metric]):
            return False
        answer = self.scheduler.on_trial_result(tune_controller, StandIn(key), dict(metrics))
        if answer == TrialScheduler.STOP:
            self._let_go.add(key)
            return True
        if answer != TrialScheduler.CONTINUE:
            raise RunError(
                f"{self.name} answered {answer} to trial {key}'s report at step {metrics[TIME]}, "
                "but a nested run cannot be paused: it hands Tune no checkpoint. Use a scheduler "
                "that only stops trials: asha or median"
            )
        return False

    def ended(self, tune_controller: Any, key: str, metrics: dict[str, Any]) -> None:
        """The trial will not go on; metrics: of its last report, empty if it never reported."""
        if key not in self._known:
            return
        self._known.discard(key)
        if metrics:
            self.scheduler.on_trial_complete(tune_controller, StandIn(key), dict(metrics))
        else:
            self.scheduler.on_trial_remove(tune_controller, StandIn(key))

    def failed(self, tune_controller: Any, key: str) -> None:
        """The trial's process was lost; it may be added again."""
        self._known.discard(key)
        self.scheduler.on_trial_error(tune_controller, StandIn(key))
