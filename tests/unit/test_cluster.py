"""Reaching a cluster, and how a run's end is told; without Ray running."""

import contextlib
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnschedulableError
from ray.train import ControllerError, WorkerGroupError

from service.background import Background
from service.config import ClusterConfig, Config, DataConfig
from service.errors import ClusterError, CrossReidError, DataError, NonFiniteError, RunError
from service.orchestration.cluster import connected, first_line
from service.orchestration.runs import Run
from service.orchestration.train import _failed, _is_lost_at_start, _watch, ended
from service.orchestration.trials import new_record
from service.orchestration.watch import Watch
from service.orchestration.worker import (
    WorkerFault,
    error_values,
    fault_of,
    is_lost_device,
    rebuilt,
)
from service.training.ports import Outcome

CONFIG = Config(data=DataConfig(records="r"))


def test_a_cluster_that_cannot_be_reached_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ClusterError, match=rf"nobody answers at {address}"),
        connected(ClusterConfig(address=address)),
    ):
        pass


def test_a_cluster_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> None:
        raise ConnectionError("another version\nat all")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=rf"cannot join the Ray cluster at {address}"),
            connected(ClusterConfig(address=address)),
        ):
            pass


@pytest.mark.parametrize("kind", [RuntimeError, Exception])
def test_ray_that_does_not_start_is_one_message(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    def fail(**_: Any) -> None:
        raise kind("Failed to start GCS.\nlong text")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    words = rf"cannot start Ray on this machine: {kind.__name__}: Failed to start GCS\.; .*--no-ray"
    with pytest.raises(ClusterError, match=words), connected(ClusterConfig()):
        pass


@pytest.mark.parametrize("mode", ["disabled", ""])
def test_a_cluster_without_a_token_is_not_started(monkeypatch: pytest.MonkeyPatch, mode: str):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was started"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match="unset RAY_AUTH_MODE"), connected(ClusterConfig()):
        pass


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  one\ntwo"), "ValueError: one"),
        (ValueError(""), "ValueError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_an_error_in_one_line_is_its_kind_and_first_words(error: Exception, line: str):
    assert first_line(error) == line


def outcome(verdict: str) -> dict[str, Any]:
    return {"outcome": Outcome(verdict, "", "", "", 0, {}).to_dict()}


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [(outcome("GO"), "GO"), (outcome("NO_GO"), "NO_GO"), (outcome("STOPPED"), "INTERRUPTED")],
)
def test_an_interrupt_that_comes_too_late_changes_nothing(returned: dict[str, Any], verdict: str):
    def interrupt(reader: Any) -> None:
        raise KeyboardInterrupt

    gone: list[str] = []
    monitor: Any = SimpleNamespace(look=interrupt, started=["main"], ended=gone.append)
    reader: Any = SimpleNamespace(put=lambda key, directive: None)
    task = Background(lambda: returned)
    assert _watch(Run("one", Path("/runs/one"), CONFIG), task, monitor, reader).verdict == verdict
    assert gone == ["main"]


@pytest.mark.parametrize(
    ("returned", "name"),
    [
        ({"error": {"type": "NonFiniteError", "message": "x"}}, "non_finite"),
        ({"error": {"type": "ClusterError", "message": "x"}}, "ClusterError"),
        ({"fault": {"words": "x", "trace": "y"}}, "program_error"),
    ],
)
def test_whatever_ends_a_run_is_told_to_the_monitor_by_name(
    returned: dict[str, Any], name: str, tmp_path: Path
):
    told: list[tuple[str, ...]] = []
    monitor: Any = SimpleNamespace(
        look=lambda reader: None,
        failed=lambda key, cause: told.append((key, cause)),
        ended=lambda key: told.append((key,)),
    )
    run = Run("one", tmp_path, CONFIG)
    with contextlib.suppress(CrossReidError):
        _watch(run, Background(lambda: returned), monitor, SimpleNamespace())  # type: ignore[arg-type]
    assert told == [("main", name), ("main",)]


@pytest.mark.parametrize(
    ("error", "name"), [(RunError("x"), "RunError"), (RuntimeError("Tune failed"), "program_error")]
)
def test_what_ends_a_sweep_is_told_of_every_trial_that_went_on(error: Exception, name: str):
    def fail() -> Any:
        raise error

    told: list[tuple[str, str]] = []
    monitor: Any = SimpleNamespace(
        look=lambda reader: None,
        sampled=lambda key, sample: None,
        started=["goes on", "over"],
        failed=lambda key, cause: told.append((key, cause)),
    )
    records = {key: new_record(CONFIG, {}) for key in ("goes on", "over", "waits")}
    records["over"].outcome = {}
    scheduler: Any = SimpleNamespace(trials=records, ended=set())
    watch = Watch(Background(fail), scheduler, monitor, SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        watch.until_end()
    assert told == [("goes on", name)]


def test_a_fault_of_the_driver_is_told_to_the_monitor_too():
    def fail() -> Any:
        raise RuntimeError("x")

    told: list[tuple[str, ...]] = []
    monitor: Any = SimpleNamespace(
        look=lambda reader: None,
        failed=lambda key, cause: told.append((key, cause)),
        ended=lambda key: told.append((key,)),
    )
    with pytest.raises(RuntimeError):
        _watch(Run("one", Path("/runs/one"), CONFIG), Background(fail), monitor, SimpleNamespace())  # type: ignore[arg-type]
    assert told == [("main", "program_error"), ("main",)]


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def test_a_rank_out_of_memory_ends_the_training_with_what_to_lower():
    fault = fault_of(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"))
    found = _failed(CONFIG, "/runs/one", ControllerError(pickle.loads(pickle.dumps(fault))))
    with pytest.raises(ClusterError, match=r"allocate 2 GiB; lower sampler\.ids_per_batch") as told:
        ended(Run("one", Path("/runs/one"), CONFIG), found)
    assert told.value.exit_code == 2
    assert fault_of(TypeError("x")).values["fault"]["words"] == "TypeError: x"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: uncorrectable ECC error encountered\nx"), True),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("uncorrectable ECC error encountered"), False),
    ],
)
def test_a_gpu_that_fails_is_told_from_what_is_computed_on_it(error: Exception, lost: bool):
    assert is_lost_device(error) is lost


class DistNetworkError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ControllerError(DistNetworkError("Failed to recv, got 0 bytes")), True),
        (ControllerError(pickle.loads(pickle.dumps(ActorDiedError()))), True),
        (ControllerError(ActorUnschedulableError("its placement group was removed")), True),
        (ControllerError(ValueError("no such folder")), False),
        (WorkerGroupError("x", {0: DistNetworkError("x")}), False),
    ],
)
def test_workers_that_missed_each_other_at_the_start_are_told_from_a_fault(error: Any, lost: bool):
    assert _is_lost_at_start(error) is lost


