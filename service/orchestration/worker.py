"""What runs inside a Ray Train worker: the training loop, with its ports joined to Ray.

Torch and the loop are imported inside the function: Ray unpickles it in processes that need
neither.
"""

import contextlib
import json
import logging
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import UserCallback

from service import errors
from service.errors import ClusterError, CrossReidError
from service.orchestration.cluster import first_line
from service.orchestration.control import ControlClient, find_control
from service.orchestration.scalars import scalars
from service.settings import load_text

if TYPE_CHECKING:
    from service.training.ports import Outcome, Ports

PROGRAM_ERROR = "program_error"
"""Cause of an end that is the program's fault."""
_COLLECTIVE_ERRORS = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
_COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


@dataclass(frozen=True, slots=True)
class Job:
    """One training, as it is sent to its workers.

    config: resolved YAML. control: the run, or sweep, whose control plane it uses. key: this
    training there. decides: the loop judges itself; False when a scheduler does.
    """

    config: str
    run_dir: str
    control: str
    key: str
    decides: bool = True


class WorkerFault(Exception):
    """One worker failed in a way that another try would repeat, so it ends the training.

    error: what the user can do about it, as `error_values`; without it the program is to blame.
    """

    def __init__(self, words: str, trace: str, error: dict[str, str] | None = None) -> None:
        super().__init__(words, trace, error)
        self.words = words
        self.trace = trace
        self.error = error

    def __str__(self) -> str:
        return self.words

    @property
    def values(self) -> dict[str, Any]:
        """As `run_worker` returns, or {"fault": ...} for a program's error."""
        if self.error is not None:
            return {"error": self.error}
        return {"fault": {"words": self.words, "trace": self.trace}}


class EndOnFault(UserCallback):
    """Ends the training at a `WorkerFault`; Ray would start the workers again.

    An error raised here is a controller's error for Ray, and those are final. A fault next to a
    process that died is left to the retry.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        found = list(worker_exceptions.values())
        faults = [error for error in found if isinstance(error, WorkerFault)]
        died = any(isinstance(error, RayError) for error in found)
        if faults and not died:
            raise faults[0]


def run_worker(values: dict[str, Any]) -> dict[str, Any]:
    """The train function of every rank. values: a `Job` as a dict.

    Returns {"outcome": ...}, or {"error": ...} for what the user must act on: neither is retried.

    Raises:
        WorkerFault: the program failed, or this rank alone ran out of memory.
        RuntimeError: another process was lost; Ray starts all workers again.
    """
    job = Job(**values)
    _quieten_ray()
    try:
        return {"outcome": _train(job).to_dict()}
    except CrossReidError as error:
        return {"error": error_values(error)}
    except Exception as error:
        if is_lost_peer(error):
            raise
        raise fault_of(error) from error


def fault_of(error: Exception) -> WorkerFault:
    """What `error`, which is being handled, means for the training."""
    words, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    if "OutOfMemoryError" not in _kinds(error):
        return WorkerFault(words, trace)
    told = ClusterError(
        f"a worker is out of memory: {first_line(error)}; lower sampler.ids_per_batch, raise "
        "cluster.num_workers, or set train.precision=bf16"
    )
    return WorkerFault(words, trace, error_values(told))


def error_values(error: CrossReidError) -> dict[str, str]:
    """An error as values that cross processes."""
    return {"type": type(error).__name__, "message": str(error)}


def rebuilt(values: dict[str, str]) -> CrossReidError:
    """The error that `error_values` described."""
    kind = getattr(errors, values["type"], CrossReidError)
    return kind(values["message"])


def error_name(error: Exception) -> str:
    """What an error that ended a trial is called, on metrics and in tables."""
    return error.name if isinstance(error, CrossReidError) else PROGRAM_ERROR


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process went away."""
    if _kinds(error) & _COLLECTIVE_ERRORS:
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in words for word in _COLLECTIVE_WORDS)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _train(job: Job) -> "Outcome":
    import torch
    from ray.train.torch import get_device

    from service.distributed import Distributed
    from service.training.loop import train

    config = load_text(job.config, name="the run's config")
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    rank = ray.train.get_context().get_world_rank()
    client = _client(job) if rank == 0 else None
    device = get_device()
    assert isinstance(device, torch.device)
    world = Distributed.adopt(device)
    return train(config, Path(job.run_dir), world, _ports(job, client))


def _client(job: Job) -> ControlClient:
    client = ControlClient(find_control(job.control), job.key)
    group = ray.util.get_current_placement_group()
    client.report({"event": "workers", "placement_group": group})
    return client


def _ports(job: Job, client: ControlClient | None) -> "Ports":
    from service.training.ports import Ports

    report = ray.train.report if job.decides else _report_to_tune
    if client is None:
        return Ports(report=report, decides=job.decides)

    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        client.tell({"step": step, "total": total, "line": line}, at_once=step >= total)

    return Ports(
        report=report,
        poll=client.poll,
        progress=progress,
        event=client.report,
        decides=job.decides,
    )


def _report_to_tune(payload: dict[str, Any]) -> None:
    """Health as text, because Tune takes nested mappings apart before its scheduler sees them; its
    numbers also one by one, for Tune's searches and loggers."""
    health = payload["health"]
    ray.train.report({**payload, **scalars(health), "health": json.dumps(health)})


def _quieten_ray() -> None:
    """Ray logs a line for every report of every rank; its level has no setting."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray.train.v2._internal.execution import context

        context.logger.setLevel(logging.WARNING)
