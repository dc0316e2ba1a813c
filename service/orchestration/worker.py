"""What runs inside a Ray Train worker: the training loop, with its ports joined to Ray.

Torch and the loop are imported inside the function: Ray unpickles it in processes that need
neither.
"""

import contextlib
import json
import logging
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayError

from service import errors
from service.errors import ClusterError, CrossReidError, LostRankError, StillWrittenError
from service.orchestration.alone import PATIENCE_S, writing_alone
from service.orchestration.cluster import first_line
from service.orchestration.control import ControlClient, find_control
from service.orchestration.fence import cut_off_s, fenced
from service.orchestration.scalars import scalars
from service.orchestration.versions import unfit
from service.rollcall import is_lost_peer, name_of_this_process
from service.settings import load_text

if TYPE_CHECKING:
    from service.training.ports import Outcome, Ports

_DEVICE_WORDS = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "no cuda-capable device",
    "device(s) is/are busy or unavailable",
)
"""What CUDA calls faults of the machine (cudaGetErrorString)."""
PROGRAM_ERROR = "program_error"
"""Cause of an end that is the program's fault."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training, as it is sent to its workers.

    config: resolved YAML. control: the run, or sweep, whose control plane it uses. key: this
    training there. told: the run's last attempt before the command that sends this; its end, and
    those before it, the user has heard of. decides: the loop judges itself; False when a scheduler
    does.
    """

    config: str
    run_dir: str
    control: str
    key: str
    told: int = 0
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


def run_worker(values: dict[str, Any]) -> dict[str, Any]:
    """The train function of every rank. values: a `Job` as a dict.

    Returns {"outcome": ...}, or {"error": ...} for what the user must act on: neither is retried.

    Raises:
        WorkerFault: the program failed, this rank alone ran out of memory, or it has other versions
            of Python, Ray or torch than its job was submitted with.
        LostRankError: another process hangs or has ended, or this rank's GPU failed; Ray starts all
            workers again.
        RuntimeError: it did so before the ranks had found each other.
    """
    job = Job(**values)
    if found := unfit(f"the worker with {name_of_this_process()}"):
        raise WorkerFault(found, "", error_values(ClusterError(found)))
    _quieten_ray()
    try:
        return {"outcome": _train(job).to_dict()}
    except LostRankError:
        raise
    except StillWrittenError as error:
        raise LostRankError(str(error)) from error
    except RayError as error:
        raise LostRankError(f"Ray lost what the ranks meet at: {first_line(error)}") from error
    except CrossReidError as error:
        return {"error": error_values(error)}
    except Exception as error:
        if is_lost_peer(error):
            raise
        if is_lost_device(error):
            told = f"the GPU of {name_of_this_process()} failed: {first_line(error)}"
            raise LostRankError(told) from error
        raise fault_of(error) from error


def is_lost_device(error: Exception) -> bool:
    """Whether a GPU failed, and not what was computed on it."""
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in words for word in _DEVICE_WORDS)


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
    device = get_device()
    assert isinstance(device, torch.device)
    world = Distributed.adopt(device, config.cluster.collective_timeout_s)
    client = _client(job, world.world) if world.rank == 0 else None
    silent_s = cut_off_s()
    folder = Path(job.run_dir)

    def waits(holder: str) -> None:
        assert client is not None
        client.report({"event": "locked", "holder": holder})

    alone = writing_alone(folder, world, silent_s + PATIENCE_S, waits)
    with fenced(ray.nodes, limit_s=silent_s), world.names_the_lost(), alone:
        return train(config, folder, world, _ports(job, client), told=job.told)


def _client(job: Job, world: int) -> ControlClient:
    client = ControlClient(find_control(job.control), job.key)
    client.report({"event": "workers", "world_size": world})
    return client


def _ports(job: Job, client: ControlClient | None) -> "Ports":
    from service.training.ports import Ports

    report = ray.train.report if job.decides else _report_to_tune
    if client is None:
        return Ports(report=report, leaving=leaving_machines, decides=job.decides)

    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        client.tell({"step": step, "total": total, "line": line}, at_once=step >= total)

    def leaving() -> str:
        return "; ".join(part for part in (leaving_machines(), client.announced()) if part)

    return Ports(
        report=report,
        poll=client.poll,
        progress=progress,
        event=client.report,
        leaving=leaving,
        decides=job.decides,
    )


def leaving_machines() -> str:
    """Which machines will be taken away soon; every rank of a Ray Train worker group calls it.

    Nobody watches for them where this command started Ray itself: the answer costs nothing there.
    """
    if os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == "0":
        return ""
    found = ray.train.get_preemption_info()
    if found is None:
        return ""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    told = sorted({names.get(node, node) for node in found.preempted_node_ids})
    return f"{', '.join(told)} will be taken away"


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
