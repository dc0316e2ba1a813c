"""Looks at the Ray cluster that a config asks for: reached, of our versions, large enough, with a
storage folder that its nodes share."""

import contextlib
import os
import platform
import shutil
import socket
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from service import __version__
from service.config import Config
from service.doctor.check import Check, Diagnosis, Status, Table, judged
from service.errors import ClusterError
from service.orchestration.cluster import NAMESPACE, Cluster, connected, first_line
from service.orchestration.room import require
from service.orchestration.runs import resolved
from service.orchestration.space import num_trials
from service.telemetry.exporter import ACTOR_NAME

TASK_S = 60.0
"""Seconds that the tiny task may take to start and answer."""
_HEAD = "node:__internal_head__"


def diagnose_cluster(config: Config) -> Diagnosis:
    """Joins the cluster of `config`, or starts one here as `train` would, and asks one node."""
    config = resolved(config)
    subject = f"cluster for {config.run.name}"
    try:
        with connected(config.cluster) as cluster:
            return Diagnosis(subject, *_look(config, cluster))
    except ClusterError as error:
        wanted = "a cluster that lets us in"
        remedy = "`crossreid train CONFIG --no-ray` needs no cluster"
        return Diagnosis(subject, (Check("Ray", Status.FAIL, str(error), wanted, remedy),))


