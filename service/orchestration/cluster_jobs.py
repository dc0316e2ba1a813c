"""The job server of a Ray cluster over HTTP: jobs started, looked at, stopped, forgotten."""

import contextlib
import functools
import logging
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from requests import RequestException

from service.errors import ClusterError
from service.orchestration.job import (
    FOLDER,
    KIND,
    LINGER_S,
    RUN,
    SENDING,
    STOP_S,
    Job,
    first_line,
)
from service.redaction import redacted, shown_url

HEAD = {"node:__internal_head__": 0.001}
"""Resources that only the head has."""
_TIMEOUT_S = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
GIVE_UP_S = 300.0
"""Seconds for which a cluster may be away while somebody waits for a job."""
_READY_S = 60.0
"""Seconds that a cluster may take, once its dashboard answers, until it takes jobs."""
_RETRY_S = 1.0
_NOT_READY = "No available agent to submit job"
STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
"""Seconds that Ray leaves a job to end when it is asked to."""
_ENTRYPOINT = re.compile(r"-m jobs\.(\w+)\b(.*)")
_ADDRESS = "RAY_API_SERVER_ADDRESS"
_TOKEN_FILE = ".ray/auth_token"


class ClusterJobs:
    """The job server at `address`, which is the dashboard's, as in http://head:8265.

    A token goes along where one is found: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or
    ~/.ray/auth_token.

    Raises:
        ClusterError: nobody answers there, somebody else does, or the token is refused. So does
            every method.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._has_token = False
        _silence_client()
        with self._asked():
            self._client = self._connect()

    def _connect(self) -> "_Client":
        token = find_token()
        self._has_token = bool(token)
        # Given outright, since Ray reads RAY_AUTH_MODE only once, when it is imported.
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with _winning(self.address):
            return _Client(self.address, headers=headers)

    @property
    def tells_token(self) -> bool:
        """Whether a token goes to another machine as it is, for everybody on the way to read."""
        url = urlsplit(self.address)
        is_here = url.hostname == "localhost" or (url.hostname or "").startswith(("127.", "::1"))
        return self._has_token and url.scheme == "http" and not is_here

    @property
    def ray_version(self) -> str:
        with self._asked():
            return str(self._client._do_request("GET", "/api/version").json()["ray_version"])

    def submit(
        self,
        job_id: str,
        words: Sequence[str],
        *,
        package: Path,
        variables: dict[str, str],
        metadata: dict[str, str],
        say: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Starts `python -m` with `words` on the head, in `package`.

        say: hears that the cluster takes no jobs yet, which is waited for.

        Raises:
            TakenError: there was a job of that name.
        """
        send = functools.partial(
            self._client.submit_job,
            entrypoint=shlex.join(["python", "-m", *words]),
            submission_id=job_id,
            runtime_env={"working_dir": str(package), "env_vars": variables},
            metadata=metadata,
            entrypoint_resources=HEAD,
        )
        with self._asked(taken=job_id):
            _once_ready(send, say)

    def all(self) -> list[Job]:
        """Our jobs that the cluster remembers, oldest first."""
        with self._asked():
            found = [as_job(details) for details in self._client.list_jobs()]
        return sorted((job for job in found if job is not None), key=lambda job: job.began)

    def get(self, job_id: str) -> Job | None:
        """The job as it stands; None when the cluster does not know it."""
        with self._asked():
            answer = self._client._do_request("GET", f"/api/jobs/{job_id}")
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return as_job(JobDetails(**answer.json()))

    def stop(self, job_id: str) -> None:
        """Asks the job's process to end."""
        with self._asked():
            self._client.stop_job(job_id)

    def delete(self, job_id: str) -> None:
        """Makes the cluster forget an ended job."""
        with self._asked():
            self._client.delete_job(job_id)

    def log(self, job_id: str) -> str:
        """All that the job has printed."""
        with self._asked():
            return self._client.get_job_logs(job_id)

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """The same from its beginning, in pieces as they come, until the job's end."""
        return self._client.tail_job_logs(job_id)

    @contextlib.contextmanager
    def _asked(self, taken: str = "") -> Iterator[None]:
        """Turns what the client raises into errors in words."""
        where = shown_url(self.address)
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(_refused(where, self._has_token)) from error
        except (ValueError, KeyError, TypeError) as error:
            # Of requests' own errors those about JSON and addresses are among them.
            if taken and not isinstance(error, RequestException):
                raise ClusterError(
                    f"Ray's client does not send the job {taken}: {first_line(str(error))}"
                ) from error
            raise ClusterError(_not_ray(where)) from error
        except (RequestException, ConnectionError) as error:
            raise ClusterError(_unanswered(where, error)) from error
        except OSError as error:
            raise ClusterError(
                f"this machine could not ask the cluster at {where}: {error}; Ray packs what it "
                "sends in the temporary folder, which TMPDIR names: has it room?"
            ) from error
        except RuntimeError as error:
            if taken and f"{taken} already exists" in str(error):
                raise TakenError(taken) from error
            if "Version check returned 404" in str(error):
                raise ClusterError(_not_ray(where)) from error
            raise ClusterError(
                f"the cluster at {where} could not do it: {first_line(str(error))}; see the "
                "head's logs/dashboard.log"
            ) from error


