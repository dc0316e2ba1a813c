"""A sweep: Ray Tune starts trials, each nests a Ray Train run, the scheduler judges them."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from ray import PlacementGroupID, tune
from ray.tune import TuneConfig, Tuner
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import BasicVariantGenerator
from ray.util.placement_group import remove_placement_group

from service.config import Config
from service.data.fitting import open_plan
from service.decisions import Decision, Verdict
from service.errors import CrossReidError, ExitCode, RunError
from service.orchestration.background import Background
from service.orchestration.cluster import connected, require
from service.orchestration.control import ControlReader, start_control
from service.orchestration.monitor import Monitor
from service.orchestration.progress import OnProgress, Update, ignore
from service.orchestration.runs import (
    Run,
    create_run,
    make_run,
    open_run,
    plan_run,
    read_summary,
    write_summary,
)
from service.orchestration.scheduler import GoNoGoScheduler, TrialRecord
from service.orchestration.space import check_space, num_trials, param_space, with_sample
from service.orchestration.train import LOOK_S, ended, exporter_lease, fit, stop_trials
from service.orchestration.worker import Job, error_values, rebuilt
from service.telemetry.logs import redacted
from service.training.files import write_text

JOURNAL = "decisions.jsonl"
BEST_FILE = "best.yaml"
SWEEP = "sweep"
"""The key under which messages about the whole sweep reach `on_progress`."""
_OUTER = {"CPU": 0, "node:__internal_head__": 0.001}
"""A trial's own process only waits. Tune refuses a request for nothing at all."""
_GONE_S = 5.0
"""Seconds after which a killed trial's controller is dead and starts no workers again."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trial's line in the final table.

    verdict: GO, NO_GO, WAIT, STOPPED, INTERRUPTED, ERROR or UNKNOWN. cause: in words. exit_code:
    that of an ERROR, as if the trial had been trained alone.
    """

    trial: str
    sample: dict[str, Any]
    verdict: str
    cause: str = ""
    remedy: str = ""
    steps: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Sweep:
    """How a sweep ended. best: the row whose config is in `best.yaml`, if any trial got GO."""

    experiment_id: str
    path: Path
    rows: tuple[Row, ...]
    best: Row | None
    exit_code: int


def launch_tuning(
    config: Config, *, experiment_id: str | None = None, on_progress: OnProgress = ignore
) -> Sweep:
    """Runs the sweep of `config.tune` and waits for its end.

    The trials' run folders are `<storage>/<experiment id>/<trial id>/`. A KeyboardInterrupt stops
    all trials and ends with exit code INTERRUPTED.

    Raises:
        ConfigError: the space does not fit the settings.
        RunError: the name is taken.
        ClusterError: the cluster is too small for the concurrent trials, or not reachable.
    """
    check_space(config)
    sweep = plan_run(config, experiment_id, can_resume=False)
    config = sweep.config
    together = min(config.tune.max_concurrent, num_trials(config))
    open_plan(config, config.cluster.num_workers)
    with connected(config.cluster) as cluster:
        require(config.cluster, trials=together)
        make_run(sweep)
        control = start_control(f"control-{sweep.run_id}")
        reader = ControlReader(control)
        scheduler = GoNoGoScheduler(config, sweep.path / JOURNAL)
        with exporter_lease(config, sweep.run_id, local=cluster.local) as exporter:
            monitor = Monitor(config.policy, exporter, on_progress)
            scheduler.attach(reader.put, lambda key, _, decision: monitor.decided(key, decision))
            place = f"; metrics at {exporter.address}" if exporter else ""
            head = f"{sweep.run_id} with {num_trials(config)} trials in {sweep.path}{place}"
            on_progress(Update(trial=SWEEP, messages=(head,)))
            tuner = _tuner(sweep, scheduler, together)
            watch = _Watch(Background(tuner.fit), scheduler, monitor, reader)
            results, was_interrupted = watch.until_end()
        return _ended(sweep, results, scheduler.trials, was_interrupted)


