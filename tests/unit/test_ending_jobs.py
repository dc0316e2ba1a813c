"""Jobs that are ended: asked to, waited for through lost requests, killed, or not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from service.errors import ClusterError, RunError
from service.orchestration import ending_jobs
from service.orchestration.driver import JOB_VARIABLE
from service.orchestration.ending_jobs import end_job, kill_job, until_ended
from service.orchestration.job import Job
from tests.jobserver import JobServer

RUNNING = Job("one", "one", "train", "RUNNING", "/r/one", stop_s=960.0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending_jobs, "_LOOK_S", 0.001)


def ended(server: JobServer, *, now: bool = False) -> tuple[Job, list[str]]:
    said: list[str] = []
    return end_job(cast(Any, server), RUNNING, now=now, say=said.append), said


def test_a_job_is_asked_and_waited_for_also_while_requests_are_lost():
    job, said = ended(JobServer(RUNNING, fails=3))
    assert job.state == "STOPPED"
    assert said == ["asked it to write a checkpoint and end; --now would kill it"]


def test_a_job_that_writes_no_checkpoint_is_not_said_to():
    job, said = replace(RUNNING, kind="ingest"), list[str]()
    end_job(cast(Any, JobServer(job)), job, now=False, say=said.append)
    assert said == ["asked it to end; --now would kill it"]


def test_nobody_is_told_that_a_job_was_asked_that_could_not_be(monkeypatch: pytest.MonkeyPatch):
    def lost(*_: Any) -> None:
        raise ClusterError("nobody answers")

    monkeypatch.setattr(JobServer, "stop", lost)
    said: list[str] = []
    with pytest.raises(ClusterError, match="nobody answers"):
        end_job(cast(Any, JobServer(RUNNING)), RUNNING, now=False, say=said.append)
    assert said == []


def test_a_cluster_that_stays_away_is_given_up_and_what_was_done_is_told(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ending_jobs, "GIVE_UP_S", 0.02)
    with pytest.raises(ClusterError, match=r"nobody answers\. It was asked to end; crossreid list"):
        ended(JobServer(RUNNING, fails=10**9))


def test_a_job_that_does_not_end_or_is_forgotten_is_told():
    with pytest.raises(ClusterError, match=r"has not ended within 0\.01 s"):
        until_ended(cast(Any, JobServer(RUNNING)), "one", 0.01)
    with pytest.raises(ClusterError, match="does not know the job one any more"):
        until_ended(cast(Any, JobServer()), "one", 1.0)


class Killing:
    """What the small job does that is to kill `one` on the `server`."""

    def __init__(self, code: int, log: str, *, is_over: bool = False) -> None:
        self.code, self.log, self.is_over = code, log, is_over
        self.server = JobServer(RUNNING, small=self)

    def __call__(self, words: Sequence[str]) -> tuple[int, str]:
        assert list(words) == ["jobs.kill", "one"]
        if self.code == 0 or self.is_over:
            self.server.jobs["one"] = replace(RUNNING, state="FAILED", driver_exit=-9)
        return self.code, self.log


def test_a_killed_job_is_told_as_killed_and_the_one_that_killed_it_is_forgotten():
    server = Killing(0, "").server
    job, said = ended(server, now=True)
    assert (job.signal, said) == (9, ["killed it"])
    assert list(server.jobs) == ["one"]


def test_a_job_that_cannot_be_killed_is_an_error_and_not_asked_instead():
    server = Killing(2, "04:01:02 refused: RunError: this user has no process\n").server
    with pytest.raises(ClusterError, match=r"could not be killed: RunError: this user has no pro"):
        ended(server, now=True)
    assert server.jobs == {"one": RUNNING}


def test_a_job_that_ended_before_it_was_killed_has_ended():
    job, _ = ended(
        Killing(2, "RunError: this user has no process\n", is_over=True).server, now=True
    )
    assert job.has_ended


# -- on the head -----------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A driver as Ray starts it, of the job `raysubmit_1`."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").write_text("import time\ntime.sleep(60)\n")
    told = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}
    found = subprocess.Popen(
        [sys.executable, "-m", "jobs.train"],
        cwd=tmp_path,
        env={**os.environ, JOB_VARIABLE: json.dumps(told)},
    )
    yield found
    found.kill()
    found.wait()


def test_a_jobs_process_is_killed_and_no_others(process: "subprocess.Popen[bytes]"):
    # Until it has become what it was started as.
    until = time.monotonic() + 30
    while b"jobs.train" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert time.monotonic() < until
    with pytest.raises(RunError, match="no process of the job raysubmit_2 here"):
        kill_job("raysubmit_2")
    assert process.poll() is None
    kill_job("raysubmit_1")
    assert process.wait(30) == -signal.SIGKILL
