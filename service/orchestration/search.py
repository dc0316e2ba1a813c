"""Where a sweep's samples come from: Ray Tune's own searches, one trial at a time.

They ask the scheduler for room before they make a trial, so that a sweep keeps to its number of
concurrent trials also after a restart, and makes none once the user stops it. Their own limits
forget trials that were running when a driver was lost.
"""

import contextlib
import hashlib
import importlib.util
from typing import Any, Protocol

from ray.air.constants import TRAINING_ITERATION
from ray.tune.search import BasicVariantGenerator, SearchGenerator

from service.config import Config
from service.errors import ConfigError
from service.orchestration.scalars import MODES, TIME


class Gate(Protocol):
    """Who is asked before a trial is made. is_closed: the user has stopped the sweep."""

    is_closed: bool

    def has_room(self) -> bool: ...


def check_search(config: Config) -> None:
    """Refuses a search that cannot do what the space asks, before anything is started.

    Raises:
        ConfigError: optuna with a grid, or without its package.
    """
    tune = config.tune
    if tune.search != "optuna":
        return
    grids = [name for name, distribution in tune.space.items() if distribution.grid is not None]
    if grids:
        raise ConfigError(
            f"tune.space.{grids[0]}: optuna chooses each sample from the results before and so "
            "cannot run a grid through; write it as `choice`, or set tune.search=random"
        )
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tune.search=optuna needs the package optuna; run pip install 'crossreid[optuna]', or "
            "set tune.search=random"
        )


def make_search(config: Config, sweep: str, gate: Gate) -> Any:
    """The search of `config.tune`, in Ray Tune's words.

    sweep: its id; with random search it names the trials, so that they are the same ones again
    when Tune has to start over.
    """
    check_search(config)
    if config.tune.search == "random":
        return RandomSearch(config.run.seed, sweep, gate)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    # It would say on standard error that it begins, in a form of its own.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metric = config.tune.metric
    searcher = OptunaSearch(metric=metric, mode=MODES[metric], seed=config.run.seed)
    return GuidedSearch(searcher, metric, gate)


class RandomSearch(BasicVariantGenerator):
    """Grid and random samples; the same seed and space give the same ones in the same order."""

    def __init__(self, seed: int, sweep: str, gate: Gate) -> None:
        super().__init__(random_state=seed)
        self._uuid_prefix = hashlib.sha256(sweep.encode()).hexdigest()[:5] + "_"
        self._gate = gate

    def next_trial(self) -> Any:
        return super().next_trial() if self._gate.has_room() else None

    def is_finished(self) -> bool:
        """A closed sweep makes no more trials, but remembers which ones are left."""
        return self._gate.is_closed or super().is_finished()

    def get_state(self) -> Any:
        return _without_gate(super().get_state())


class GuidedSearch(SearchGenerator):
    """Samples that a searcher suggests from the trials before.

    A trial counts with what it was compared by in its last report: its final one carries no
    metric. A trial that was stopped early counts with the value it had then.
    """

    def __init__(self, searcher: Any, metric: str, gate: Gate) -> None:
        super().__init__(searcher)
        self._compared_by = metric
        self._gate = gate
        self._last: dict[str, float] = {}
        self._told: set[str] = set()

    @property
    def metric(self) -> None:
        """None, or Tune would refuse the final report; the scheduler checks all others."""
        return None

    def next_trial(self) -> Any:
        return super().next_trial() if self._gate.has_room() else None

    def is_finished(self) -> bool:
        return self._gate.is_closed or super().is_finished()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._compared_by in result and trial_id not in self._told:
            self._last[trial_id] = result[self._compared_by]
            with _unknown_ignored():
                super().on_trial_result(trial_id, {**result, TRAINING_ITERATION: result[TIME]})

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id in self._told or self._gate.is_closed:
            return
        self._told.add(trial_id)
        last = (result or {}).get(self._compared_by, self._last.get(trial_id))
        told = None if error or last is None else {self._compared_by: last}
        with _unknown_ignored():
            super().on_trial_complete(trial_id, told, error)

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "last": self._last, "told": self._told}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._last, self._told = state["last"], state["told"]


def _unknown_ignored() -> contextlib.suppress:
    """A trial made just before its driver was lost may be in Tune's snapshot and not yet in the
    searcher's: it is lost to the search then, not to the sweep."""
    return contextlib.suppress(KeyError)


def _without_gate(state: Any) -> Any:
    """A snapshot must not bring an earlier driver's scheduler back."""
    if isinstance(state, dict):
        return {k: v for k, v in state.items() if k != "_gate"}
    return state
