"""A sweep: Ray Tune starts trials, each nests a Ray Train run, the scheduler judges them."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import ResumeConfig, TuneConfig, Tuner

from service.background import Background
from service.config import Config
from service.errors import ExitCode, RunError
from service.orchestration.bases import make_base
from service.orchestration.budget import Budget, budget
from service.orchestration.cluster import connected
from service.orchestration.control import ControlReader, start_control
from service.orchestration.loggers import check_loggers, make_loggers
from service.orchestration.monitor import Monitor
from service.orchestration.nested import run_trial
from service.orchestration.orphans import end_actor
from service.orchestration.progress import SWEEP, OnProgress, Update, ignore, teller
from service.orchestration.room import require
from service.orchestration.rows import (
    BEST_FILE,
    Sweep,
    best_of,
    best_yaml,
    exit_code,
    open_row,
    row_of,
    short_decisions,
    verdict_of,
)
from service.orchestration.runs import Run, plan_run, taken
from service.orchestration.scheduler import GoNoGoScheduler
from service.orchestration.search import check_search, make_search
from service.orchestration.serving import served
from service.orchestration.sinks import check_sinks, followed
from service.orchestration.space import check_space, param_space
from service.orchestration.summary import SUMMARY_FILE, write_summary
from service.orchestration.sweep_journal import FILE_NAME as JOURNAL
from service.orchestration.sweep_journal import SweepJournal
from service.orchestration.sweeps import check_head, head_line, resume_sweep
from service.orchestration.trials import TrialRecord
from service.orchestration.watch import Watch
from service.training.ending import STOPPED
from service.training.files import write_text

__all__ = ["BEST_FILE", "JOURNAL", "check_sweep", "launch_tuning"]

_TUNE_FOLDER = "tune"
_OUTER = {"CPU": 0, "node:__internal_head__": 0.001}
"""A trial's own process only waits. Tune refuses a request for nothing at all."""


def launch_tuning(
    config: Config | None,
    *,
    experiment_id: str | None = None,
    resume: str | None = None,
    on_progress: OnProgress = ignore,
) -> Sweep:
    """Runs the sweep of `config.tune` and waits for its end.

    config: may be None only with `resume`. experiment_id: the new sweep's name, made here when
    None. resume: continues this sweep instead: its id below `run.storage`, or its folder. Trials
    that had ended are not run again, the others go on from their own checkpoints, and nothing that
    was decided is decided again. Tune's files in the folder are unpickled, which can run programs:
    resume only sweeps of your own.

    The trials' run folders are `<storage>/<experiment id>/<trial id>/`. A KeyboardInterrupt stops
    all trials and ends with exit code INTERRUPTED; the sweep can be resumed.

    Raises:
        ConfigError: the space does not fit the settings, or a package is missing.
        RunError: the name is taken, or the sweep to resume is unknown, ended or another.
        ClusterError: the cluster is too small for the concurrent trials, or not reachable.
    """
    if resume is not None:
        sweep = resume_sweep(resume, config)
    elif config is not None:
        sweep = plan_run(config, experiment_id, can_resume=False)
    else:
        raise ValueError("a new sweep needs a config")
    config = sweep.config
    plan = check_sweep(config)
    with connected(config.cluster) as cluster, contextlib.ExitStack() as stack:
        require(config.cluster, plan.concurrent, teller(on_progress, SWEEP))
        stack.enter_context(taken(sweep, new=resume is None))
        control = start_control(sweep.run_id)
        reader = ControlReader(control)
        exporter = stack.enter_context(served(sweep, cluster, on_progress, SWEEP))
        # What an earlier driver summed up no longer holds.
        (sweep.path / SUMMARY_FILE).unlink(missing_ok=True)
        scheduler = _scheduler(sweep, plan, on_progress)
        sinks = stack.enter_context(followed(sweep, on_progress, SWEEP))
        monitor = Monitor(config, exporter, on_progress, sinks, speaker=SWEEP)
        scheduler.attach(reader.put, monitor.decided, end_actor)
        served_at = f"; metrics at {exporter.address}" if exporter else ""
        head = f"{sweep.run_id} with {plan.trials} trials in {sweep.path}{served_at}"
        told = Update(SWEEP, total=plan.trials, messages=(head,), folder=str(sweep.path))
        on_progress(told)
        tuner = _tuner(sweep, scheduler)
        watch = Watch(Background(tuner.fit), scheduler, monitor, reader)
        try:
            results, was_interrupted = watch.until_end()
        finally:
            monitor.all_ended()
        return _ended(sweep, results, scheduler.trials, was_interrupted)


def check_sweep(config: Config) -> Budget:
    """What the sweep may take, if everything it needs is there; starts and writes nothing.

    Raises:
        ConfigError: the space, the search, the base or the loggers do not fit.
        DataError, SamplerError: a sample that the space can draw does not fit the records.
    """
    check_space(config)
    check_search(config)
    check_loggers(config.tune.loggers)
    check_sinks(config)
    plan = budget(config)
    make_base(config.tune, plan.longest)
    return plan


