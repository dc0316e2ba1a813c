"""What a sweep may cost, before it is started: trials, steps, and hours of GPUs or CPUs."""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from service.config import Config
from service.data.fitting import plan_for_all
from service.errors import ClusterError, CrossReidError
from service.orchestration.runs import CONFIG_FILE, resolved
from service.orchestration.space import num_trials, values_of, with_sample
from service.orchestration.summary import SUMMARY_FILE
from service.settings import load_text
from service.training.journal import read_journal

_SETS_STEPS = ("train.epochs", "train.max_steps", "sampler.")
_LOOKED_AT = 50
"""Newest runs in the storage that are looked at for one of the same model."""


@dataclass(frozen=True, slots=True)
class Pace:
    """seconds: of one step of one trial. source: who says so."""

    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a sweep can take: every trial trained to its end.

    Evaluation and start-up come on top. steps: of all trials. shortest, longest: of one trial.
    unit: GPU, or CPU where no worker has a GPU. units: of them that a trial holds. pace: None when
    nobody knows it.
    """

    trials: int
    concurrent: int
    steps: int
    shortest: int
    longest: int
    workers: int
    unit: str
    units: float
    pace: Pace | None

    @property
    def unit_hours(self) -> float | None:
        """Hours of GPUs (or CPUs), at most."""
        if self.pace is None:
            return None
        return self.steps * self.pace.seconds * self.units / 3600

    @property
    def hours(self) -> float | None:
        """Hours on the clock, at most, in any order: no slot is empty while trials wait."""
        if self.pace is None:
            return None
        spread = self.steps / self.concurrent + self.longest * (1 - 1 / self.concurrent)
        in_turn = math.ceil(self.trials / self.concurrent) * self.longest
        return min(spread, in_turn) * self.pace.seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "trials": self.trials,
            "concurrent": self.concurrent,
            "steps_per_trial": [self.shortest, self.longest],
            "steps": self.steps,
            "worker_steps": self.steps * self.workers,
            "seconds_per_step": self.pace.seconds if self.pace else None,
            "seconds_from": self.pace.source if self.pace else None,
            "unit": self.unit,
            f"{self.unit.lower()}_hours_at_most": self.unit_hours,
            "hours_at_most": self.hours,
        }

    def lines(self) -> list[str]:
        """For people."""
        each = f"{self.shortest}" if self.shortest == self.longest else self._range
        lines = [
            f"{_many(self.trials, 'trial')}, {self.concurrent} at a time, each "
            f"{_many(self.workers, 'worker')} with {_many(self.units / self.workers, self.unit)}: "
            f"{_many(self.units * self.concurrent, self.unit)} at once",
            f"{each} steps a trial; at most {self.steps} steps and {self.steps * self.workers} "
            "worker-steps, if every trial runs to its end",
        ]
        if self.pace is None:
            return [
                *lines,
                f"at most {self.steps * self.units / 3600:.4g} {self.unit}-hours for each second "
                "that a step takes, which is unknown: no finished run of this model and batch is "
                "in run.storage; give --seconds-per-step",
            ]
        return [
            *lines,
            f"at most {self.unit_hours:.3g} {self.unit}-hours in {self.hours:.3g} hours, at "
            f"{self.pace.seconds:.3g} s a step ({self.pace.source}); evaluation and start-up come "
            "on top",
        ]

    @property
    def _range(self) -> str:
        return f"{self.shortest} to {self.longest}"


def _many(number: float, thing: str) -> str:
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def budget(config: Config, pace: Pace | None = None) -> Budget:
    """The most that the sweep of `config` can take; its records must be readable.

    Raises:
        DataError, SamplerError: a sample that the space can draw does not fit the records.
    """
    config = resolved(config)
    trials, cluster = num_trials(config), config.cluster
    groups = list(_step_groups(config))
    each = trials // len(groups)
    has_gpus = cluster.gpus_per_worker > 0
    return Budget(
        trials=trials,
        concurrent=min(trials, config.tune.max_concurrent),
        steps=sum(max(group) for group in groups) * each,
        shortest=min(min(group) for group in groups),
        longest=max(max(group) for group in groups),
        workers=cluster.num_workers,
        unit="GPU" if has_gpus else "CPU",
        units=cluster.num_workers
        * (cluster.gpus_per_worker if has_gpus else cluster.cpus_per_worker),
        pace=pace,
    )


def check_here(config: Config) -> None:
    """Refuses more concurrent trials than this machine can hold, where Ray would start on it.

    Raises:
        ClusterError: saying what was found, what is needed and what to try.
    """
    if config.cluster.address or os.environ.get("RAY_ADDRESS"):
        return
    together = min(num_trials(config), config.tune.max_concurrent)
    each = config.cluster.num_workers * config.cluster.cpus_per_worker
    has = os.cpu_count() or 1
    if together * each > has:
        fitting = int(has // each)
        remedy = f"tune.max_concurrent={fitting}" if fitting else "fewer cluster.num_workers"
        raise ClusterError(
            f"{together} trials at a time need {together * each:g} CPUs, but this machine has "
            f"{has}; try {remedy}, or give cluster.address"
        )


def _step_groups(config: Config) -> Iterable[list[int]]:
    """For each combination of the grids that set a trial's length, the lengths it can draw."""
    relevant = {k: d for k, d in config.tune.space.items() if k.startswith(_SETS_STEPS)}
    grids = {k: values_of(d) for k, d in relevant.items() if d.grid is not None}
    drawn = {k: values_of(d) for k, d in relevant.items() if d.grid is None}
    lengths: dict[str, int] = {}
    for fixed in _combinations(grids):
        yield [_steps(config, {**fixed, **some}, lengths) for some in _combinations(drawn)]


def _combinations(values: Mapping[str, tuple[Any, ...]]) -> Iterable[dict[str, Any]]:
    return (dict(zip(values, some, strict=True)) for some in itertools.product(*values.values()))


def _steps(config: Config, sample: dict[str, Any], epochs: dict[str, int]) -> int:
    """Steps of a trial; epochs: steps an epoch by sampler settings, filled on the way."""
    config = with_sample(config, sample)
    key = config.sampler.model_dump_json()
    if key not in epochs:
        try:
            plan = plan_for_all(config)
        except CrossReidError as error:
            where = f"with {json.dumps(sample)}: " if sample else ""
            raise type(error)(f"{where}{error}") from error
        epochs[key] = plan.stats.steps_per_epoch
    whole = config.train.epochs * epochs[key]
    return min(whole, config.train.max_steps or whole)


def measured_pace(config: Config) -> Pace | None:
    """The median step of the newest finished run with the same model, batch and workers."""
    config = resolved(config)
    storage = Path(config.run.storage)
    found = [*storage.glob(f"*/{SUMMARY_FILE}"), *storage.glob(f"*/*/{SUMMARY_FILE}")]
    newest = sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)
    for file in newest[:_LOOKED_AT]:
        run = file.parent
        try:
            other = load_text((run / CONFIG_FILE).read_text("utf-8"))
        except (OSError, CrossReidError):
            continue
        if _work(other) != _work(config):
            continue
        # The first line holds the warm-up.
        steps = [event for event in read_journal(run) if event.get("event") == "steps"][1:]
        if steps:
            return Pace(median(event["seconds"] for event in steps), f"as in run {run.name}")
    return None


def _work(config: Config) -> tuple[Any, ...]:
    """What one step computes, and on what."""
    cluster = config.cluster
    return (
        config.model,
        config.sampler,
        config.train.precision,
        config.train.threads,
        cluster.num_workers,
        cluster.gpus_per_worker,
    )
