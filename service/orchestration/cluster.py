"""Reaching a Ray cluster, or starting one on this machine."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayTaskError

from service.config import ClusterConfig
from service.errors import ClusterError
from service.orchestration.interrupts import terminated_as_interrupted
from service.rollcall import backstop_s

NAMESPACE = "crossreid"
_CONNECT_S = 5.0
_START_S = 10.0
"""Seconds that a group of a changing number of workers has to find its machines."""
_STORE_BYTES = 200_000_000
"""Object store of a cluster started here: data sets do not go through it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """local: this process started it, and it ends with this process."""

    address: str
    local: bool


def environment(config: ClusterConfig) -> dict[str, str]:
    """Variables that Ray's own processes read, on the driver, the controller and the workers."""
    limit_s = config.collective_timeout_s
    values = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(config.poll_s),
        # Ray's own barriers, at reports, wait for ever where nobody says otherwise.
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(limit_s),
        # Finds the worker that hangs where no other one waits for it.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(backstop_s(limit_s)),
        # Whole seconds; a worker that hangs does not leave its process group either.
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Seconds: what a sweep's driver that is lost may have made since Tune's last snapshot.
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    if config.fewest_workers < config.num_workers:
        # A machine that died is counted on for that long, before fewer workers are tried.
        values["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_START_S)
    return values


@contextlib.contextmanager
def connected(config: ClusterConfig) -> Iterator[Cluster]:
    """A connection to the cluster that `config` names, closed at the end.

    `cluster.address`, else RAY_ADDRESS, else a cluster on this machine that ends with this block.
    A connection that this process already has is used and left open. Meanwhile SIGTERM is a
    KeyboardInterrupt.

    A cluster started here has no dashboard page. Its processes (GCS, raylet, agents, workers)
    listen on all of this machine's addresses, mostly at free ports, and answer only to the token
    that Ray keeps in ~/.ray/auth_token. Without it Ray still serves numbers about itself on ports
    44217 and 44227; the third such port, of the node's metrics, is closed.

    Raises:
        ClusterError: the cluster cannot be reached or started, refuses the token, or would have to
            be started without one.
    """
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    values = environment(config)
    if address == "local":
        _require_token()
        # Nothing takes this machine away with a warning: one actor less to start.
        values["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        # A cluster that we start tells nobody outside that it runs.
        values["RAY_USAGE_STATS_ENABLED"] = "0"
        values["RAY_enable_metrics_collection"] = "0"
    _require_answer(address)
    with _set(values):
        if ray.is_initialized():
            yield Cluster(ray.get_runtime_context().gcs_address, local=False)
            return
        _silence_raylet()
        try:
            _init(address, values)
            # After `ray.init`, which sets a handler of Ray's own that exits at once.
            with terminated_as_interrupted():
                yield Cluster(ray.get_runtime_context().gcs_address, local=address == "local")
        finally:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuses at once an address where nobody listens; Ray itself tries for many minutes.

    Raises:
        ClusterError: nobody answers there.
    """
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if not sign or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterError(
            f"nobody answers at {address}: {error.strerror or error}; check that the cluster runs, "
            "and that cluster.address or RAY_ADDRESS is its head"
        ) from error


def _init(address: str, values: dict[str, str]) -> None:
    quiet = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        if address == "local":
            ray.init(address="local", **own, **quiet)
        else:
            ray.init(address=address, runtime_env={"env_vars": values}, **quiet)
    except Exception as e:
        # Among them bare ones, where a process of Ray's ends while it starts.
        raise ClusterError(_not_reached(address, e)) from e


def _not_reached(address: str, error: Exception) -> str:
    if address == "local":
        return (
            f"cannot start Ray on this machine: {first_line(error)}; is there room in /dev/shm and "
            "/tmp, and may ~/.ray be written? Or give cluster.address, or train with --no-ray"
        )
    return (
        f"cannot join the Ray cluster at {address}: {first_line(error)}; check that it runs, that "
        "cluster.address or RAY_ADDRESS is its head, and that RAY_AUTH_MODE and the token fit"
    )


def _require_token() -> None:
    """Refuses a RAY_AUTH_MODE that says otherwise; where it is not set, Ray asks for a token.

    Ray has read the variable when it was imported, so setting it here would come too late.

    Raises:
        ClusterError: saying what it would mean.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ClusterError(
            f"RAY_AUTH_MODE={mode} would start Ray so that anyone who reaches this machine can run "
            "programs on it; unset RAY_AUTH_MODE, or give cluster.address"
        )


def _silence_raylet() -> None:
    """Keeps the raylet's messages off standard output, where `log_to_driver` leaves them.

    What they tell of lost workers is told by the run itself. The switch is internal to Ray.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import ray_logging

        ray_logging.stdout_deduplicator.skip_re = re.compile("")


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of its text; of a remote call's, what failed there."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *(line[:300] for line in lines[:1])])


@contextlib.contextmanager
def _set(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the block; what the user has set himself stays."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
