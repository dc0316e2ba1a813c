"""The search space of a sweep: dotted settings, their distributions, and one trial's config."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from service.config import Config, Distribution
from service.errors import ConfigError
from service.settings import known_settings, override

_FIXED = ("run.storage", "run.name", "data.", "cluster.", "telemetry.", "tune.")
"""Settings that are the same for all trials of a sweep."""


def with_sample(config: Config, sample: Mapping[str, Any]) -> Config:
    """`config` with a trial's sample laid over it.

    Raises:
        ConfigError: naming the setting whose value does not fit.
    """
    return override(config, overrides(sample))


def overrides(sample: Mapping[str, Any]) -> list[str]:
    """A sample as the words one would type: `a.b=c`."""
    return [f"{name}={json.dumps(value)}" for name, value in sample.items()]


def check_space(config: Config) -> None:
    """Refuses a space that is empty, names unknown or fixed settings, or holds unfit values.

    Values of a grid or choice, and both ends of a range, are tried one at a time.

    Raises:
        ConfigError: naming the setting.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space is empty; give settings to search, as in "
            "`tune: {space: {optim.head_lr: {grid: [1e-2, 3e-3]}}}`"
        )
    known = set(known_settings())
    for name, distribution in config.tune.space.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else "see `crossreid config show`"
            raise ConfigError(f"tune.space.{name}: unknown setting; {hint}")
        if name.startswith(_FIXED):
            raise ConfigError(f"tune.space.{name}: this is the same for all trials of a sweep")
        for value in values_of(distribution):
            with_sample(config, {name: value})


def num_trials(config: Config) -> int:
    """Trials that the sweep will run."""
    grids = [len(d.grid) for d in config.tune.space.values() if d.grid is not None]
    total = config.tune.samples
    for size in grids:
        total *= size
    return total


def param_space(config: Config) -> dict[str, Any]:
    """The space in Ray Tune's words."""
    return {name: _domain(d) for name, d in config.tune.space.items()}


def _domain(distribution: Distribution) -> Any:
    from ray import tune

    if distribution.grid is not None:
        return tune.grid_search(list(distribution.grid))
    if distribution.choice is not None:
        return tune.choice(list(distribution.choice))
    if distribution.uniform is not None:
        return tune.uniform(*distribution.uniform)
    assert distribution.loguniform is not None
    return tune.loguniform(*distribution.loguniform)


def values_of(distribution: Distribution) -> tuple[Any, ...]:
    """What a grid or choice holds, or both ends of a range."""
    kinds = (distribution.grid, distribution.choice, distribution.uniform, distribution.loguniform)
    return next(tuple(values) for values in kinds if values is not None)
