"""The search space of a sweep: dotted settings, their distributions, and one trial's config."""

import difflib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from service.config import Config, Distribution
from service.errors import ConfigError
from service.settings import known_settings, override

_FIXED = ("run.storage", "run.checkpoints", "run.name", "data.", "cluster.", "telemetry.", "tune.")
"""Settings that are the same for all trials of a sweep."""
_MOST_TRIED = 1000
"""Combinations that are tried before a sweep, at less than a millisecond each."""


def with_sample(config: Config, sample: Mapping[str, Any]) -> Config:
    """`config` with a trial's sample laid over it.

    Raises:
        ConfigError: naming the setting whose value does not fit, alone or with the others.
    """
    return override(config, overrides(sample))


def overrides(sample: Mapping[str, Any]) -> list[str]:
    """A sample as the words one would type: `a.b=c`."""
    return [f"{name}={json.dumps(value)}" for name, value in sample.items()]


def check_space(config: Config) -> None:
    """Refuses a space that is empty, names unknown or fixed settings, or draws unfit samples.

    Values of a grid or choice, and both ends of a range, are tried in all their combinations: two
    settings may each fit and contradict each other. Of more than `_MOST_TRIED` combinations so many
    are tried, the same ones each time, and every value at least once.

    Raises:
        ConfigError: naming the setting, or those that do not fit together.
    """
    if not config.tune.space:
        raise ConfigError(
            "tune.space is empty; give settings to search, as in "
            "`tune: {space: {optim.head_lr: {grid: [1e-2, 3e-3]}}}`"
        )
    known = set(known_settings())
    for name in config.tune.space:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else "see `crossreid config show`"
            raise ConfigError(f"tune.space.{name}: unknown setting; {hint}")
        if name.startswith(_FIXED):
            raise ConfigError(f"tune.space.{name}: this is the same for all trials of a sweep")
    tried = {name: values_of(distribution) for name, distribution in config.tune.space.items()}
    for sample in _combinations(tried):
        _check_sample(config, sample)


def _check_sample(config: Config, sample: dict[str, Any]) -> None:
    """Refuses a sample that is no config, naming only the settings that it takes for that."""
    error = _misfit(config, sample)
    if error is None:
        return
    for name in tuple(sample):
        fewer = {key: value for key, value in sample.items() if key != name}
        found = _misfit(config, fewer)
        if found is not None:
            sample, error = fewer, found
    words = " with ".join(overrides(sample))
    raise ConfigError(f"tune.space: {words} does not fit: {error}") from error


def _misfit(config: Config, sample: dict[str, Any]) -> ConfigError | None:
    try:
        with_sample(config, sample)
    except ConfigError as error:
        return error
    return None


def _combinations(values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Samples of one value for each name: all of them, or some in which every value is."""
    if math.prod(len(some) for some in values.values()) <= _MOST_TRIED:
        for drawn in itertools.product(*values.values()):
            yield dict(zip(values, drawn, strict=True))
        return
    first = {name: some[0] for name, some in values.items()}
    for name, some in values.items():
        yield from ({**first, name: value} for value in some)
    draw = random.Random(0)
    for _ in range(_MOST_TRIED):
        yield {name: draw.choice(some) for name, some in values.items()}


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
