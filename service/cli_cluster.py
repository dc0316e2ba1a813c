"""What the commands about runs on a cluster share: how it is named, reached and listened to."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli_words import Command, Run
from service.errors import ConfigError, RunError

if TYPE_CHECKING:
    from service.orchestration.cluster_jobs import ClusterJobs
    from service.orchestration.following import Follower
    from service.orchestration.job import Job
    from service.orchestration.standing import Standing

CLUSTER = """\
URL is the cluster's dashboard, http://HEAD:8265 or a forwarded port of it; without --address
RAY_API_SERVER_ADDRESS counts, or RAY_ADDRESS where it begins with http. A token is taken from
RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.
"""
STORAGE = "runs"
"""Where runs lie, if nobody says otherwise."""


def cluster_parser(
    commands: Any, command: Command, name: str, run: Run, text: str, examples: str
) -> argparse.ArgumentParser:
    """A subparser with the options that name a cluster, and with examples below its words."""
    parser = command(commands, name, run, text)
    parser.epilog = f"examples:\n{examples}\n{CLUSTER}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--address", metavar="URL", help="of the cluster's dashboard")
    parser.add_argument("--storage", metavar="FOLDER", help=f"where ids are looked for ({STORAGE})")
    return parser


def reach(args: argparse.Namespace, why: str = "") -> "ClusterJobs":
    """The cluster that the words or Ray's variables name. why: it is needed.

    Raises:
        ConfigError: no cluster is named.
        ClusterError: it cannot be asked.
    """
    from service.orchestration.orders import check_address

    try:
        address = check_address(args.address)
    except ConfigError as error:
        raise ConfigError(f"{why}{error}") from error
    from service.orchestration.cluster_jobs import ClusterJobs

    jobs = ClusterJobs(address)
    if jobs.tells_token:
        say(f"the token goes to {jobs.address} unencrypted; https or a forwarded port hides it")
    return jobs


def address_word(args: argparse.Namespace) -> str:
    """What has to follow a command so that it means the same cluster."""
    return f" --address {args.address}" if args.address else ""


def say(line: str) -> None:
    """A note, on standard error."""
    from service.redaction import redacted

    sys.stderr.write(f"crossreid: {redacted(line)}\n")
    sys.stderr.flush()


def follower(jobs: "ClusterJobs", job_id: str, out: Any = None) -> "Follower":
    """Follows a job's log. out: where its lines go; standard error when None."""
    from service.orchestration.following import Follower
    from service.redaction import redacted

    stream = out or sys.stderr

    def line(text: str) -> None:
        stream.write(redacted(text) + "\n")
        stream.flush()

    return Follower(jobs, job_id, line, say)


def values_of(jobs: "ClusterJobs", run: str, job_id: str) -> dict[str, Any]:
    """How machines are told of a job."""
    return {"run_id": run, "job_id": job_id, "address": jobs.address}


def look(jobs: "ClusterJobs", folder: str, job: "Job | None") -> "Standing":
    """Where the run in `folder` stands, as seen from here, else from the head.

    Raises:
        RunError: there is no such run.
        ClusterError: the cluster gave no answer.
    """
    from service.orchestration.looking import life_of, look_there
    from service.orchestration.reading import find_standing

    return find_standing(Path(folder), life_of(job)) or look_there(jobs, folder, job)


def known_folder(args: argparse.Namespace, jobs: "ClusterJobs", run: str) -> str:
    """Where the cluster has `run`, an id or a folder.

    Raises:
        RunError: an id that none of its jobs has, or whose jobs do not say where it lies, and no
            --storage to look for it in.
    """
    from service.orchestration.job import jobs_of
    from service.orchestration.orders import find_folder
    from service.orchestration.runs import is_seen

    known = jobs.all()
    folder, ours = find_folder(known, run, args.storage or STORAGE), jobs_of(known, run)
    if "/" in run or args.storage or ours.folder or is_seen(Path(folder)):
        return folder
    if not ours.jobs:
        raise unknown(run, jobs)
    raise RunError(
        f"run {run} was not submitted by this command, so its job does not say where it lies; give "
        "--storage FOLDER, its run.storage as the cluster sees it"
    )


def unknown(run: str, jobs: "ClusterJobs") -> RunError:
    """The error for a run that no job of the cluster has."""
    return RunError(
        f"no run {run!r} on the cluster at {jobs.address}, which forgets its jobs when it is "
        f"started again; crossreid list shows those it knows. A run in a folder there is found "
        "with --storage FOLDER, by its whole path"
    )
