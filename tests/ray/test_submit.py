"""Runs submitted to a real cluster that asks for a token: followed, looked at, stopped, continued.

The commands run as processes of their own, from a checkout with changes in it; there is no Ray in
this process.
"""

import json
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from service.data.synthetic import SynthSettings, synthesize
from service.errors import ExitCode
from service.training.journal import read_journal
from tests.ray.head import CHANGE, REPO, Head, head, is_open, processes_of
from tests.small import CONFIG
from tests.states import checkpoints, step_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHORT = (
    *("train.max_steps=40", "policy.go=0.99", "policy.hold=0.995", "policy.collapse=0.999"),
    *("telemetry.enabled=true", "telemetry.port=0", "telemetry.linger_s=0"),
)
"""Learns enough for a GO by its end."""
RAYS_OWN = {"_AutoscalingCoordinatorActor", "PlacementGroupCleaner"}
"""Actors that Ray Train itself leaves on a cluster."""
LONG = ("train.max_steps=10000", "train.checkpoint_every=20")


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """The module's cluster. Its end is a test of its own: nothing may be left."""
    folder = tmp_path_factory.mktemp("head")
    with head(folder) as found:
        yield found
        assert len(processes_of(found)) > 3, "the cluster's own"
    until(lambda: not processes_of(found), 30)
    assert [port for port in found.ports if is_open(port)] == []


@pytest.fixture(scope="module")
def words(ray_head: Head, records: Path) -> list[str]:
    """A config, and where its runs lie."""
    file = ray_head.folder / "small.yaml"
    file.write_text(CONFIG.format(records=records))
    return [str(file), f"run.storage={ray_head.folder / 'runs'}"]


@dataclass(frozen=True, slots=True)
class Begun:
    """Two runs, submitted at once so that they come up side by side: a short one that is followed
    through `cutter`, and a long one with --detach."""

    short: "subprocess.Popen[str]"
    long: "subprocess.Popen[str]"
    cutter: "Cutter"

    def wait_for_short(self) -> None:
        until(lambda: self.short.poll() is not None, 240)


@pytest.fixture(scope="module")
def begun(ray_head: Head, words: list[str]) -> Iterator[Begun]:
    cutter = Cutter(ray_head.ports[1])
    submit = ("submit", "train", *words, "--json")
    followed = ("--run-id", "short", "--address", cutter.address)
    detached = ("--run-id", "long", "--detach")
    yield Begun(
        ray_head.start(*submit, *SHORT, *followed),
        ray_head.start(*submit, *LONG, *detached),
        cutter,
    )
    cutter.close()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A submission that is refused, and the words of it."""

    name: str
    process: "subprocess.Popen[str]"
    words: str


@pytest.fixture(scope="module")
def refusals(
    ray_head: Head, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[Refusal]:
    """Submitted beside what else runs, since they take room and time of nobody."""
    info = tmp_path_factory.mktemp("packages") / "torch-2.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
    blocked = ray_head.folder / "file"
    blocked.write_text("")
    storage = f"run.storage={blocked}/runs"
    told = {
        "no-gpu": (["cluster.gpus_per_worker=1"], {}, r"needs 1 GPU.* cluster has 0"),
        "no-store": ([storage], {}, r"RunError: run\.storage=.* cannot be"),
        "no-torch": ([], {"PYTHONPATH": str(info.parent)}, r"has torch .*, expected 2\.0\.0, as"),
    }
    return [
        Refusal(
            name,
            ray_head.start("submit", "train", *words, *more, "--run-id", name, **changed),
            expected,
        )
        for name, (more, changed, expected) in told.items()
    ]


def until(look: Callable[[], Any], seconds: float = 90.0) -> Any:
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return answer


class Cutter:
    """A forwarded port whose connections are cut when asked to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.accepted = 0
        Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self) -> int:
        """How many ends of connections were open until now; 0 where none was open at both."""
        ends, self._ends = self._ends, []
        cut = 0
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
                cut += 1
            except OSError:
                continue
        return cut if cut > 1 else 0

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._ends += [near, far]
            self.accepted += 1
            for source, sink in ((near, far), (far, near)):
                Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        source.close()


