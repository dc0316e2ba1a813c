"""A job's log as it is followed: every line once, however the connection breaks."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClusterError, ExitCode, LostContactError
from service.orchestration import following
from service.orchestration.following import Follower
from service.orchestration.job import Job

LINES = st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8), max_size=30)


class Source:
    """A job server whose connections break at random places; it answers in random pieces.

    away: how many of its answers about the job fail. Ends once `breaks` connections were broken.
    """

    address = "http://head:8265"

    def __init__(self, log: str, breaks: int, away: int, seed: int) -> None:
        self.text, self.breaks, self.away = log, breaks, away
        self.random = random.Random(seed)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        broken = self.breaks > 0
        end = self.random.randint(0, len(self.text)) if broken else len(self.text)
        at = 0
        while at < end:
            step = self.random.randint(1, 7)
            yield self.text[at : min(at + step, end)]
            at += step
        if broken:
            self.breaks -= 1
            if self.random.random() < 0.7:
                raise OSError("connection reset")

    def get(self, job_id: str) -> Job:
        if self.away > 0:
            self.away -= 1
            raise ClusterError("nobody answers")
        return Job(job_id, "r", "train", "RUNNING" if self.breaks else "SUCCEEDED")

    def log(self, job_id: str) -> str:
        return self.text


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "_FIRST_WAIT_S", 0.0)
        yield


def follow(source: Source) -> tuple[list[str], list[str], Job]:
    lines: list[str] = []
    notes: list[str] = []
    follower = Follower(cast(Any, source), "j", lines.append, notes.append)
    return lines, notes, follower.until_end()


@given(lines=LINES, breaks=st.integers(0, 4), away=st.integers(0, 3), seed=st.integers(0, 999))
def test_every_line_comes_once_and_in_order_whatever_breaks(
    lines: list[str], breaks: int, away: int, seed: int
):
    text = "".join(f"{line}\n" for line in lines)
    found, notes, job = follow(Source(text, breaks, away, seed))
    assert found == [line for line in lines if line]
    assert job.has_ended
    assert sum("is lost" in note for note in notes) == bool(away)


def test_a_last_line_without_an_end_is_told_and_rays_own_are_not():
    own = "INFO job_manager.py -- Runtime env is setting up.\nRunning entrypoint for job j: x\n"
    assert follow(Source(f"{own}a\nb", 0, 0, 0))[0] == ["a", "b"]


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "GIVE_UP_S", 0.05)
    monkeypatch.setattr(following, "_LONGEST_WAIT_S", 0.01)
    with pytest.raises(LostContactError, match=r"nobody answers; the job may still run"):
        follow(Source("a\n", 1, 10_000, 0))


def test_a_contact_that_is_lost_has_an_exit_code_that_no_job_ends_with_by_itself():
    assert LostContactError("x").exit_code == 1
    assert LostContactError("x").exit_code not in set(ExitCode)


class Walled(Source):
    """A job server behind a proxy that lets no WebSocket through; the log grows at each look."""

    def __init__(self, *logs: str) -> None:
        super().__init__("", 1, 0, 0)
        self.coming = list(logs)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        for never in ():
            yield never
        raise OSError("400 Bad Request")

    def get(self, job_id: str) -> Job:
        if self.coming:
            self.text += self.coming.pop(0)
        else:
            self.breaks = 0
        return super().get(job_id)


def test_where_no_connection_brings_anything_the_log_is_asked_for():
    lines, notes, job = follow(Walled("a\n", "b\nc", "c\n", ""))
    assert (lines, job.has_ended) == (["a", "b", "cc"], True)
    assert len(notes) == 1
    assert "WebSockets do not get through to http://head:8265" in notes[0]
    begun: list[str] = []
    follower = Follower(cast(Any, Walled("a\n", "b\n", "c\n", "d")), "j", begun.append, print)
    assert follower.until(lambda line: line == "b") is None
    assert begun == ["a", "b"]


def test_one_connection_that_brought_nothing_is_no_wall():
    source = Walled("a\n")
    assert follow(source)[1] == []


def test_a_job_that_has_nothing_to_say_is_connected_to_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(following, "SILENT_S", 0.02)
    monkeypatch.setattr(following, "_LONGEST_SILENT_S", 0.08)
    began: list[float] = []

    class Quiet(Source):
        async def tail(self, job_id: str) -> AsyncIterator[str]:
            began.append(time.monotonic())
            yield self.text
            await asyncio.sleep(60)

        def get(self, job_id: str) -> Job:
            self.breaks = 6 - len(began)
            return super().get(job_id)

    assert follow(Quiet("a\n", 1, 0, 0))[0] == ["a"]
    waits = [later - earlier for earlier, later in pairwise(began)]
    # A timer may be early by its resolution.
    least = (0.019, 0.019, 0.039, 0.079, 0.079)
    assert all(wait >= each for wait, each in zip(waits, least, strict=True))


def test_following_until_a_line_stops_there_and_can_go_on():
    lines: list[str] = []
    follower = Follower(cast(Any, Source("a\nb\nc\n", 0, 0, 0)), "j", lines.append, print)
    assert follower.until(lambda line: line == "b") is None
    assert lines[:2] == ["a", "b"]
    assert follower.until_end().has_ended
    assert lines == ["a", "b", "c"]


def test_following_for_a_time_gives_up_without_a_word():
    lines: list[str] = []
    follower = Follower(cast(Any, Source("a\n", 10**9, 0, 0)), "j", lines.append, print)
    assert follower.until(lambda line: False, limit_s=0.05) is None


def test_a_job_that_the_cluster_has_forgotten_was_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Source, "get", lambda *_: None)
    lines, _, job = follow(Source("a\n", 1, 0, 0))
    assert lines == ["a"]
    assert job.exit_code == 1
    assert "the cluster does not know it any more" in job.how_lost


def test_a_reader_that_goes_away_ends_the_following():
    def gone(line: str) -> None:
        raise BrokenPipeError

    source = Source("one\ntwo\n", 0, 0, 1)
    with pytest.raises(BrokenPipeError):
        Follower(cast(Any, source), "r", gone, lambda note: None).until_end()
