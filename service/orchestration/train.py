"""Training from the driver: a run folder, Ray Train workers, and an eye on them until they end."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from service.config import Config
from service.data.fitting import open_plan
from service.decisions import Directive
from service.errors import ClusterError
from service.orchestration.background import Background
from service.orchestration.cluster import connected, first_line, require
from service.orchestration.control import ControlReader, start_control
from service.orchestration.monitor import Monitor
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore
from service.orchestration.runs import (
    Run,
    interrupted,
    resume_or_plan,
    resume_words,
    taken,
)
from service.orchestration.serving import served
from service.orchestration.sinks import check_sinks, followed
from service.orchestration.trials import INTERRUPTED
from service.orchestration.worker import (
    PROGRAM_ERROR,
    EndOnFault,
    Job,
    WorkerFault,
    error_name,
    rebuilt,
    run_worker,
)
from service.telemetry.exporter import ExporterLease
from service.telemetry.logs import redacted
from service.training.ending import STOPPED
from service.training.files import write_text
from service.training.ports import Outcome

LOOK_S = 0.5
"""Seconds between two looks at the trials."""
STOP_S = 15.0
"""Seconds that an interrupted run has to write its checkpoint."""
START_TRIES = 10
"""Worker groups that may fail to start, at about a minute each, before the run gives up."""
_RAY_FOLDER = "ray"


def launch_training(
    config: Config | None,
    *,
    run_id: str | None = None,
    resume: str | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[Run, Outcome]:
    """Trains one run on Ray and waits for its end.

    config: may be None only with `resume`. run_id: the new run's name, made here when None.
    resume: continues this run instead.

    Returns the run and how it ended; a KeyboardInterrupt on the way ends as verdict INTERRUPTED.

    Raises:
        RunError: the name is taken, or the run to resume is unknown, ended or another.
        ClusterError: the cluster is too small or not reachable, or workers were lost too often.
        CrossReidError: what the workers found wrong with config, data or numbers.
    """
    run = resume_or_plan(config, run_id, resume)
    open_plan(run.config, run.config.cluster.num_workers)
    check_sinks(run.config)
    with connected(run.config.cluster) as cluster, ExitStack() as stack:
        require(run.config.cluster)
        stack.enter_context(taken(run, new=resume is None))
        control = start_control(run.run_id)
        reader = ControlReader(control)
        exporter = stack.enter_context(served(run, cluster, on_progress, MAIN_TRIAL))
        sinks = stack.enter_context(followed(run, on_progress, MAIN_TRIAL))
        monitor = Monitor(run.config, exporter, on_progress, sinks)
        _announce(on_progress, run, exporter)
        job = Job(
            config=run.config.to_yaml(),
            run_dir=str(run.path),
            control=run.run_id,
            key=MAIN_TRIAL,
        )
        return run, _watch(run, Background(lambda: fit(run.config, job)), monitor, reader)


def fit(
    config: Config,
    job: Job,
    callbacks: tuple[UserCallback, ...] = (),
    worker: Callable[[dict[str, Any]], dict[str, Any]] = run_worker,
) -> dict[str, Any]:
    """Runs the workers to their end; what rank 0 returned, or what the fault of a rank says.

    Ray keeps a marker in `<run dir>/ray` meanwhile. Checkpoints are the loop's and unknown to Ray,
    so that a second call for the same run goes on where the loop's last checkpoint is.

    Raises:
        ClusterError: workers were lost too often, or could not be started.
    """
    trainer = TorchTrainer(
        worker,
        train_loop_config=asdict(job),
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name=_RAY_FOLDER,
            storage_path=job.run_dir,
            failure_config=FailureConfig(
                max_failures=config.cluster.max_failures,
                controller_failure_limit=START_TRIES,
            ),
            callbacks=[EndOnFault(), *callbacks],
        ),
    )
    try:
        returned = trainer.fit().return_value
    except TrainingFailedError as error:
        return _failed(config, job.run_dir, error)
    except RayError as error:
        raise ClusterError(
            f"the training's controller was lost: {first_line(error)}; continue with "
            f"{resume_words(Path(job.run_dir))}"
        ) from error
    assert isinstance(returned, dict)
    shutil.rmtree(Path(job.run_dir) / _RAY_FOLDER, ignore_errors=True)
    return returned


def ended(run: Run, returned: dict[str, Any]) -> Outcome:
    """The outcome in what `fit` returned.

    Raises:
        CrossReidError: the one that the workers returned.
    """
    if "error" in returned:
        raise rebuilt(returned["error"])
    if "fault" in returned:
        write_text(run.path / "error.txt", redacted(returned["fault"]["trace"]))
        return Outcome(
            verdict="ERROR",
            cause=PROGRAM_ERROR,
            words=redacted(returned["fault"]["words"]),
            remedy=f"this is a fault of the program; its traceback is in {run.path / 'error.txt'}",
            exit_code=1,
            summary={},
        )
    return Outcome(**returned["outcome"])


def _announce(on_progress: OnProgress, run: Run, exporter: ExporterLease | None) -> None:
    lines = [f"run {run.run_id} in {run.path}"]
    if exporter is not None:
        note = f"; {exporter.note}" if exporter.note else ""
        lines.append(f"metrics at {exporter.address}{note}")
    lines.append(f"starting {run.config.cluster.num_workers} workers")
    on_progress(Update(trial=MAIN_TRIAL, messages=tuple(lines)))


def _watch(
    run: Run, task: Background[dict[str, Any]], monitor: Monitor, reader: ControlReader
) -> Outcome:
    """Looks at the run until it ends, and tells the monitor how.

    Raises:
        Exception: the one that ended it.
    """
    try:
        outcome = _looked_at(run, task, monitor, reader)
        if outcome.verdict == "ERROR":
            monitor.failed(MAIN_TRIAL, outcome.cause)
        return outcome
    except Exception as error:
        monitor.failed(MAIN_TRIAL, error_name(error))
        raise
    finally:
        monitor.ended(MAIN_TRIAL)


def _looked_at(
    run: Run, task: Background[dict[str, Any]], monitor: Monitor, reader: ControlReader
) -> Outcome:
    """How the run ended; an interrupt asks it to stop and waits for its checkpoint.

    A run that ends by itself all the same ends as it would have without the interrupt.
    """
    try:
        while not task.wait(LOOK_S):
            monitor.look(reader)
        monitor.look(reader)
        return ended(run, task.result())
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            stop_trials(task, monitor, reader, lambda: (MAIN_TRIAL,))
        outcome = ended(run, task.result()) if task.wait(0) else None
        return interrupted(run) if outcome is None or outcome.verdict == STOPPED else outcome


def stop_trials(
    task: Background[Any],
    monitor: Monitor,
    reader: ControlReader,
    going: Callable[[], Iterable[str]],
) -> None:
    """Asks trials to write their checkpoint and stop; waits at most `STOP_S` for `task`.

    going: the keys of those that may still run. One whose workers are yet to come up finds the
    request when they do. While no trial's workers have come up, there is nothing to wait for.
    """
    until = time.monotonic() + STOP_S
    while not task.wait(0) and time.monotonic() < until:
        for key in going():
            # Again at every look: a control plane that was lost meanwhile has forgotten it.
            reader.put(key, Directive.to_stop(0, INTERRUPTED))
        task.wait(LOOK_S)
        monitor.look(reader)
        if not monitor.started:
            return


def _scaling(config: Config) -> ScalingConfig:
    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ScalingConfig(
        num_workers=cluster.num_workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _failed(config: Config, run_dir: str, error: TrainingFailedError) -> dict[str, Any]:
    """A worker's fault as a value, everything else as an error about the cluster."""
    again = resume_words(Path(run_dir))
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, WorkerFault):
            return cause.values
        raise ClusterError(
            f"the workers could not be started: {first_line(cause)}; needed are "
            f"{config.cluster.num_workers} workers with {config.cluster.cpus_per_worker:g} CPUs "
            f"and {config.cluster.gpus_per_worker:g} GPUs each. Wait until others have ended, or "
            f"lower cluster.num_workers, and continue with {again}"
        ) from error
    found = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    lost = "; ".join(f"rank {rank}: {first_line(e)}" for rank, e in sorted(found.items()))
    raise ClusterError(
        f"workers were lost more than cluster.max_failures={config.cluster.max_failures} times; "
        f"the last time {lost or first_line(error)}. Continue with {again} once the machines "
        "are well; killed workers often ran out of memory"
    ) from error
