"""The words and answers of `crossreid status | logs | stop | list`: runs on a cluster."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli_cluster import (
    STORAGE,
    address_word,
    cluster_parser,
    follower,
    known_folder,
    look,
    reach,
    say,
    unknown,
    values_of,
)
from service.cli_words import Answer, Command, Run
from service.errors import ClusterError, CrossReidError, ExitCode, RunError

if TYPE_CHECKING:
    from service.orchestration.cluster_jobs import ClusterJobs
    from service.orchestration.job import Job
    from service.orchestration.standing import Life, Standing

_EXAMPLES = {
    "status": "  crossreid status RUN\n  crossreid status RUN --storage /data/runs --json\n\n"
    "A run whose folder is seen from here needs no cluster.\n",
    "logs": "  crossreid logs RUN\n  crossreid logs -f RUN\n\nThe exit code of -f is the job's.\n",
    "stop": "  crossreid stop RUN\n  crossreid submit train --resume RUN\n\n"
    "The exit code is 1 if the run ended without its checkpoint, 2 if it failed, as where that\n"
    "could not be written.\n",
    "list": "  crossreid list --address http://head:8265\n",
}
_BY_FOLDER = "What follows goes by the run's folder alone"
_LOST = 1
"""The exit code of a job that did not say how it ended."""


# -- the words -------------------------------------------------------------------------------------


def add_jobs(commands: Any, command: Command, run: Run) -> None:
    """The subparsers; each calls `run`, which asks `looked`."""

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return cluster_parser(commands, command, name, run, text, _EXAMPLES[name])

    status = add("status", "see where a run stands")
    status.add_argument("run_name", nargs="?", metavar="RUN", help="id or folder; all without it")
    logs = add("logs", "see what a run's job has printed")
    logs.add_argument("run_name", metavar="RUN")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    stop = add("stop", "end a run's job, with a checkpoint")
    stop.add_argument("run_name", metavar="RUN")
    stop.add_argument("--now", action="store_true", help="kill it, without a checkpoint")
    add("list", "see the runs on a cluster")


# -- the answers -----------------------------------------------------------------------------------


def looked(args: argparse.Namespace) -> Answer:
    """Answers `status`, `logs`, `stop` or `list`.

    Raises:
        CrossReidError: no such run, no such cluster, or the token is refused.
    """
    if args.command == "status" and args.run_name is None:
        return _listed(args)
    answers = {"status": _standing, "logs": _logged, "stop": _stopped, "list": _listed}
    return answers[args.command](args)


def _standing(args: argparse.Namespace) -> Answer:
    from service import views_jobs

    found = _seen_here(args)
    if found is None:
        jobs = reach(args, f"the folder of run {args.run_name} is not seen from here; ")
        found = _seen_there(args, jobs)
    return Answer(found.to_dict(), views_jobs.standing(found))


def _seen_here(args: argparse.Namespace) -> "Standing | None":
    """Where a run stands whose folder is seen from here."""
    from service.orchestration.reading import find_standing
    from service.orchestration.runs import absolute, is_seen

    name = args.run_name
    folder = Path(absolute(name if "/" in name else f"{args.storage or STORAGE}/{name}"))
    return find_standing(folder, _life(args, folder)) if is_seen(folder) else None


def _life(args: argparse.Namespace, folder: Path) -> "Life":
    """What the cluster says of the run, if one is named: the folder's lock alone is not seen over
    every network file system."""
    from service.orchestration.job import jobs_of
    from service.orchestration.orders import find_address
    from service.orchestration.standing import Life

    if not (args.address or find_address()):
        return Life()
    from service.orchestration.looking import life_of

    try:
        known = reach(args).all()
    except ClusterError as error:
        say(f"{error}. {_BY_FOLDER}")
        return Life()
    job = jobs_of(known, folder.name, str(folder)).newest
    elsewhere = jobs_of(known, folder.name).folder
    if job is None and elsewhere:
        say(f"the cluster has a run of that name in {elsewhere}, not in {folder}. {_BY_FOLDER}")
    return life_of(job)


def _seen_there(args: argparse.Namespace, jobs: "ClusterJobs") -> "Standing":
    from service.orchestration.job import jobs_of

    folder = known_folder(args, jobs, args.run_name)
    return look(jobs, folder, jobs_of(jobs.all(), Path(folder).name, folder).newest)


def _logged(args: argparse.Namespace) -> Answer:
    from service import views_jobs
    from service.redaction import redacted

    jobs = reach(args)
    job = _job(args, jobs)
    if not args.follow:
        lines = redacted(jobs.log(job.job_id))
        return Answer({**values_of(jobs, job.run, job.job_id), "log": lines}, lines, ExitCode.OK)
    try:
        out = sys.stderr if args.json else sys.stdout
        ended = follower(jobs, job.job_id, out).until_end()
    except KeyboardInterrupt:
        say(views_jobs.detached(job.run, address_word(args)))
        return Answer(values_of(jobs, job.run, job.job_id), "", ExitCode.INTERRUPTED)
    if ended.how_lost:
        say(ended.how_lost)
    values = {"exit_code": ended.exit_code, "state": ended.state}
    return Answer({**values_of(jobs, job.run, job.job_id), **values}, "", ended.exit_code)


def _stopped(args: argparse.Namespace) -> Answer:
    from service import views_jobs
    from service.orchestration.ending_jobs import end_job

    jobs = reach(args)
    job = _job(args, jobs, running=True)
    if job.has_ended:
        raise RunError(
            f"run {job.run} is not running: its job {job.job_id} has ended ({job.state}); see "
            f"crossreid status {job.run}{address_word(args)}"
        )
    job = end_job(jobs, job, now=args.now, say=say)
    found = _stands(args, jobs, job) if job.trains else None
    values = {
        **values_of(jobs, job.run, job.job_id),
        "state": job.state,
        "standing": found.to_dict() if found else None,
    }
    text = views_jobs.stopped(job, found, address_word(args))
    return Answer(values, text, ExitCode.OK if args.now else _left_with(found))


def _left_with(found: "Standing | None") -> int:
    """The exit code of a stop that asked for a checkpoint: Ray does not keep the job's own.

    found: where the run stands now, None where that is not known.
    """
    from service.orchestration.standing import State

    if found is None or not found.begun:
        return ExitCode.OK
    codes = {State.LOST: _LOST, State.FAILED: ExitCode.USER_ERROR}
    return codes.get(found.state, ExitCode.OK)


def _stands(args: argparse.Namespace, jobs: "ClusterJobs", job: "Job") -> "Standing | None":
    """Where the run of an ended job stands; None, with a word on why, where that cannot be told."""
    from service.orchestration.runs import absolute

    folder = job.folder or (absolute(f"{args.storage}/{job.run}") if args.storage else "")
    try:
        return look(jobs, folder, job) if folder else None
    except CrossReidError as error:
        say(f"how the run stands cannot be told: {error}")
        return None


def _listed(args: argparse.Namespace) -> Answer:
    from service import views_jobs
    from service.orchestration.job import newest_jobs

    known = reach(args).all()
    newest = newest_jobs(known)
    return Answer(
        {"runs": [job.to_dict() for job in newest]}, views_jobs.runs(newest, known, time.time())
    )


def _job(args: argparse.Namespace, jobs: "ClusterJobs", *, running: bool = False) -> "Job":
    """The job that the words name, else that of the run they name.

    running: one that has ended only where none runs.
    """
    from service.orchestration.job import jobs_of
    from service.orchestration.runs import absolute

    name, known = Path(args.run_name).name, jobs.all()
    named = next((job for job in known if job.job_id == name and job.run != name), None)
    ours = jobs_of(known, name, absolute(args.run_name) if "/" in args.run_name else "")
    found = named or (ours.running if running else None) or ours.shown
    if found is None:
        raise unknown(args.run_name, jobs)
    return found