def versions() -> dict[str, str]:
    """What must be alike on all machines, with this process's own versions."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    return {
        "python": platform.python_version(),
        "ray": installed("ray"),
        "torch": installed("torch"),
        "crossreid": __version__,
    }


def _look(config: Config, cluster: Cluster) -> tuple[tuple[Check, ...], tuple[Table, ...]]:
    where = "started on this machine" if cluster.local else f"joined at {cluster.address}"
    joined = [Check("Ray", Status.OK, where), _token(), _resources(config)]
    ours = versions()
    theirs, checks = _a_node(config, ours)
    rows = tuple((name, ours[name], str(theirs.get(name, "?"))) for name in ours)
    table = Table(
        f"Versions here and on {theirs.get('host', 'a node')}", ("package", "here", "there"), rows
    )
    return (*joined, *checks, *_exporter(config, cluster)), (table,)


def _token() -> Check:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    asked = mode.lower() == "token"
    return judged(
        "token",
        asked,
        f"RAY_AUTH_MODE={mode}" + (", accepted" if asked else ""),
        "a cluster that asks for a token",
        "start the cluster with RAY_AUTH_MODE=token: without it anyone who reaches it can run "
        "programs on it",
        otherwise=Status.WARN,
    )


def _a_node(config: Config, ours: dict[str, str]) -> tuple[dict[str, str], list[Check]]:
    """What one node answers, and how it fits; an empty answer when none comes."""
    try:
        with _test_folder(Path(config.run.storage)) as folder:
            call = _ask(_answer).remote(str(folder))
            theirs: dict[str, str] = cast(Any, ray.get)(call, timeout=TASK_S)
            return theirs, [_alike(ours, theirs), _shared(config.run.storage, folder, theirs)]
    except RayError as error:
        told = f"no answer within {TASK_S:g} s: {first_line(error)}"
        wanted = "an answer to a task that asks for no resources"
        remedy = "is the package installed on the nodes, and can it be imported there?"
        return {}, [Check("a node", Status.FAIL, told, wanted, remedy)]
    except OSError as error:
        told = f"{config.run.storage} cannot be written here: {error.strerror or error}"
        wanted = "a folder that may be written"
        return {}, [Check("storage", Status.FAIL, told, wanted, "set run.storage to one")]


def _resources(config: Config) -> Check:
    found = ray.cluster_resources()
    has = f"{found.get('CPU', 0):g} CPUs, {found.get('GPU', 0):g} GPUs"
    asked, trials = config.cluster, _concurrent(config)
    try:
        require(asked, trials)
    except ClusterError as error:
        wanted = "room for all workers at once"
        remedy = "see cluster.num_workers" + (" and tune.max_concurrent" if trials > 1 else "")
        return Check("resources", Status.FAIL, str(error), wanted, remedy)
    who = "the run asks for" if trials == 1 else f"the sweep asks for {trials} trials x"
    return Check(
        "resources",
        Status.OK,
        f"{has}; {who} {asked.num_workers} x {asked.cpus_per_worker:g} CPUs and "
        f"{asked.gpus_per_worker:g} GPUs",
    )


def _concurrent(config: Config) -> int:
    """Trials at the same time; a config that searches nothing is one run."""
    return min(num_trials(config), config.tune.max_concurrent) if config.tune.space else 1


def _alike(ours: dict[str, str], theirs: dict[str, str]) -> Check:
    other = {name for name in ours if ours[name] != theirs[name]}
    told = ", ".join(f"{name} {ours[name]} here, {theirs[name]} there" for name in sorted(other))
    return judged(
        "versions",
        not other,
        told or ", ".join(f"{name} {number}" for name, number in ours.items()),
        "the same on all machines",
        "install the versions of constraints.txt on the nodes, or use one image for all",
        otherwise=Status.FAIL if "ray" in other or "crossreid" in other else Status.WARN,
    )


def _shared(storage: str, folder: Path, theirs: dict[str, str]) -> Check:
    """The node read what was written here, and what it wrote is read here."""
    reply = folder / "reply"
    arrived = reply.exists() and reply.read_text("utf-8") == theirs["pid"]
    told = theirs["storage"] or ("" if arrived else "what the node wrote did not arrive here")
    return judged(
        "storage",
        not told,
        told or f"{storage} is shared with {theirs['host']} and may be written there",
        "one folder that all nodes read and write",
        "mount the same folder on all nodes, and set run.storage to it",
    )


def _exporter(config: Config, cluster: Cluster) -> list[Check]:
    """Whether the exporter can listen where Prometheus expects it."""
    asked = config.telemetry
    if not asked.enabled:
        return [Check("exporter", Status.OK, "off (telemetry.enabled=false)")]
    with contextlib.suppress(ValueError):
        ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
        return [Check("exporter", Status.OK, "the cluster's exporter runs already")]
    options = {"resources": {_HEAD: 0.001}}
    try:
        taken = ray.get(_ask(_why_not_free, options).remote(asked.host, asked.port), timeout=TASK_S)
    except RayError as error:
        taken = first_line(error)
    return [
        judged(
            "exporter",
            not taken,
            f"{asked.host}:{asked.port} is " + (f"not free: {taken}" if taken else "free"),
            "a free port on the head",
            "set telemetry.port to a free port (0 takes any)",
            otherwise=Status.WARN if cluster.local else Status.FAIL,
        )
    ]


def _ask(function: Any, options: dict[str, Any] | None = None) -> Any:
    """The function as a task that any node has room for."""
    return ray.remote(function).options(num_cpus=0, max_retries=0, **(options or {}))


def _answer(folder: str) -> dict[str, str]:
    """Runs on a node: its versions, and a reply in the storage folder."""
    problem = ""
    try:
        (Path(folder) / "question").read_text("utf-8")
        (Path(folder) / "reply").write_text(str(os.getpid()), "utf-8")
    except OSError as error:
        problem = f"{folder} cannot be used on {socket.gethostname()}: {error}"
    host = socket.gethostname()
    return {**versions(), "host": host, "pid": str(os.getpid()), "storage": problem}


def _why_not_free(host: str, port: int) -> str:
    """Runs on the head: why the port cannot be listened on, or an empty text."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return str(error.strerror or error)
    return ""


@contextlib.contextmanager
def _test_folder(storage: Path) -> Iterator[Path]:
    """A folder in `storage` with a question in it; what was made for it is taken away again."""
    missing = [p for p in (storage, *storage.parents) if not p.exists()]
    folder = storage / f".crossreid-doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        (folder / "question").write_text("?", "utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()