def _scheduler(sweep: Run, plan: Budget, on_progress: OnProgress) -> GoNoGoScheduler:
    """The scheduler, with all that the sweep's journal knows."""
    journal = SweepJournal(sweep.path / JOURNAL)
    past, torn = check_head(sweep), journal.torn()
    journal.mend()
    if torn:
        lines = "1 line was" if torn == 1 else f"{torn} lines were"
        told = f"{lines} cut off in {journal.path} and left out: what stood there is decided again"
        on_progress(Update(trial=SWEEP, messages=(told,)))
    scheduler = GoNoGoScheduler(
        sweep.config, journal.path, base=make_base(sweep.config.tune, plan.longest)
    )
    scheduler.replay(past)
    if not journal.read():
        journal.append(head_line(sweep.run_id, sweep.config))
    return scheduler


def _tuner(sweep: Run, scheduler: GoNoGoScheduler) -> Tuner:
    """A new Tuner, or the one whose files an earlier driver left.

    Tune brings back the trials and what the search has learned; scheduler and search themselves
    are made anew, since those in its files are as they were before the first trial. So are the
    loggers and the number of failures, which the config may name otherwise now.
    """
    config, folder = sweep.config, sweep.path / _TUNE_FOLDER
    search = make_search(config, sweep.run_id, scheduler)
    trainable = tune.with_resources(_trainable(sweep), _OUTER)
    loggers = make_loggers(config.tune.loggers, sweep.run_id, sweep.path)
    failures = tune.FailureConfig(max_failures=config.cluster.max_failures)
    if not _can_restore(sweep, folder, has_trials=bool(scheduler.trials)):
        return Tuner(
            trainable,
            param_space=param_space(config),
            tune_config=TuneConfig(
                scheduler=scheduler, search_alg=search, num_samples=config.tune.samples
            ),
            run_config=tune.RunConfig(
                name=_TUNE_FOLDER,
                storage_path=str(sweep.path),
                failure_config=failures,
                callbacks=loggers,
                verbose=0,
            ),
        )
    again: Any = ResumeConfig.ResumeType.RESUME
    tuner = Tuner.restore(
        str(folder),
        trainable,
        param_space=param_space(config),
        # Who has ended, the scheduler knows better: Tune's snapshot is older than the journal.
        _resume_config=ResumeConfig(finished=again, unfinished=again, errored=again),
    )
    restored: Any = tuner._local_tuner
    restored._tune_config.scheduler = scheduler
    restored._tune_config.search_alg = search
    restored._run_config.callbacks = loggers
    restored._run_config.failure_config = failures
    return tuner


def _can_restore(sweep: Run, folder: Path, *, has_trials: bool) -> bool:
    """Whether Tune left a snapshot that can be read; one that was cut off is moved aside.

    Raises:
        RunError: there is none, but the search has learned from trials that only it knows.
    """
    for file in sorted(folder.glob("experiment_state-*.json"), reverse=True):
        try:
            json.loads(file.read_text("utf-8"))
        except ValueError:
            file.rename(file.with_suffix(".torn"))
            continue
        return Tuner.can_restore(str(folder))
    if has_trials and sweep.config.tune.search != "random":
        raise RunError(
            f"{folder} holds no whole snapshot of Tune, so what {sweep.config.tune.search} had "
            f"learned is lost. The trials are whole: continue one with crossreid train --resume "
            f"{sweep.path}/<trial>, or start a new sweep"
        )
    return False


def _trainable(sweep: Run) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    text, path, name = sweep.config.to_yaml(), str(sweep.path), sweep.run_id

    def trial(config: dict[str, Any]) -> dict[str, Any] | None:
        return run_trial(config, text, path, name)

    return trial


def _ended(
    sweep: Run, results: list[Any], records: dict[str, TrialRecord], was_interrupted: bool
) -> Sweep:
    if was_interrupted:
        rows = tuple(open_row(sweep, key, record) for key, record in records.items())
    else:
        rows = tuple(row_of(sweep, result, records) for result in results)
    rows = tuple(sorted(rows, key=lambda row: row.trial))
    best = best_of(rows, sweep.config.tune.metric)
    if best is not None:
        write_text(sweep.path / BEST_FILE, best_yaml(sweep, best))
    found = Sweep(
        experiment_id=sweep.run_id,
        path=sweep.path,
        rows=rows,
        best=best,
        exit_code=int(ExitCode.INTERRUPTED if was_interrupted else exit_code(rows)),
        decisions={key: short_decisions(record) for key, record in records.items()},
        verdict=STOPPED if was_interrupted else verdict_of(rows),
        is_open=was_interrupted or any(record.outcome is None for record in records.values()),
    )
    write_summary(
        sweep.path,
        {
            "run_id": sweep.run_id,
            "verdict": found.verdict,
            "cause": "",
            "steps": found.steps,
            "steps_saved": found.steps_saved,
            "best": best.trial if best else None,
            "trials": [asdict(row) for row in rows],
        },
    )
    return found
