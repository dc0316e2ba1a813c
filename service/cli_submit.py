"""The words and answers of `crossreid submit`: a job for a Ray cluster, from this machine."""

import argparse
from typing import TYPE_CHECKING, Any

from service.cli_cluster import (
    CLUSTER,
    address_word,
    cluster_parser,
    follower,
    known_folder,
    look,
    reach,
    say,
    values_of,
)
from service.cli_words import Answer, Command, Run, add_checkpoint
from service.errors import ConfigError, CrossReidError, ExitCode

if TYPE_CHECKING:
    from service.orchestration.cluster_jobs import ClusterJobs
    from service.orchestration.job import Job
    from service.orchestration.orders import Order
    from service.orchestration.standing import Standing
    from service.orchestration.submit import Submitted

_ACCEPT_S = 120.0
"""Seconds that --detach waits for the run's folder."""
_SUBMIT = """\
  crossreid submit train configs/own-photos.yaml train.epochs=30 --address http://head:8265
  crossreid submit train --resume RUN            crossreid submit tune configs/tune-gonogo.yaml
  crossreid submit evaluate RUN                  crossreid submit ingest /data/raw /data/rec 384x128

The code in service/ and jobs/ as it lies here goes along, with local changes. What is shown is the
job's own log; Ctrl-C only stops looking. The exit code is the job's.
"""


# -- the words -------------------------------------------------------------------------------------


def add_submit(commands: Any, command: Command, submit: Run) -> None:
    """The subparsers of `submit`; each calls `submit`, which asks `submitted`."""
    kinds = commands.add_parser(
        "submit",
        help="run on a Ray cluster from this machine",
        epilog=f"examples:\n{_SUBMIT}\n{CLUSTER}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_subparsers(dest="kind", required=True, metavar="COMMAND")
    _add_training(cluster_parser(kinds, command, "train", submit, "train a run there", _SUBMIT))
    _add_training(cluster_parser(kinds, command, "tune", submit, "run a sweep there", _SUBMIT))
    evaluate = cluster_parser(kinds, command, "evaluate", submit, "evaluate a run there", _SUBMIT)
    evaluate.add_argument("run_name", metavar="RUN", help="its id or its folder there")
    add_checkpoint(evaluate)
    ingest = cluster_parser(kinds, command, "ingest", submit, "make records there", _SUBMIT)
    ingest.add_argument("folder", metavar="FOLDER", help="of photos, as the cluster sees it")
    ingest.add_argument("records", metavar="RECORDS", help="folder or fsspec URL to write")
    ingest.add_argument("size", metavar="HEIGHTxWIDTH", help="in pixels, as the model wants")
    for parser in kinds.choices.values():
        parser.add_argument("--detach", action="store_true", help="return once the job has begun")
        parser.add_argument(
            "--any-versions",
            action="store_true",
            help="go on if the cluster has another Ray, Python or torch",
        )


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="CONFIG [a.b=c ...]", help="YAML, overrides")
    parser.add_argument("--run-id", metavar="ID", help="name of the new run")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run: its id or folder")


# -- the answers -----------------------------------------------------------------------------------


def submitted(args: argparse.Namespace) -> Answer:
    """Sends a job, and follows it to its end or, with --detach, to its beginning.

    Raises:
        CrossReidError: what is wrong with config, folders, cluster or token.
    """
    order = _order(args)
    jobs = reach(args)
    if order is None:
        order = _resumed(args, jobs)
    from service.orchestration.submit import send

    if order.places:
        told = ", ".join(f"{name} {place}" for name, place in order.places)
        say(f"the cluster must see {told}")
    sent = send(jobs, order, any_versions=args.any_versions, say=say)
    say(f"job {sent.job_id} is with {jobs.address}")
    try:
        job, begun = _until_begun(jobs, sent) if args.detach else (_until_end(jobs, sent), True)
    except KeyboardInterrupt:
        from service import views_jobs

        say(views_jobs.detached(sent.run, address_word(args)))
        values = {**values_of(jobs, sent.run, sent.job_id), "detached": True}
        return Answer(values, "", ExitCode.INTERRUPTED)
    if job is not None:
        return _ended(args, jobs, job, sent)
    return _detached(args, jobs, sent, begun)


def _order(args: argparse.Namespace) -> "Order | None":
    """What is to be done; None where only the cluster knows the run's folder."""
    from service.orchestration.orders import order_ingest, order_new, order_resume
    from service.orchestration.words import split_words

    if args.kind == "ingest":
        return order_ingest(args.folder, args.records, args.size)
    if args.kind == "evaluate":
        return None
    file, overrides = split_words(args.words)
    if args.resume is None:
        if file is None:
            raise ConfigError(f"submit {args.kind} needs a config, or --resume RUN")
        return order_new(args.kind, file, overrides, args.run_id)
    if args.run_id is not None:
        raise ConfigError("--resume goes on with a run that has a name; leave --run-id out")
    return None if file is None else order_resume(args.kind, args.resume, file, overrides)


def _resumed(args: argparse.Namespace, jobs: "ClusterJobs") -> "Order":
    from service.orchestration.orders import order_evaluation, order_known
    from service.orchestration.words import split_words

    if args.kind == "evaluate":
        return order_evaluation(known_folder(args, jobs, args.run_name), args.checkpoint)
    folder = known_folder(args, jobs, args.resume)
    return order_known(args.kind, folder, split_words(args.words)[1])


def _until_end(jobs: "ClusterJobs", sent: "Submitted") -> "Job":
    return follower(jobs, sent.job_id).until_end()


def _until_begun(jobs: "ClusterJobs", sent: "Submitted") -> "tuple[Job | None, bool]":
    """The job if it has ended, else None; and whether nothing more stands in its way."""
    from service.orchestration.job import ACCEPTED

    begun = False

    def is_accepted(line: str) -> bool:
        nonlocal begun
        begun = begun or ACCEPTED in line
        return begun

    job = follower(jobs, sent.job_id).until(is_accepted, _ACCEPT_S)
    return job, begun


def _detached(
    args: argparse.Namespace, jobs: "ClusterJobs", sent: "Submitted", begun: bool
) -> Answer:
    from service import views_jobs

    if not begun:
        say(f"it has not begun within {_ACCEPT_S:g} s; it stays with the cluster")
    values = {**values_of(jobs, sent.run, sent.job_id), "begun": begun}
    return Answer(values, views_jobs.next_steps(sent.run, address_word(args)))


def _ended(args: argparse.Namespace, jobs: "ClusterJobs", job: "Job", sent: "Submitted") -> Answer:
    """A job that has ended: its exit code, and where its run stands."""
    from service import views_jobs

    if job.how_lost:
        say(job.how_lost)
    # One that was refused has said why, and its run may never have been.
    found = _standing(jobs, sent) if sent.folder and not job.was_refused else None
    values = {
        **values_of(jobs, sent.run, sent.job_id),
        "exit_code": job.exit_code,
        "state": job.state,
        "standing": found.to_dict() if found else None,
    }
    return Answer(values, views_jobs.ended(job, found, address_word(args)), job.exit_code)


def _standing(jobs: "ClusterJobs", sent: "Submitted") -> "Standing | None":
    """Where the job's run stands; None, with a word on why, where that cannot be told."""
    from service.orchestration.job import jobs_of

    try:
        return look(jobs, sent.folder, jobs_of(jobs.all(), sent.run, sent.folder).newest)
    except CrossReidError as error:
        say(f"how the run stands cannot be told: {error}")
    except KeyboardInterrupt:
        say("the job has ended; how the run stands was not waited for")
    return None