def _tuner(sweep: Run, scheduler: GoNoGoScheduler, together: int) -> Tuner:
    config = sweep.config
    return Tuner(
        tune.with_resources(_trainable(sweep), _OUTER),
        param_space=param_space(config),
        tune_config=TuneConfig(
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(max_concurrent=together, random_state=config.run.seed),
            num_samples=config.tune.samples,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(sweep.path),
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
            verbose=0,
        ),
    )


def _trainable(sweep: Run) -> Callable[[dict[str, Any]], dict[str, Any]]:
    text, path, name = sweep.config.to_yaml(), str(sweep.path), sweep.run_id

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        return run_trial(config, text, path, f"control-{name}")

    return trial


def run_trial(sample: dict[str, Any], text: str, path: str, control: str) -> dict[str, Any]:
    """One trial, in the process that Tune starts for it: its final report to Tune.

    text: the sweep's config. path: the sweep's folder. control: the control plane's name.
    """
    from service.settings import load_text

    trial_id = tune.get_context().get_trial_id()
    try:
        config = with_sample(load_text(text), sample)
        run = _trial_run(config, trial_id, Path(path))
        job = Job(run.config.to_yaml(), str(run.path), control, trial_id, decides=False)
        outcome = ended(run, fit(config, job, (TuneReportCallback(),)))
    except CrossReidError as error:
        return {"outcome": json.dumps({"error": error_values(error)})}
    return {"outcome": json.dumps(outcome.to_dict())}


def _trial_run(config: Config, trial_id: str, sweep: Path) -> Run:
    """The trial's run; Tune starts a trial again whose process was lost."""
    if (sweep / trial_id).is_dir():
        return open_run(str(sweep / trial_id))
    return create_run(config, trial_id, sweep)


class _Watch:
    """The driver's main thread during a sweep."""

    def __init__(
        self,
        task: Background[tune.ResultGrid],
        scheduler: GoNoGoScheduler,
        monitor: Monitor,
        reader: ControlReader,
    ) -> None:
        self._task = task
        self._scheduler = scheduler
        self._monitor = monitor
        self._reader = reader
        self._quiet_since: dict[str, float] = {}
        self._removed: set[PlacementGroupID] = set()

    def until_end(self) -> tuple[list[Any], bool]:
        """Tune's results, and whether the user interrupted; no results then."""
        try:
            while not self._task.wait(LOOK_S):
                self._look()
                self._free()
            self._look()
            while not self._free():
                time.sleep(LOOK_S)
                self._look()
            results = self._task.result()
            return [results[i] for i in range(len(results))], False
        except KeyboardInterrupt:
            self._scheduler.is_closed = True
            with contextlib.suppress(KeyboardInterrupt):
                stop_trials(self._task, self._monitor, self._reader)
            return [], True

    def _look(self) -> None:
        """What a trial told before it ended is heard before it counts as ended."""
        ended = tuple(self._scheduler.ended)
        self._monitor.look(self._reader)
        for key in ended:
            self._monitor.ended(key)

    def _free(self) -> bool:
        """Gives back what killed trials still hold; True when there is nothing left to give.

        Trials that stopped by themselves hold nothing. Ray's own cleaner does this only where its
        dashboard runs. A controller that dies slowly may start workers once more, so every group
        that a killed trial ever told of is taken, until none has come for `_GONE_S`.
        """
        now = time.monotonic()
        for key, record in list(self._scheduler.trials.items()):
            if not record.killed:
                continue
            quiet_since = self._quiet_since.setdefault(key, now)
            held = [g for g in self._monitor.placement_groups(key) if g.id not in self._removed]
            if held and now - quiet_since >= _GONE_S:
                self._quiet_since[key] = now
                for group in held:
                    self._removed.add(group.id)
                    remove_placement_group(group)
        return all(now - since >= _GONE_S for since in self._quiet_since.values())