def test_a_faults_traceback_is_kept_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STORE_KEY", "0123456789")
    fault = {"fault": {"words": "x 0123456789", "trace": "in 0123456789"}}
    found = ended(Run("one", tmp_path, CONFIG), fault)
    assert found.words == "x <STORE_KEY>"
    assert (tmp_path / "error.txt").read_text() == "in <STORE_KEY>"


def test_a_fault_survives_pickling_with_its_traceback():
    again = pickle.loads(pickle.dumps(WorkerFault("words", "trace")))
    assert (again.words, again.trace, str(again)) == ("words", "trace", "words")


@pytest.mark.parametrize("error", [DataError("bad"), NonFiniteError("nan")])
def test_a_users_error_keeps_class_message_and_exit_code_across_processes(error: Any):
    again = rebuilt(error_values(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert again.exit_code == error.exit_code


def test_a_fault_in_the_controller_is_a_value_and_anything_else_an_error():
    found = _failed(CONFIG, "r", ControllerError(WorkerFault("TypeError: x", "trace")))
    assert found == {"fault": {"words": "TypeError: x", "trace": "trace"}}
    with pytest.raises(ClusterError, match=r"started: TimeoutError: no room.* --resume '/a b/r'"):
        _failed(CONFIG, "/a b/r", ControllerError(TimeoutError("no room")))


def test_workers_lost_too_often_are_named_by_rank():
    lost = WorkerGroupError("", {1: RuntimeError("killed"), 0: RuntimeError("closed")})
    with pytest.raises(ClusterError, match=r"max_failures=3 .*rank 0: .*closed; rank 1: .*killed"):
        _failed(CONFIG, "r", lost)