def test_a_submitted_run_is_followed_through_cut_connections_to_its_own_exit_code(
    ray_head: Head, begun: Begun
):
    process, cutter = begun.short, begun.cutter
    journal = ray_head.folder / "runs" / "short" / "journal.jsonl"
    cuts = 0
    for path in (journal.parent, journal):
        until(lambda path=path: process.poll() is not None or path.exists(), 240)
        # It may be between two connections just now, or at its end.
        cuts += until(lambda: cutter.cut() or process.poll() is not None, 240)
        before = cutter.accepted
        until(lambda before=before: cutter.accepted > before or process.poll() is not None, 240)
    assert cuts >= 2, "both ends of one connection, at least"
    out, err = process.communicate(timeout=240)
    assert process.returncode == ExitCode.OK, err
    values = json.loads(out)
    assert (values["run_id"], values["exit_code"], values["state"]) == ("short", 0, "SUCCEEDED")
    found = values["standing"]
    assert (found["state"], found["verdict"], found["step"]) == ("ended", "GO", 40)
    assert found["summary"]["steps"] == 40
    assert ray_head.token not in out + err

    log = ray_head.run("logs", "short").stdout.splitlines()
    lines = [line for line in log if "Runtime env is" not in line and "Running entry" not in line]
    assert lines[0] == CHANGE
    shown = [line for line in err.splitlines() if not line.startswith("crossreid: ")]
    assert shown == lines
    assert f"the cluster must see run.storage {ray_head.folder}/runs" in err
    [start] = [event for event in read_journal(journal.parent) if event["event"] == "start"]
    assert CHANGE in start, "the workers do not run the code of the checkout"


