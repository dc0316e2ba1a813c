"""A run's jobs on a cluster, as values: which of them says what of the run."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobDetails, JobStatus

from service.orchestration.cluster_jobs import as_job
from service.orchestration.job import Job, RunJobs, jobs_of, newest_jobs

REFUSAL = (
    "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 "
    "chars):\n04:01:02 refused: RunError: run one exists already\n"
)


def refused(job: Job) -> Job:
    return replace(job, state="FAILED", driver_exit=2, message=REFUSAL)


STATES = st.sampled_from(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "refused"])
KINDS = st.sampled_from(["train", "tune", "evaluate", "ingest", "status", "kill"])


@st.composite
def known(draw: st.DrawFn) -> list[Job]:
    """What a cluster remembers, oldest first, of two runs."""
    found: list[Job] = []
    for number in range(draw(st.integers(0, 8))):
        state, run = draw(STATES), draw(st.sampled_from(["one", "two"]))
        folder = draw(st.sampled_from(["", f"/a/{run}", f"/b/{run}"]))
        job = Job(f"j{number}", run, draw(KINDS), state, folder, began=float(number))
        found.append(refused(job) if state == "refused" else job)
    return found


@given(known=known(), folder=st.sampled_from(["", "/a/one"]))
def test_what_a_runs_jobs_say_is_what_a_look_at_each_of_them_says(known: list[Job], folder: str):
    found = jobs_of(known, "one", folder)
    ours = [
        job
        for job in known
        if job.run == "one"
        and job.kind in ("train", "tune", "evaluate", "ingest")
        and (not folder or not job.folder or job.folder == folder)
    ]
    assert list(found.jobs) == ours
    trained = [job for job in ours if job.kind in ("train", "tune")]
    took = [job for job in trained if not job.was_refused]
    assert list(found.training) == took
    assert found.newest == next(iter([*took[::-1], *trained[::-1]]), None)
    running = [job for job in ours if job.state in ("PENDING", "RUNNING")]
    first = [job for job in running if job in trained][::-1] + running[::-1]
    assert found.running == next(iter(first), None)
    assert found.shown == next(iter([*first, *trained[::-1], *ours[::-1]]), None)
    told = [job.folder for job in [*took[::-1], *ours[::-1]] if job.folder]
    assert found.folder == next(iter(told), "")


@given(known=known())
def test_the_newest_of_each_kind_is_no_refused_one_where_there_is_another(known: list[Job]):
    found = newest_jobs(known)
    assert sorted(found, key=lambda job: job.began) == found
    for job in found:
        alike = [other for other in known if (other.run, other.kind) == (job.run, job.kind)]
        taken = [other for other in alike if not other.was_refused]
        assert job == (taken or alike)[-1]
    shown = {(job.run, job.kind) for job in known if job.is_runs}
    assert {(job.run, job.kind) for job in found} == shown


@pytest.mark.parametrize(
    ("state", "code", "message", "found"),
    [
        ("FAILED", 2, REFUSAL, True),
        ("FAILED", 2, "x:\nrefused: ClusterError: the head has Ray 2.9.0", True),
        ("FAILED", 2, "x:\n04:01:02 ClusterError: workers were lost too often", False),
        ("FAILED", 2, "x:\n04:01:02 [run] connection refused: by 10.0.0.1", False),
        ("FAILED", 1, REFUSAL, False),
        ("STOPPED", 2, REFUSAL, False),
    ],
)
def test_a_job_was_refused_that_says_so_and_not_every_one_that_ended_with_an_error(
    state: str, code: int, message: str, found: bool
):
    job = Job("one", "one", "train", state, driver_exit=code, message=message)
    assert job.was_refused is found
    assert RunJobs((job,)).newest == job


# -- from Ray's own words --------------------------------------------------------------------------


def details(**changed: object) -> JobDetails:
    values = {"type": "SUBMISSION", "submission_id": "j", "status": JobStatus.FAILED}
    words = "python -m jobs.train c.yaml --run-id night-1"
    return JobDetails(**{**values, "entrypoint": words, **changed})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("words", "run", "kind", "folder"),
    [
        ("python -m jobs.train c.yaml --run-id night-1", "night-1", "train", ""),
        ("python -m jobs.train c.yaml --run-id=night-1 --new", "night-1", "train", ""),
        ("python -m jobs.train --resume night-1", "night-1", "train", ""),
        ("cd /x && python -m jobs.tune --resume /d/runs/one a.b=c", "one", "tune", "/d/runs/one"),
        ("python -m jobs.evaluate /d/one/ --checkpoint best", "one", "evaluate", "/d/one"),
        ("python -m jobs.evaluate one", "one", "evaluate", ""),
        ("python -m jobs.ingest /raw /rec 384x128", "j", "ingest", ""),
        ("python -m jobs.train c.yaml", "j", "train", ""),
    ],
)
def test_a_job_of_rays_own_command_is_known_by_its_words(
    words: str, run: str, kind: str, folder: str
):
    found = as_job(details(entrypoint=words))
    assert found is not None
    assert (found.job_id, found.run, found.kind, found.folder) == ("j", run, kind, folder)
    told = {"crossreid_run": "r", "crossreid_kind": "tune", "crossreid_folder": "/f/r"}
    found = as_job(details(entrypoint=words, metadata=told))
    assert found is not None
    assert (found.run, found.kind, found.folder) == ("r", "tune", "/f/r")


def test_a_job_that_does_nothing_of_ours_is_left_out():
    assert as_job(details(entrypoint="python -m other")) is None
    assert as_job(details(submission_id=None)) is None


def test_what_ray_says_of_a_job_is_passed_on_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush")
    found = as_job(details(message="log:\nkey hushhush at s3://me:pass@host/x"))
    assert found is not None
    assert found.message == "log:\nkey <AWS_SECRET_ACCESS_KEY> at s3://<login>@host/x"


def test_the_time_to_end_is_the_one_that_the_job_was_sent_with():
    variables = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "970"}}
    found = [as_job(details(runtime_env=env)) for env in (variables, {"env_vars": {}}, None)]
    assert [job.stop_s for job in found if job is not None] == [970.0, 960.0, 960.0]