def _ended(
    sweep: Run, results: list[Any], records: dict[str, TrialRecord], was_interrupted: bool
) -> Sweep:
    if was_interrupted:
        rows = tuple(_stopped(key, record) for key, record in records.items())
    else:
        rows = tuple(_row(sweep, result, records) for result in results)
    best = _best(rows)
    if best is not None:
        write_text(sweep.path / BEST_FILE, _best_yaml(sweep, best))
    code = ExitCode.INTERRUPTED if was_interrupted else _exit_code(rows)
    write_summary(
        sweep.path,
        {
            "run_id": sweep.run_id,
            "verdict": "STOPPED" if was_interrupted else ("GO" if best else "NO_GO"),
            "cause": "",
            "steps": sum(row.steps for row in rows),
            "best": best.trial if best else None,
            "trials": [asdict(row) for row in rows],
        },
    )
    return Sweep(sweep.run_id, sweep.path, rows, best, int(code))


def _row(sweep: Run, result: Any, records: dict[str, TrialRecord]) -> Row:
    """A trial's line, and its verdict in its own summary.json: the loop there did not judge."""
    metrics: dict[str, Any] = result.metrics or {}
    # A trial that never reported has no metrics; its folder at Tune is named after it.
    trial = metrics.get("trial_id") or Path(result.path or "unknown").name
    row = Row(trial=trial, sample=dict(result.config or {}), verdict="UNKNOWN")
    outcome = json.loads(metrics.get("outcome", "{}"))
    if "error" in outcome:
        return _erred(row, rebuilt(outcome["error"]))
    if result.error is not None and not outcome:
        return replace(row, verdict="ERROR", cause=_last_line(result.error), exit_code=1)
    if outcome.get("verdict") == "ERROR":
        told, remedy = outcome["words"], outcome["remedy"]
        return replace(row, verdict="ERROR", cause=told, remedy=remedy, exit_code=1)
    record = records.get(trial)
    try:
        summary = read_summary(sweep.path / trial) or {}
    except RunError as error:
        return _erred(row, error)
    row = _judged(row, record.verdict if record else None)
    row = replace(row, steps=summary.get("steps", record.step if record else 0))
    if summary:
        summary |= {"verdict": row.verdict, "cause": row.cause}
        write_summary(sweep.path / trial, summary)
    return replace(row, summary=summary)


def _erred(row: Row, error: CrossReidError) -> Row:
    words, code = redacted(str(error)), int(error.exit_code)
    return replace(row, verdict="ERROR", cause=words, exit_code=code)


def _last_line(error: BaseException) -> str:
    """Where Ray's long texts name the cause; the error's kind when there is no text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redacted(lines[-1].strip()) if lines else type(error).__name__


def _stopped(key: str, record: TrialRecord) -> Row:
    """The line of a trial in a sweep that the user stopped."""
    row = Row(trial=key, sample=record.sample, verdict="STOPPED", steps=record.step)
    return _judged(row, record.verdict)


def _judged(row: Row, decision: Decision | None) -> Row:
    if decision is None:
        return row
    verdict = decision.verdict
    if verdict in (Verdict.GO, Verdict.RAISE, Verdict.HOLD):
        return replace(row, verdict="GO", cause=decision.words)
    return replace(row, verdict=str(verdict), cause=decision.words, remedy=decision.remedy)


def _best(rows: tuple[Row, ...]) -> Row | None:
    """The GO trial with the highest mean mAP, or without evaluation the lowest cross-entropy."""

    def merit(row: Row) -> tuple[float, float]:
        found = row.summary.get("mAP", {}).get("mean", 0.0)
        return found, -row.summary.get("ce_fraction", 1.0)

    return max((row for row in rows if row.verdict == "GO"), key=merit, default=None)


def _best_yaml(sweep: Run, best: Row) -> str:
    """The best trial's config as a file that trains it alone."""
    config = with_sample(sweep.config, best.sample)
    values = config.model_dump(mode="json")
    values.pop("tune")
    head = f"# crossreid train {sweep.path / BEST_FILE}\n#\n# The best trial of {sweep.run_id}.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _exit_code(rows: tuple[Row, ...]) -> int:
    """OK when a trial got GO; else NO_GO when one was judged; else the worst that `train` says."""
    verdicts = {row.verdict for row in rows}
    if "GO" in verdicts:
        return ExitCode.OK
    if "NO_GO" in verdicts:
        return ExitCode.NO_GO
    codes = [row.exit_code for row in rows if row.exit_code]
    return min(codes, default=int(ExitCode.USER_ERROR))