def _once_ready(send: Callable[[], Any], say: Callable[[str], None]) -> None:
    """Sends a job, and again while the cluster, which has just come up, takes none yet."""
    until, is_told = time.monotonic() + _READY_S, False
    while True:
        try:
            send()
            return
        except RuntimeError as error:
            if _NOT_READY not in str(error) or time.monotonic() > until:
                raise
            if not is_told:
                say(f"the cluster takes no jobs yet; trying again for {_READY_S:.0f} s")
            is_told = True
            time.sleep(_RETRY_S)


class TakenError(Exception):
    """Another job has, or had, this name."""


class _Client(JobSubmissionClient):
    """Ray's client, which by itself would wait for ever for an answer."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_TIMEOUT_S, **options)


def find_token() -> str:
    """The token that a cluster may ask for, from where Ray looks; empty without one.

    Raises:
        ClusterError: the file that RAY_AUTH_TOKEN_PATH names is missing, a file cannot be read, or
            what was found cannot be a token.
    """
    if _is_off():
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _whole(token, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / _TOKEN_FILE
    try:
        return _whole(file.read_text("utf-8").strip(), str(file))
    except FileNotFoundError as error:
        if not named:
            return ""
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {file}, which is not there") from error
    except (OSError, ValueError) as error:
        raise ClusterError(f"the token file {file} cannot be read: {error}") from error


def _is_off() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"


def _whole(token: str, place: str) -> str:
    """A header holds no line break, and a token that was copied with one is none."""
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ClusterError(
            f"the token in {place} has a space, a line break or another odd character inside; "
            "`ray get-auth-token` on the head prints it as it should be"
        )
    return token


def as_job(details: JobDetails) -> Job | None:
    """A job of Ray's as ours; None if it does nothing of ours.

    Of one that was submitted with `ray job submit`, the entrypoint tells.
    """
    told, name = details.metadata or {}, details.submission_id
    found = _ENTRYPOINT.search(details.entrypoint)
    if name is None or found is None:
        return None
    named = _named(found[1], found[2])
    return Job(
        job_id=name,
        run=told.get(RUN) or Path(named).name or name,
        kind=told.get(KIND) or found[1],
        state=details.status.value,
        folder=told.get(FOLDER, named if named.startswith("/") else ""),
        driver_exit=details.driver_exit_code,
        message=redacted(details.message or ""),
        began=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        stop_s=_stop_s(details.runtime_env),
        sending=told.get(SENDING, ""),
    )


def _named(kind: str, words: str) -> str:
    """The run that the words of an entrypoint name, by its id or folder; empty if they do not."""
    found = re.search(r"--(?:run-id|resume)[ =]([\w/.-]+)", words)
    if found is None and kind == "evaluate":
        found = re.match(r" +([\w/.-]+)", words)
    return found[1].rstrip("/") if found else ""


def _stop_s(runtime_env: dict[str, Any] | None) -> float:
    """The time to end that a job was sent with; else what its head may have been started with."""
    told = str(((runtime_env or {}).get("env_vars") or {}).get(STOP_VARIABLE, ""))
    return float(told) if told.isdecimal() else STOP_S + LINGER_S


def _refused(where: str, had_token: bool) -> str:
    if _is_off():
        mode = os.environ["RAY_AUTH_MODE"]
        return (
            f"the cluster at {where} wants a token; RAY_AUTH_MODE={mode} here sends none; unset it"
        )
    found = "refuses the token that was found" if had_token else "wants a token, and none was found"
    return (
        f"the cluster at {where} {found} in RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH "
        f"names, or ~/{_TOKEN_FILE}; `ray get-auth-token` on the head prints the right one, for "
        "RAY_AUTH_TOKEN here"
    )


def _unanswered(where: str, error: Exception) -> str:
    if isinstance(error, RequestException) and error.response is not None:
        status = error.response.status_code
        if status < 500:
            return _not_ray(where)
        return (
            f"{where} answers with HTTP {status}: the dashboard is not well, or a proxy before it "
            "does not reach it; try again, and see the head's logs/dashboard.log"
        )
    return (
        f"nobody answers at {where} ({type(error).__name__}); check that the cluster runs and that "
        "--address is its dashboard's, as in http://HEAD:8265, or a forwarded port of it"
    )


def _not_ray(where: str) -> str:
    return (
        f"what answers at {where} is not the dashboard of a Ray cluster, or an old one; --address "
        "looks like http://HEAD:8265"
    )


@contextlib.contextmanager
def _winning(address: str) -> Iterator[None]:
    """Ray's client prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to the address it is given."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before


def _silence_client() -> None:
    """Ray's client tells of packages and sockets; what matters we say ourselves."""
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
