"""A job's log as it is written, line by line, through lost connections, until the job's end."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import ClientError

from service.errors import ClusterError, LostContactError
from service.orchestration.cluster_jobs import GIVE_UP_S, ClusterJobs
from service.orchestration.job import Job

SILENT_S = 30.0
"""Seconds without a line after which the connection is made anew: it may be dead unnoticed."""
_LONGEST_SILENT_S = 120.0
"""The same of a job that has nothing to say, since each new connection brings the whole log."""
_VAIN_S = 5.0
"""The same where the last connection brought nothing at all, not even the log's beginning."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 10.0
_LOST = (ClientError, OSError, RuntimeError, TimeoutError)
_RAYS_OWN = ("Running entrypoint for job ", "Runtime env is setting up.")

Tell = Callable[[str], None]


class Follower:
    """Passes on each line of a job's log once, whatever happens to the connection in between.

    Every connection begins at the log's beginning; what was heard before is left out by its length.
    Where connections bring nothing at all, the log is asked for again and again.
    line: takes a line without its end. note: takes what is said about the connection itself.
    """

    def __init__(self, jobs: ClusterJobs, job_id: str, line: Tell, note: Tell) -> None:
        self._jobs, self._job_id = jobs, job_id
        self._line, self._note = line, note
        self._heard = 0
        self._begun = ""
        self._found = False
        self._lost_at: float | None = None
        self._silent_s = SILENT_S
        self._in_vain = 0

    def until_end(self) -> Job:
        """Follows the job to its end; one that the cluster has forgotten counts as lost.

        Raises:
            LostContactError: the cluster was away for too long.
        """
        job = self.until(lambda line: False)
        assert job is not None
        return job

    def until(self, is_it: Callable[[str], bool], limit_s: float = float("inf")) -> Job | None:
        """Follows until a line for which `is_it`, or for `limit_s` seconds; then None.

        Gives the job if it ends before. Raises as `until_end`.
        """
        self._found = False
        until, wait_s = time.monotonic() + limit_s, _FIRST_WAIT_S
        while True:
            before = self._heard
            came = self._read(is_it, until)
            if self._found or time.monotonic() >= until:
                return None
            job = self._ask()
            if job is not None and job.has_ended:
                self._read_rest(is_it)
                return job
            if job is not None and not came:
                self._ask_for_more(is_it)
                if self._found:
                    return None
            wait_s = _FIRST_WAIT_S if self._heard > before else min(2 * wait_s, _LONGEST_WAIT_S)
            time.sleep(max(0.0, min(wait_s, until - time.monotonic())))

    def _ask(self) -> Job | None:
        """The job as it stands; None while the cluster is away."""
        try:
            job = self._jobs.get(self._job_id)
        except ClusterError as error:
            if self._lost_at is None:
                self._lost_at = time.monotonic()
                self._note(f"the connection to {self._jobs.address} is lost; trying again")
            if time.monotonic() - self._lost_at > GIVE_UP_S:
                raise LostContactError(f"{error}; the job may still run") from error
            return None
        self._lost_at = None
        return job or Job(self._job_id, "", "", "FAILED", message=_FORGOTTEN)

    def _read(self, is_it: Callable[[str], bool], until: float) -> bool:
        """One connection, to the log's end or its own; whether it brought anything."""
        before = self._heard
        came = asyncio.run(self._tail(is_it, until))
        if came:
            is_silent = self._heard == before
            self._silent_s = min(2 * self._silent_s, _LONGEST_SILENT_S) if is_silent else SILENT_S
            self._in_vain = 0
        else:
            self._silent_s = min(_VAIN_S, SILENT_S)
        return came

    def _ask_for_more(self, is_it: Callable[[str], bool]) -> None:
        """What a job that runs has printed, where no connection brings it."""
        try:
            more = self._jobs.log(self._job_id)[self._heard :]
        except ClusterError:
            # The next look at the job tells of it.
            return
        self._in_vain += bool(more)
        if more and self._in_vain == 2:
            self._note(
                "its log does not come by itself, since WebSockets do not get through to "
                f"{self._jobs.address}; it is asked for every few seconds"
            )
        self._heard += len(more)
        self._take(more, is_it)

    def _read_rest(self, is_it: Callable[[str], bool]) -> None:
        """What an ended job has printed beyond what came through the connection."""
        try:
            rest = self._jobs.log(self._job_id)[self._heard :]
        except ClusterError:
            self._note("the end of its log cannot be read")
            rest = ""
        self._heard += len(rest)
        self._take(rest, is_it)
        self._pass(self._begun)
        self._begun = ""

    async def _tail(self, is_it: Callable[[str], bool], until: float) -> bool:
        passed = 0
        pieces = self._jobs.tail(self._job_id)
        while not self._found:
            left = min(self._silent_s, until - time.monotonic())
            try:
                piece = await asyncio.wait_for(anext(pieces), max(left, 0.01))
            except (StopAsyncIteration, *_LOST):
                # Only of the connection: an error of whoever prints is no lost connection.
                break
            new = piece[max(0, self._heard - passed) :]
            passed += len(piece)
            self._heard += len(new)
            self._take(new, is_it)
        return passed > 0

    def _take(self, text: str, is_it: Callable[[str], bool]) -> None:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._pass(line)
            self._found = self._found or is_it(line)

    def _pass(self, line: str) -> None:
        if line and not any(words in line for words in _RAYS_OWN):
            self._line(line)


_FORGOTTEN = (
    "the cluster does not know it any more, since it was started again or the job was deleted; a "
    "run goes on from its newest checkpoint with --resume"
)
