"""Training from the driver: a run folder, Ray Train workers, and an eye on them until they end."""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.exceptions import ActorUnschedulableError, RayActorError, RayError
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

from service.background import Background
from service.config import ClusterConfig, Config
from service.data.fitting import plan_for_all
from service.decisions import Directive
from service.errors import ClusterError
from service.orchestration.cluster import connected, first_line
from service.orchestration.control import ControlReader, start_control
from service.orchestration.failures import Loss, OnFailure, tell_loss
from service.orchestration.monitor import Monitor
from service.orchestration.network import Meeting
from service.orchestration.orphans import end_actor, free_orphans
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore, teller
from service.orchestration.resizing import ClearStuckStart, LimitStarts, SaveFirst, TellWaiting
from service.orchestration.room import require, worker_resources
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
    Job,
    WorkerFault,
    error_name,
    rebuilt,
    run_worker,
)
from service.rollcall import backstop_s, is_lost_peer
from service.telemetry.exporter import ExporterLease
from service.telemetry.logs import redacted
from service.training.ending import STOPPED
from service.training.files import write_text
from service.training.journal import last_attempt, read_journal
from service.training.ports import Outcome

LOOK_S = 0.5
"""Seconds between two looks at the trials."""
STOP_S = 15.0
"""Least seconds that an interrupted run has to say that it stops."""
STOP_STEPS = 4
"""Steps that it has, if those take longer: it asks before a step, and hears the answer before the
next one."""
_STOPPING = "stopping, once a checkpoint is written; interrupt again to leave without it"
ROOM_S = 600.0
"""Seconds without room for its workers after which a run gives up, unless `cluster.wait_s` is
more."""
START_S = 180.0
"""Seconds that workers have to be made, beyond those in which they find out who hangs: Ray waits a
minute for their room, and a busy machine more than one for what they import."""
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
    plan_for_all(run.config)
    check_sinks(run.config)
    with connected(run.config.cluster) as cluster, ExitStack() as stack:
        require(run.config.cluster, say=teller(on_progress, MAIN_TRIAL))
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
            told=last_attempt(read_journal(run.path)),
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
    so that a second call for the same run goes on where the loop's last checkpoint is. So does this
    one when the controller is lost, `cluster.max_failures` times at most; each time as many workers
    may be lost again, less one.

    Raises:
        ClusterError: workers or the controller were lost too often, or workers could not be
            started.
    """
    for left in reversed(range(config.cluster.max_failures + 1)):
        try:
            returned = _trainer(config, job, callbacks, worker, left).fit().return_value
            break
        except TrainingFailedError as error:
            if not left or not _is_lost_at_start(error):
                return _failed(config, job.run_dir, error)
            tell_loss(job, Loss((), "a worker was lost before all had begun to train"))
            free_orphans()
        except RayError as error:
            if not left or not isinstance(error, RayActorError):
                raise ClusterError(
                    "the training's controller was lost, more than cluster.max_failures="
                    f"{config.cluster.max_failures} times or for good: {first_line(error)}; "
                    f"continue with {resume_words(Path(job.run_dir))}"
                ) from error
            tell_loss(job, Loss((), "the controller of the training was lost"))
            end_actor(error.actor_id)
            free_orphans()
    assert isinstance(returned, dict)
    shutil.rmtree(Path(job.run_dir) / _RAY_FOLDER, ignore_errors=True)
    return returned


def _trainer(
    config: Config,
    job: Job,
    callbacks: tuple[UserCallback, ...],
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    left: int,
) -> TorchTrainer:
    """left: times that workers may still be lost."""
    cluster = config.cluster
    limit_s = cluster.collective_timeout_s
    # Ray takes its own internal kind of callback there too.
    listeners: list[Any] = [
        *(OnFailure(job), SaveFirst(job), TellWaiting(job, cluster.fewest_workers)),
        *(LimitStarts(job, max(ROOM_S, cluster.wait_s)), ClearStuckStart(job, start_s(limit_s))),
        *callbacks,
    ]
    return TorchTrainer(
        worker,
        train_loop_config=asdict(job),
        # NCCL's own limit ends the process; the loop's flags wait for less, and say who is missing.
        torch_config=Meeting(
            timeout_s=math.ceil(backstop_s(limit_s) if cluster.gpus_per_worker else limit_s)
        ),
        scaling_config=_scaling(cluster),
        run_config=RunConfig(
            name=_RAY_FOLDER,
            storage_path=job.run_dir,
            # Starts that fail are counted by `LimitStarts`.
            failure_config=FailureConfig(max_failures=left, controller_failure_limit=-1),
            callbacks=listeners,
        ),
    )


def start_s(limit_s: float) -> float:
    """Seconds after which workers that do not begin to train hang, where a collective may take
    `limit_s`."""
    return START_S + backstop_s(limit_s)


def ended(run: Run, returned: dict[str, Any]) -> Outcome:
    """The outcome in what `fit` returned.

    Raises:
        CrossReidError: the one that the workers returned.
    """
    if "error" in returned:
        raise rebuilt(returned["error"])
    if "fault" in returned:
        # A full disk may be the fault.
        with contextlib.suppress(OSError):
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
    cluster = run.config.cluster
    few, many = cluster.fewest_workers, cluster.num_workers
    number = str(many) if few == many else f"{few} to {many}"
    lines.append(f"starting {number} worker{'' if number == '1' else 's'}")
    on_progress(Update(trial=MAIN_TRIAL, messages=tuple(lines), folder=str(run.path)))


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
    """Asks trials to write their checkpoint and stop; waits for `task` at most `STOP_S`, or
    `STOP_STEPS`, until one of them heeds it, and then for as long as the checkpoint takes, or until
    the next interrupt.

    going: the keys of those that may still run. One whose workers are yet to come up finds the
    request when they do. While no trial's workers have come up, there is nothing to wait for.
    """
    began = time.monotonic()
    if monitor.started and not task.wait(0):
        monitor.say(_STOPPING)
    while not task.wait(0) and (
        monitor.is_saving or time.monotonic() - began < max(STOP_S, STOP_STEPS * monitor.step_s)
    ):
        for key in going():
            # Again at every look: a control plane that was lost meanwhile has forgotten it.
            reader.put(key, Directive.to_stop(0, INTERRUPTED))
        task.wait(LOOK_S)
        monitor.look(reader)
        if not monitor.started:
            return


def _scaling(cluster: ClusterConfig) -> ScalingConfig:
    few, many = cluster.fewest_workers, cluster.num_workers
    return ScalingConfig(
        num_workers=many if few == many else (few, many),
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=worker_resources(cluster),
        elastic_resize_monitor_interval_s=cluster.resize_s,
    )


def _is_lost_at_start(error: TrainingFailedError) -> bool:
    """Whether workers missed each other at their meeting, or one ended as it was told to train:
    Ray takes both for faults of its own.

    It tries again by itself when it hears of a death before that.
    """
    if not isinstance(error, ControllerError):
        return False
    cause = error.controller_failure
    return isinstance(cause, RayActorError | ActorUnschedulableError) or is_lost_peer(cause)


def _failed(config: Config, run_dir: str, error: TrainingFailedError) -> dict[str, Any]:
    """A worker's fault as a value, everything else as an error about the cluster."""
    again = resume_words(Path(run_dir))
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, WorkerFault):
            return cause.values
        raise ClusterError(
            f"the workers could not be started: {first_line(cause)}; needed are "
            f"{config.cluster.fewest_workers} workers with {config.cluster.cpus_per_worker:g} CPUs "
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
