"""One writer a run: an earlier one is waited for, and named when it does not end."""

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from service.distributed import Distributed
from service.errors import CheckpointError, RunError, StillWrittenError
from service.orchestration import alone
from service.orchestration.alone import LOCK_FILE, writing_alone
from service.orchestration.runs import Run, held
from service.rollcall import name_of_this_process
from tests.reports import CONFIG


def test_an_earlier_writer_is_waited_for(tmp_path: Path):
    earlier = FileLock(tmp_path / LOCK_FILE, thread_local=False)
    earlier.acquire()
    ends = threading.Timer(0.7, earlier.release)
    ends.start()
    told: list[str] = []
    with writing_alone(tmp_path, Distributed.single(), 10.0, told.append):
        assert not earlier.is_locked
    ends.join()
    assert told == []


def test_a_long_wait_is_told_once_with_who_is_waited_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(alone, "_TELL_S", 0.2)
    told: list[str] = []
    with (
        writing_alone(tmp_path, Distributed.single()),
        pytest.raises(StillWrittenError),
        writing_alone(tmp_path, Distributed.single(), 1.6, told.append),
    ):
        pass
    assert told == [name_of_this_process()]


def test_an_earlier_writer_that_does_not_end_is_named(tmp_path: Path):
    with (
        writing_alone(tmp_path, Distributed.single()),
        pytest.raises(
            StillWrittenError, match=r"still writes to .* after 0.6 s: pid \d+ on .*kill -9"
        ),
        writing_alone(tmp_path, Distributed.single(), 0.6),
    ):
        pass


def test_the_next_writer_comes_after_one_that_failed(tmp_path: Path):
    with pytest.raises(ValueError, match="x"), writing_alone(tmp_path, Distributed.single()):
        raise ValueError("x")
    with writing_alone(tmp_path, Distributed.single(), 0.6):
        pass


def test_a_machine_that_lacks_the_folder_does_not_make_one(tmp_path: Path):
    elsewhere = tmp_path / "not" / "shared"
    with (
        pytest.raises(RunError, match=r"is not on the machine of rank 0, .*all machines share"),
        writing_alone(elsewhere, Distributed.single()),
    ):
        pass
    assert not elsewhere.parent.exists()


def test_a_lock_that_cannot_be_taken_is_an_error_in_words(tmp_path: Path):
    (tmp_path / LOCK_FILE).mkdir()
    with (
        pytest.raises(RunError, match=r"cannot lock .*--resume"),
        writing_alone(tmp_path, Distributed.single()),
    ):
        pass


def failing(number: int) -> Any:
    def call(*args: Any, **named: Any) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_a_storage_that_fails_does_not_hide_what_ended_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", failing(errno.EROFS))
        with (
            pytest.raises(CheckpointError, match="the disk is full"),
            writing_alone(tmp_path, Distributed.single()),
        ):
            raise CheckpointError("the disk is full")
    with writing_alone(tmp_path, Distributed.single(), 0.6):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that stands for a lock would stay for ever when its machine is lost."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with (
        pytest.raises(RunError, match=r"cannot lock .*file system with locks"),
        writing_alone(tmp_path, Distributed.single()),
    ):
        pass
    with (
        pytest.raises(RunError, match="cannot lock the run folder"),
        held(Run("r", tmp_path, CONFIG)),
    ):
        pass
