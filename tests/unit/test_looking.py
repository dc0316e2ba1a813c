"""Where a run stands as the head reads it: every way in which the small job there can end."""

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from service.errors import ClusterError, RunError
from service.orchestration.job import Job
from service.orchestration.looking import look_there
from service.orchestration.reading import ANSWER
from service.orchestration.standing import Standing, State
from tests.jobserver import JobServer

FOUND = Standing("one", State.TRAINING, "/r/one", step=7)
NO_RUN = (0, f"{ANSWER}null\n")
BROKEN = (2, "04:01:02 refused: ConfigError: config.yaml is not a valid config\n")


def job(state: str, code: int | None = None) -> Job:
    return Job("one.2", "one", "train", state, "/r/one", code)


def look(answer: tuple[int, str], newest: Job | None) -> tuple[Standing, list[Sequence[str]]]:
    server = JobServer(small=lambda words: answer)
    try:
        found = look_there(cast(Any, server), "/r/one", newest)
    finally:
        assert server.jobs == {}, "the small job is forgotten, whatever it said"
    return found, [sent["words"] for sent in server.sent]


def test_what_the_small_job_reads_is_where_the_run_stands():
    answer = (0, f"a note\n{ANSWER}{json.dumps(FOUND.to_dict())}\n")
    words = ["jobs.status", "/r/one"]
    assert look(answer, None) == (FOUND, [words])
    asked = [*words, "--job", "one.2", "--state", "RUNNING"]
    assert look(answer, job("RUNNING")) == (FOUND, [asked])


def test_a_job_that_waits_for_its_turn_has_nothing_to_read():
    assert look(NO_RUN, job("PENDING")) == (Standing("one", State.WAITING, "/r/one"), [])


def test_without_a_run_there_its_job_says_whether_it_comes():
    assert look(NO_RUN, job("RUNNING"))[0] == Standing("one", State.STARTING, "/r/one")
    with pytest.raises(RunError, match=r"one never began: its job one\.2 ended with exit code 2"):
        look(NO_RUN, job("FAILED", 2))
    with pytest.raises(RunError, match="sees no run in /r/one; is it on shared storage"):
        look(NO_RUN, None)


@pytest.mark.parametrize("newest", [None, job("RUNNING"), job("FAILED", 1)])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (BROKEN, "where run one stands: ConfigError: config.yaml is not a valid config"),
        ((1, "Traceback\nModuleNotFoundError: no ray\n"), "ModuleNotFoundError: no ray"),
        ((-9, "half a line"), "killed by signal 9"),
        ((0, ""), "stands: exit code 0"),
    ],
)
def test_a_small_job_that_fails_says_nothing_of_the_run(
    answer: tuple[int, str], message: str, newest: Job | None
):
    with pytest.raises(ClusterError, match=message):
        look(answer, newest)