def test_a_detached_run_is_looked_at_stopped_with_a_checkpoint_and_goes_on_from_it(
    ray_head: Head, words: list[str], begun: Begun
):
    folder = ray_head.folder / "runs" / "long"
    out, err = begun.long.communicate(timeout=240)
    assert begun.long.returncode == ExitCode.OK, err
    assert json.loads(out)["begun"] is True
    assert folder.is_dir()

    until(lambda: checkpoints(folder), 240)
    found = json.loads(ray_head.run("status", "long", "--json").stdout)
    assert (found["state"], found["total"]) == ("training", 10000)
    assert found["step"] >= found["checkpoint_step"] >= 20
    assert found["eta_s"] > 0
    assert found["checkpoint_at"].startswith(f"{folder}/checkpoint_")

    again = ray_head.run("submit", "train", *words, "run.storage=/elsewhere", "--run-id", "long")
    assert again.returncode == ExitCode.USER_ERROR
    assert "run long is being trained already, by job long (RUNNING)" in again.stderr

    stopped = ray_head.run("stop", "long")
    assert stopped.returncode == ExitCode.OK, stopped.stderr
    at = re.search(r"checkpoint of step (\d+) in (\S+)", stopped.stdout)
    assert at is not None
    step = step_of(checkpoints(folder)[-1])
    assert (int(at[1]), at[2]) == (step, str(checkpoints(folder)[-1]))
    assert step > found["step"]

    followed = ray_head.start("submit", "train", "--resume", "long")
    until(lambda: sum(e["event"] == "start" for e in read_journal(folder)) == 2, 240)
    followed.send_signal(signal.SIGINT)
    out, err = followed.communicate(timeout=120)
    assert (followed.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert "no longer looking; run long goes on. Look again: crossreid logs -f long" in err
    starts = [e for e in read_journal(folder) if e["event"] == "start"]
    assert [e["step"] for e in starts] == [0, step]

    known = json.loads(ray_head.run("list", "--json").stdout)["runs"]
    assert [(r["run"], r["job_id"], r["state"]) for r in known if r["run"] == "long"] == [
        ("long", "long.2", "RUNNING")
    ]
    killed = ray_head.run("stop", "long", "--now")
    assert killed.returncode == ExitCode.OK, killed.stderr
    assert "run long was killed at step" in killed.stdout

    kept = step_of(checkpoints(folder)[-1])
    again = ray_head.run("submit", "train", "--resume", "long", "--detach")
    assert again.returncode == ExitCode.OK, again.stderr
    until(lambda: sum(e["event"] == "start" for e in read_journal(folder)) == 3, 240)
    starts = [e for e in read_journal(folder) if e["event"] == "start"]
    assert starts[-1]["step"] >= kept >= step
    stopped = ray_head.run("stop", "long")
    assert stopped.returncode == ExitCode.OK, stopped.stderr
    assert checkpoints(folder)


def rays_own_command(ray_head: Head, words: list[str], run: str) -> str:
    """Starts a job with the line of README.md, which is for those without this command; Ray's name
    for it."""
    lines = (REPO / "README.md").read_text().splitlines()
    line = next(one for one in lines if one.startswith("RAY_AUTH_MODE=token ray job submit"))
    config = shlex.join([*words, *LONG])
    line = line.replace("ray job submit", "ray job submit --no-wait").replace("NAME", run)
    line = line.replace("URL", ray_head.address).replace("configs/orbench-vitb16.yaml", config)
    found = subprocess.run(
        line,
        shell=True,
        cwd=ray_head.checkout,
        env=ray_head.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    told = re.search(r"raysubmit_\w+", found.stdout)
    assert told is not None
    return told[0]


def test_an_evaluation_takes_a_workers_share_and_a_job_of_rays_own_command_is_known(
    ray_head: Head, words: list[str], begun: Begun, refusals: list[Refusal], tmp_path: Path
):
    begun.wait_for_short()
    evaluated = ray_head.start("submit", "evaluate", "short", "--json")
    synthesize(tmp_path / "o", SynthSettings(people=6, images_per_person=5, image_size=(32, 32)))
    places = (str(tmp_path / "o"), str(tmp_path / "r"))
    ingested = ray_head.start("submit", "ingest", *places, "32x32", "--json")
    job = rays_own_command(ray_head, words, "bare")
    followed = ray_head.start("logs", "-f", "bare")
    until(lambda: followed.poll() is not None or (ray_head.folder / "runs" / "bare").is_dir(), 240)
    stopped = ray_head.run("stop", "bare", "--json")
    assert stopped.returncode == ExitCode.OK, stopped.stderr
    ended = json.loads(stopped.stdout)
    assert (ended["job_id"], ended["state"]) == (job, "STOPPED")
    out, err = followed.communicate(timeout=120)
    assert followed.returncode == ExitCode.INTERRUPTED, err
    assert out.splitlines()[0] == CHANGE

    out, err = ingested.communicate(timeout=240)
    assert (ingested.returncode, json.loads(out)["state"]) == (ExitCode.OK, "SUCCEEDED"), err
    assert (tmp_path / "r" / "manifest.json").exists()
    out, err = evaluated.communicate(timeout=240)
    assert evaluated.returncode == ExitCode.OK, err
    assert "evaluating on a machine with 1 CPUs free" in err
    summary = json.loads(out)["standing"]["summary"]
    assert (summary["verdict"], summary["evaluated_step"]) == ("GO", 40)
    assert 0 <= summary["mAP"]["mean"] <= 1


def test_where_a_run_stands_is_read_on_the_head_and_leaves_no_job(ray_head: Head, begun: Begun):
    """As from a machine that does not see the run's folder."""
    begun.wait_for_short()
    code = (
        "import os, json; from service.orchestration.cluster_jobs import ClusterJobs;"
        "from service.orchestration.looking import look_there;"
        "jobs = ClusterJobs(os.environ['RAY_API_SERVER_ADDRESS']);"
        f"print(json.dumps(look_there(jobs, '{ray_head.folder}/runs/short', None).to_dict()));"
        "print(json.dumps([job.job_id for job in jobs.all()]))"
    )
    found = subprocess.run(
        [ray_head.python, "-c", code],
        cwd=ray_head.checkout,
        env=ray_head.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    there, jobs = map(json.loads, found.stdout.splitlines())
    here = json.loads(ray_head.run("status", f"{ray_head.folder}/runs/short", "--json").stdout)
    differs = ("silent_s", "checkpoint_age_s")
    assert {k: v for k, v in there.items() if k not in differs} == {
        k: v for k, v in here.items() if k not in differs
    }
    assert "short" in jobs
    assert not any(name.startswith("crossreid-") for name in jobs)


def test_what_cannot_run_is_refused_in_words_and_leaves_nothing(
    ray_head: Head, refusals: list[Refusal]
):
    for refusal in refusals:
        out, err = refusal.process.communicate(timeout=240)
        assert refusal.process.returncode == ExitCode.USER_ERROR, err
        assert out == f"job {refusal.name}: exit code 2\n"
        assert re.search(refusal.words, err), err
        assert "cannot be told" not in err, "a run that never was is not looked at"
        assert "Traceback" not in err
    left = {path.name for path in (ray_head.folder / "runs").iterdir()}
    assert left <= {"short", "long", "bare", "exporters"}


def test_a_cluster_that_refuses_the_token_is_an_error_that_says_why(
    ray_head: Head, words: list[str]
):
    submit = ("submit", "train", *words, "--run-id", "nobodys")
    refused = ray_head.start(*submit, RAY_AUTH_TOKEN="0123wrong4567")
    wrong = ray_head.start("list", RAY_AUTH_TOKEN="0123wrong4567")
    missing = ray_head.start("status", "short", HOME=str(ray_head.folder / "nobody"))
    expected = [
        (refused, "refuses the token that was found in RAY_AUTH_TOKEN"),
        (wrong, "refuses the token that was found in RAY_AUTH_TOKEN"),
        (missing, "wants a token, and none was found"),
    ]
    for process, told in expected:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (ExitCode.USER_ERROR, "")
        assert told in err
        assert "wrong4567" not in err
        assert "Traceback" not in err
    assert not (ray_head.folder / "runs" / "nobodys").exists()


@pytest.mark.prove
def test_a_submitted_sweep_is_looked_at_stopped_and_goes_on(ray_head: Head, words: list[str]):
    space = "tune.space={optim.head_lr: {grid: [3e-3, 1e-3]}}"
    sweep = (*words, space, "train.max_steps=2000", "train.checkpoint_every=20")
    folder = ray_head.folder / "runs" / "swept"
    begun = ray_head.run("submit", "tune", *sweep, "--run-id", "swept", "--detach")
    assert begun.returncode == ExitCode.OK, begun.stderr
    until(lambda: any(checkpoints(trial) for trial in folder.glob("*_0000*")), 240)
    found = json.loads(ray_head.run("status", "swept", "--json").stdout)
    assert found["state"] == "training"
    assert 1 <= len(found["trials"]) <= 2
    stopped = ray_head.run("stop", "swept")
    assert stopped.returncode == ExitCode.OK, stopped.stderr
    assert any(checkpoints(trial) for trial in folder.glob("*_0000*"))

    followed = ray_head.start("submit", "tune", "--resume", "swept", "--json")
    out, err = followed.communicate(timeout=500)
    assert followed.returncode == ExitCode.OK, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("SUCCEEDED", 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["trials"]) == 2
    assert {trial["steps"] for trial in summary["trials"]} == {2000}
    starts = [
        [e["step"] for e in read_journal(trial) if e["event"] == "start"]
        for trial in folder.glob("*_0000*")
    ]
    assert any(len(steps) == 2 and steps[1] > 0 for steps in starts)


def test_the_cluster_holds_nothing_any_more(ray_head: Head):
    def held() -> list[str]:
        with ray_head.get("/api/v0/placement_groups") as answer:
            groups = json.load(answer)["data"]["result"]["result"]
        return [group["placement_group_id"] for group in groups if group["state"] != "REMOVED"]

    def alive() -> list[str]:
        with ray_head.get("/api/v0/actors") as answer:
            actors = json.load(answer)["data"]["result"]["result"]
        return [actor["class_name"] for actor in actors if actor["state"] != "DEAD"]

    until(lambda: not held())
    until(lambda: set(alive()) <= RAYS_OWN)
    # Ray's helper of a killed run cannot end itself: one for the one that was killed.
    assert alive().count("PlacementGroupCleaner") <= 1
    assert list((ray_head.folder / "tmp").glob("crossreid-*")) == []
    assert list((ray_head.folder / "runs" / "exporters").iterdir()) == []
    left = {path.name for path in (ray_head.folder / "runs" / "short").iterdir()}
    assert left == {
        *("config.yaml", "journal.jsonl", "summary.json", ".driver.json", ".lock", ".writer.lock"),
        *(path.name for path in checkpoints(ray_head.folder / "runs" / "short")),
    }
    jobs = json.loads(ray_head.run("list", "--json").stdout)["runs"]
    assert {job["state"] for job in jobs} <= {"SUCCEEDED", "FAILED", "STOPPED"}
