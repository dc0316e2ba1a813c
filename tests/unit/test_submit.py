"""What is settled before a cluster is asked: orders, names, packages, versions, tokens, probes."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from ray._private.runtime_env.packaging import get_uri_for_directory

from service import cli
from service.config import Config, DataConfig
from service.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    CrossReidError,
    ExitCode,
    RunError,
)
from service.orchestration import cluster_jobs, packing, worker
from service.orchestration.cluster_jobs import ClusterJobs, find_token
from service.orchestration.job import LINGER_S, STOP_S, Job, job_name
from service.orchestration.orders import (
    Order,
    check_address,
    find_folder,
    order_evaluation,
    order_ingest,
    order_known,
    order_new,
    order_resume,
)
from service.orchestration.packing import packed
from service.orchestration.preflight import preflight
from service.orchestration.runs import check_run_id, create_run
from service.orchestration.submit import Submitted, send
from service.orchestration.versions import VARIABLE, misfit, unfit, versions, wanted
from service.settings import load_text, override
from service.training.store import FolderStore, UrlStore
from tests.jobserver import JobServer

REPO = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "night.yaml"
    path.write_text("run: {name: night}\ndata: {records: rec}\ncluster: {address: 10.0.0.1:6379}\n")
    return str(path)


# -- orders ----------------------------------------------------------------------------------------


def test_a_new_order_is_a_whole_config_with_folders_that_mean_the_same_anywhere(
    file: str, tmp_path: Path
):
    (tmp_path / "weights.pt").write_text("")
    words = ["train.epochs=3", "run.checkpoints=saved", "model.backbone.pretrained=weights.pt"]
    order = order_new("train", file, words, None)
    config = order.config
    assert config is not None
    assert load_text(config.to_yaml()) == config
    assert config.train.epochs == 3
    assert config.cluster.address is None
    assert order.places == (
        ("run.storage", f"{tmp_path}/runs"),
        ("data.records", f"{tmp_path}/rec"),
        ("run.checkpoints", f"{tmp_path}/saved"),
        ("model.backbone.pretrained", f"{tmp_path}/weights.pt"),
    )
    assert check_run_id(order.run).startswith("night-")
    assert order.folder == f"{tmp_path}/runs/{order.run}"
    assert order.words == ("jobs.train", "config.yaml", "--run-id", order.run, "--new")


def test_urls_stay_and_are_no_folders_to_see(file: str, tmp_path: Path):
    order = order_new("train", file, ["data.records=s3://b/rec"], "one")
    assert order.places == (("run.storage", f"{tmp_path}/runs"),)


@pytest.mark.parametrize(
    ("kind", "words", "run_id", "message"),
    [
        ("train", ["train.epoch=3"], None, "did you mean 'train.epochs'"),
        ("train", [], "../out", "must be 1 to 64 letters"),
        ("train", ["run.storage=s3://b/runs"], None, "mount the store"),
        ("train", [], "there", "exists already"),
        ("tune", [], None, "tune.space is empty"),
        ("tune", ["tune.space={optim.head_lrr: {grid: [1]}}"], None, "optim.head_lr"),
    ],
)
def test_a_mistake_is_told_before_any_cluster_is_asked(
    file: str, tmp_path: Path, kind: str, words: list[str], run_id: str | None, message: str
):
    create_run(Config(data=DataConfig(records="r")), "there", tmp_path / "runs")
    with pytest.raises(CrossReidError, match=message):
        order_new(kind, file, words, run_id)


def test_a_run_goes_on_in_its_folder_with_a_config_or_its_own(file: str, tmp_path: Path):
    order = order_resume("train", "one", file, ["run.storage=/data/runs"])
    assert (order.run, order.folder, order.is_new) == ("one", "/data/runs/one", False)
    assert order.words == ("jobs.train", "config.yaml", "--resume", "/data/runs/one")
    assert order_resume("train", "/x/two", file, []).folder == "/x/two"
    known = order_known("tune", "/data/runs/one", ["cluster.num_workers=2"])
    assert known.words == ("jobs.tune", "--resume", "/data/runs/one", "cluster.num_workers=2")
    assert (known.run, known.config) == ("one", None)
    words = ("jobs.evaluate", "/data/runs/one", "--checkpoint", "best")
    assert order_evaluation("/data/runs/one", "best").words == words


def test_an_ingest_has_a_name_and_absolute_folders(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    order = order_ingest("raw", "s3://b/rec", "384x128")
    assert order.words == ("jobs.ingest", f"{tmp_path}/raw", "s3://b/rec", "384x128")
    assert order.places == (("folder", f"{tmp_path}/raw"),)
    assert check_run_id(order.run).startswith("ingest-")
    with pytest.raises(ConfigError, match="must look like 384x128"):
        order_ingest("raw", "rec", "384")


def test_a_run_lies_where_the_last_job_says_that_trained_it_else_below_the_storage():
    jobs = [Job(f"a.{n}", "a", "train", "FAILED", folder) for n, folder in enumerate(["/x/a", ""])]
    jobs.append(Job("b", "b", "train", "FAILED", "/y/b"))
    mistyped = Job("a.2", "a", "train", "FAILED", "/typo/a", 2, "x:\nrefused: RunError: no run")
    jobs += [mistyped, Job("a.evaluate", "a", "evaluate", "SUCCEEDED", "/copy/a")]
    assert find_folder(jobs, "a", "/s") == "/x/a"
    assert find_folder(jobs, "c", "/s") == "/s/c"
    assert find_folder(jobs, "/z/a", "/s") == "/z/a"
    for known in (jobs, []):
        with pytest.raises(RunError, match="must be 1 to 64 letters"):
            find_folder(known, "a b", "/s")


@pytest.mark.parametrize(
    "ordered",
    [
        lambda file: order_new("train", file, ["run.checkpoints=sftp://me:hush@h/x"], None),
        lambda file: order_new("train", file, ["data.records=s3://key:hush@b/rec"], None),
        lambda file: order_resume("train", "one", file, ["data.records=s3://key:hush@b/rec"]),
        lambda file: order_known("train", "/r/one", ["run.checkpoints=sftp://me:hush@h/x"]),
        lambda file: order_ingest("/raw", "s3://key:hush@b/rec", "384x128"),
    ],
)
def test_a_password_does_not_travel(file: str, ordered: Any):
    with pytest.raises(ConfigError, match=r"=\w+://<login>@\S+ has a password") as told:
        ordered(file)
    assert "hush" not in str(told.value)


@given(attempts=st.lists(st.sampled_from(["train", "tune", "evaluate"]), max_size=12))
def test_jobs_names_say_their_run_and_are_never_used_twice(attempts: list[str]):
    taken: list[str] = []
    for kind in attempts:
        taken.append(job_name("night-1", kind, taken))
    assert len(set(taken)) == len(taken)
    assert {name.partition(".")[0] for name in taken} <= {"night-1"}
    trained = [n for n, kind in zip(taken, attempts, strict=True) if kind != "evaluate"]
    assert trained == (["night-1"] + [f"night-1.{i}" for i in range(2, 99)])[: len(trained)]


def test_the_address_is_given_or_that_of_a_dashboard_in_rays_variables(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="which cluster"):
        check_address(None)
    monkeypatch.setenv("RAY_ADDRESS", "https://ray.example")
    assert check_address(None) == "https://ray.example"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert check_address(None) == "http://head:8265"
    assert check_address("http://other:1") == "http://other:1"
    with pytest.raises(ConfigError, match="must be that of the dashboard"):
        check_address("ray://head:10001")


# -- the package -----------------------------------------------------------------------------------


def test_the_package_is_the_code_and_its_data_and_the_config_and_nothing_else():
    with packed("a: 1\n") as package:
        found = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
        assert (package / "config.yaml").read_text() == "a: 1\n"
        assert sum((package / name).stat().st_size for name in found) < 5_000_000
    known = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "service", "jobs"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = {name for name in known.stdout.split() if (REPO / name).exists()}
    assert found == there | {"config.yaml"}
    assert not package.exists()


def checkout(folder: Path) -> Path:
    for name in ("service", "jobs"):
        (folder / name / "__pycache__").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
        (folder / name / "__pycache__" / "x.pyc").write_text(str(time.time()))
        (folder / name / ".secret").write_text("s")
    return folder


def test_the_same_code_and_config_have_one_address_in_rays_store(tmp_path: Path):
    root = checkout(tmp_path)

    def uri(config: str | None) -> str:
        with packed(config, root) as package:
            return get_uri_for_directory(str(package), include_gitignore=True)

    with packed(None, root) as package:
        found = {str(p.relative_to(package)) for p in package.rglob("*.*")}
    assert found == {"service/__init__.py", "jobs/__init__.py"}
    first = uri("a: 1")
    os.utime(root / "service" / "__init__.py", (1, 1))
    (root / "jobs" / "__pycache__" / "y.pyc").write_text("")
    assert uri("a: 1") == first
    assert uri("a: 2") != first
    (root / "service" / "mine.py").write_text("x = 1")
    assert uri("a: 1") != first


def test_a_package_that_is_too_large_names_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = checkout(tmp_path)
    (root / "service" / "weights.bin").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(packing, "LIMIT_BYTES", 2_000_000)
    message = r"is 3\.0 MB, .* at most 2 MB .*: service/weights\.bin 3\.0 MB, "
    with pytest.raises(RunError, match=message), packed(None, root):
        pass
    (root / "jobs" / "__init__.py").unlink()
    with pytest.raises(RunError, match="jobs is not there"), packed(None, root):
        pass


def test_a_file_that_cannot_be_packed_is_an_error_in_words(tmp_path: Path):
    root = checkout(tmp_path)
    (root / "service" / "gone.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"cannot pack the code in .*gone\.py"), packed(None, root):
        pass


def test_no_room_for_the_package_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packing.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match=r"No such file.*TMPDIR names, and needs room"), packed():
        pass


def test_a_folder_that_is_a_link_is_not_left_behind_without_a_word(tmp_path: Path):
    root = checkout(tmp_path)
    (tmp_path / "mine").mkdir()
    (root / "service" / "mine").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match=r"service/mine is a link to a folder"), packed(None, root):
        pass


# -- versions --------------------------------------------------------------------------------------


def asked(tmp_path: Path, changed: dict[str, str], *, any_versions: bool = False) -> Any:
    """A job's first act, on a machine with these versions by package."""
    for name, number in changed.items():
        info = tmp_path / f"{name}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    told = wanted("crossreid:0.1.0-cpu", any_versions=any_versions)
    return subprocess.run(
        [sys.executable, "-m", "jobs.evaluate"],
        env={**os.environ, **told, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_on_other_versions_ends_before_it_imports_what_they_may_break(tmp_path: Path):
    found = asked(tmp_path, {"torch": "2.0.0+cu117", "ray": "2.9.0"})
    assert found.returncode == ExitCode.USER_ERROR
    ours = versions()
    assert (
        f"Ray 2.9.0, expected {ours['Ray']}; torch 2.0.0, expected {ours['torch']}" in found.stderr
    )
    assert "crossreid:0.1.0-cpu" in found.stderr
    assert "--any-versions" in found.stderr
    assert "expected one run" not in found.stderr
    again = asked(tmp_path, {}, any_versions=True)
    assert "going on with other versions" in again.stderr
    assert "expected one run" in again.stderr


def test_equal_versions_and_another_build_of_torch_are_taken(tmp_path: Path):
    found = asked(tmp_path, {"torch": f"{versions()['torch']}+mine"})
    assert "expected one run" in found.stderr
    assert "the cluster's head has" not in found.stderr
    assert misfit({"Ray": versions()["Ray"]}, "x") == ""
    assert "Ray 2.9.0, expected" in misfit({"Ray": "2.9.0"}, "x")


def test_a_worker_with_another_torch_than_was_submitted_ends_the_training(
    monkeypatch: pytest.MonkeyPatch,
):
    told = {"versions": {**versions(), "torch": "1.0.0"}, "image": "crossreid:x", "any": False}
    monkeypatch.setenv(VARIABLE, json.dumps(told))
    job = asdict(worker.Job(config="", run_dir="", control="", key=""))
    with pytest.raises(
        worker.WorkerFault, match=r"worker with pid \d+ on .* expected 1\.0\.0"
    ) as e:
        worker.run_worker(job)
    assert "crossreid:x" in str(worker.rebuilt(e.value.values["error"]))
    assert (
        unfit("this one") == misfit(versions(), "crossreid:x", told["versions"], "this one") != ""
    )
    monkeypatch.setenv(VARIABLE, json.dumps({**told, "any": True}))
    assert unfit("this one") == ""
    monkeypatch.delenv(VARIABLE)
    assert unfit("this one") == ""


def test_nothing_but_the_standard_library_is_loaded_to_compare_versions():
    code = (
        "import sys, service.orchestration.versions;"
        "print([m for m in sys.modules if m.startswith('service')])"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout.replace("'", '"')) == [
        "service",
        "service.orchestration",
        "service.orchestration.versions",
    ]
    assert VARIABLE in wanted("x", any_versions=False)


# -- the cluster's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "driver", "code", "words"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("FAILED", 2, 2, ""),
        ("FAILED", 3, 3, ""),
        ("FAILED", 4, 4, ""),
        ("FAILED", 5, 5, ""),
        ("FAILED", 1, 1, ""),
        ("FAILED", 130, 130, ""),
        ("FAILED", -9, 1, "killed by signal 9; by hand, or the head ran out of memory"),
        ("FAILED", 137, 1, "killed by signal 9"),
        ("FAILED", -11, 1, "killed by signal 11"),
        ("FAILED", None, 1, "the job was lost: the node died"),
        ("STOPPED", None, 130, ""),
    ],
)
def test_a_jobs_exit_code_is_its_own_and_a_killed_one_says_so(
    state: str, driver: int | None, code: int, words: str
):
    job = Job("j", "r", "train", state, driver_exit=driver, message="the node died\nsecond")
    assert job.exit_code == code
    assert words in job.how_lost
    assert bool(job.how_lost) == bool(words)


def test_a_token_is_looked_for_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert find_token() == "home"
    (tmp_path / "other").write_text(" other ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert find_token() == "other"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "word")
    assert find_token() == "word"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() == ""


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("no_token")
def test_a_token_that_was_copied_with_a_line_break_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush\nhush")
    with pytest.raises(ClusterError, match=r"token in RAY_AUTH_TOKEN has .* a line break") as told:
        find_token()
    assert "hush" not in str(told.value)


@pytest.mark.usefixtures("no_token")
def test_a_token_file_that_is_named_and_missing_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nope")
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH names /nope, which is not there"):
        find_token()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://head:8265", True),
        ("http://10.0.0.1:8265", True),
        ("https://head:8265", False),
        ("http://127.0.0.1:8265", False),
        ("http://[::1]:8265", False),
        ("http://localhost:8265", False),
    ],
)
def test_a_token_is_told_on_the_way_to_another_machine_without_encryption(
    address: str, told: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ClusterJobs, "_connect", lambda self: setattr(self, "_has_token", True))
    assert ClusterJobs(address).tells_token is told


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device; Ray packs .* TMPDIR"),
        (ValueError("the package is too large"), "does not send the job one: the package is too"),
        (KeyError("ray_version"), "does not send the job one"),
        (requests.ConnectionError("refused"), "nobody answers at http://head:8265"),
        (RuntimeError("it broke"), "could not do it: it broke"),
    ],
)
def test_what_keeps_a_job_from_being_sent_is_told_in_words(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Client:
        def submit_job(self, **words: Any) -> None:
            raise error

    monkeypatch.setattr(ClusterJobs, "_connect", lambda self: Client())
    # Other threads of this process sleep too.
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: pytest.fail("waits"))
    monkeypatch.setattr(cluster_jobs, "time", clock)
    jobs = ClusterJobs("http://head:8265")
    with pytest.raises(ClusterError, match=message):
        jobs.submit("one", ["jobs.train"], package=tmp_path, variables={}, metadata={})


@pytest.mark.parametrize(("refusals", "is_sent"), [(0, True), (3, True), (1000, False)])
def test_a_job_is_sent_again_to_a_cluster_that_takes_none_yet(
    refusals: int, is_sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tries, clock, told = [0], [0.0], list[str]()

    class Client:
        def submit_job(self, **words: Any) -> None:
            assert words["entrypoint_resources"] == {"node:__internal_head__": 0.001}
            tries[0] += 1
            if tries[0] <= refusals:
                raise RuntimeError("status code 500: No available agent to submit job, please try")

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(ClusterJobs, "_connect", lambda self: Client())
    monkeypatch.setattr(
        cluster_jobs, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0])
    )
    jobs = ClusterJobs("http://head:8265")

    def submit() -> None:
        jobs.submit(
            "one", ["jobs.train"], package=tmp_path, variables={}, metadata={}, say=told.append
        )

    if is_sent:
        submit()
        assert tries == [refusals + 1]
        assert told == ["the cluster takes no jobs yet; trying again for 60 s"] * bool(refusals)
    else:
        with pytest.raises(ClusterError, match="No available agent"):
            submit()
        assert 60 <= clock[0] <= 62


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_is_not_waited_for(
    silent: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cluster_jobs, "_TIMEOUT_S", (0.3, 0.3))
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"nobody answers at http://127\.0\.0\.1:"):
        ClusterJobs(silent)
    assert time.monotonic() - began < 5


def test_what_answers_and_is_not_rays_dashboard_is_named(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_answer, args=(server, "200 OK", "hello"), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert cli.main(["list", "--address", address]) == ExitCode.USER_ERROR
    assert "is not the dashboard of a Ray cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "mode", "words"),
    [
        ("503 Service Unavailable", "token", "answers with HTTP 503: .*logs/dashboard.log"),
        ("401 Unauthorized", "token", "wants a token, and none was found in RAY_AUTH_TOKEN"),
        ("401 Unauthorized", "disabled", "RAY_AUTH_MODE=disabled here sends none; unset it"),
    ],
)
@pytest.mark.usefixtures("no_token")
def test_an_answer_that_refuses_says_what_to_do(
    status: str,
    mode: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_answer, args=(server, status, ""), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert cli.main(["list", "--address", address]) == ExitCode.USER_ERROR
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hush@head:1",
        "http://head:1/?key=hush",
        "http:///",
        "http://[::1",
        "http://head:abc",
        "http://head:99999",
    ],
)
def test_an_address_is_a_host_and_a_port_and_no_place_for_secrets(address: str):
    with pytest.raises(ConfigError, match="no more than http://HOST:PORT") as told:
        check_address(address)
    assert "hush" not in str(told.value)


def _answer(server: socket.socket, status: str, body: str) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(4096)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())


# -- inside the job --------------------------------------------------------------------------------


def placed(**places: str) -> Config:
    words = [f"run.{name}={json.dumps(place)}" for name, place in places.items()]
    return override(Config(data=DataConfig(records="s3://b/r")), words)


def checked(config: Config) -> list[str]:
    said: list[str] = []
    preflight(config, config.run.storage, said.append)
    return said


def test_a_preflight_leaves_nothing_behind(tmp_path: Path):
    checked(placed(storage=f"{tmp_path}/a/runs", checkpoints=f"{tmp_path}/b"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "one").mkdir(parents=True)
    checked(placed(storage=f"{tmp_path}/runs", checkpoints="memory://probe/c"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["one"]


def test_a_store_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run\.storage=.*/file/runs cannot be written on the head"):
        checked(placed(storage=f"{tmp_path}/file/runs"))
    with pytest.raises(CheckpointError, match=r"run\.checkpoints=nosuch://b/c cannot be written"):
        checked(placed(storage=f"{tmp_path}/runs", checkpoints="nosuch://b/c"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_store_that_loses_what_it_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FolderStore, "read", lambda *_: b"other")
    with pytest.raises(RunError, match="loses what is written to it"):
        checked(placed(storage=f"{tmp_path}/runs"))


def test_a_store_that_lets_nothing_be_deleted_is_told_of_and_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kept(*_: Any) -> None:
        raise CheckpointError("AccessDenied: delete")

    monkeypatch.setattr(UrlStore, "delete", kept)
    said = checked(placed(storage=f"{tmp_path}/runs", checkpoints="memory://probe/d"))
    assert len(said) == 1
    assert "run.checkpoints lets nothing be deleted: AccessDenied" in said[0]


def test_the_folder_is_probed_in_which_the_run_goes_on(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/runs cannot be written"):
        preflight(placed(storage=f"{tmp_path}/runs"), f"{tmp_path}/file/runs", print)


@pytest.mark.parametrize("place", ["storage", "checkpoints"])
def test_a_folder_in_the_jobs_own_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    (package / "deep").mkdir(parents=True)
    monkeypatch.chdir(package / "deep")
    elsewhere = {"storage": f"{tmp_path}/runs"}
    with pytest.raises(ConfigError, match=rf"run\.{place}=mine lies in the job's own package"):
        checked(placed(**{**elsewhere, place: "mine"}))
    checked(placed(**elsewhere))
    assert list((package / "deep").iterdir()) == []


# -- sending ---------------------------------------------------------------------------------------


def sent(
    server: JobServer, order: Order, *, any_versions: bool = False
) -> tuple[Submitted, list[str]]:
    said: list[str] = []
    found = send(cast(Any, server), order, any_versions=any_versions, say=said.append)
    return found, said


def test_a_job_gets_its_config_its_name_and_time_to_stop(file: str):
    order = order_new("train", file, ["telemetry.linger_s=70"], "one")
    server = JobServer(Job("two", "two", "train", "RUNNING"))
    found, said = sent(server, order)
    assert (found.run, found.job_id, said) == ("one", "one", [])
    (job,) = server.sent
    assert load_text(job["config"]) == order.config
    assert job["words"] == order.words
    told = {name.removeprefix("crossreid_"): value for name, value in job["metadata"].items()}
    assert told.pop("sending")
    assert told == {"run": "one", "kind": "train", "folder": order.folder}
    assert job["variables"]["RAY_JOB_STOP_WAIT_TIME_S"] == "970"
    assert json.loads(job["variables"][VARIABLE])["image"].endswith("-cpu")


def test_another_ray_is_refused_or_told_of(file: str):
    order = order_new("train", file, ["cluster.gpus_per_worker=1"], "one")
    server = JobServer()
    server.ray_version = "2.9.0"
    with pytest.raises(ClusterError, match=r"Ray 2\.9\.0, expected .*-cuda .* --any-versions"):
        sent(server, order)
    assert server.sent == []
    _, said = sent(server, order, any_versions=True)
    assert "Ray 2.9.0" in said[0]
    assert json.loads(server.sent[0]["variables"][VARIABLE])["any"] is True


def test_one_job_at_a_time_trains_a_run_and_a_new_one_has_had_none(file: str):
    new = order_new("train", file, [], "one")
    again = order_resume("train", "one", file, [])
    jobs = Job("one", "one", "train", "SUCCEEDED"), Job("x", "one", "train", "PENDING")
    running = JobServer(*jobs)
    for order in (new, again):
        with pytest.raises(RunError, match=r"being trained already, by job x \(PENDING\)"):
            sent(running, order)
    ended = JobServer(Job("one", "one", "tune", "STOPPED"))
    with pytest.raises(RunError, match=r"was there before, as job one \(STOPPED\)"):
        sent(ended, new)
    assert sent(ended, again)[0].job_id == "one.2"
    only_looked_at = JobServer(Job("one.evaluate", "one", "evaluate", "RUNNING"))
    assert sent(only_looked_at, new)[0].job_id == "one"


def test_a_name_that_ray_remembers_is_passed_over(file: str):
    again = order_resume("train", "one", file, [])
    found, _ = sent(JobServer(remembered=("one", "one.2")), again)
    assert found.job_id == "one.3"


@pytest.mark.parametrize("has_come", [True, False])
def test_a_job_whose_answer_was_lost_is_asked_for(file: str, has_come: bool):
    server = JobServer(lost=(ClusterError("nobody answers"), has_come))
    order = order_new("train", file, [], "one")
    if has_come:
        assert sent(server, order)[0].job_id == "one"
        return
    with pytest.raises(ClusterError, match="nobody answers"):
        sent(server, order)


def test_a_job_of_that_name_that_somebody_else_sent_is_not_ours(
    file: str, monkeypatch: pytest.MonkeyPatch
):
    theirs = Job("one", "one", "train", "RUNNING", sending="theirs")
    server = JobServer(lost=(ClusterError("nobody answers"), False))
    monkeypatch.setattr(server, "get", lambda name: theirs)
    with pytest.raises(ClusterError, match="nobody answers"):
        sent(server, order_new("train", file, [], "one"))


@pytest.mark.parametrize("has_come", [True, False])
def test_a_job_that_began_as_its_sender_was_interrupted_is_told_of(file: str, has_come: bool):
    server = JobServer(lost=(KeyboardInterrupt(), has_come))
    said: list[str] = []
    order = order_new("train", file, [], "one")
    with pytest.raises(KeyboardInterrupt):
        send(cast(Any, server), order, any_versions=False, say=said.append)
    told = ["the job one has begun all the same; end it with crossreid stop one"]
    assert said == (told if has_come else [])


def test_a_cluster_that_takes_no_name_says_which_were_tried(file: str):
    server = JobServer(remembered=("one", *(f"one.{number}" for number in range(2, 9))))
    server.jobs["theirs"] = Job("theirs", "theirs", "train", "RUNNING")
    with pytest.raises(ClusterError, match=r"one, one\.2, .*belong to jobs") as told:
        sent(server, order_new("train", file, [], "one"))
    assert "theirs" not in str(told.value)


def test_a_run_that_a_job_had_begun_is_there_also_where_that_job_ended_with_an_error(file: str):
    lost = Job("one", "one", "train", "FAILED", "/r/one", 2, "x:\nClusterError: workers were lost")
    new = order_new("train", file, [], "one")
    with pytest.raises(RunError, match="run one was there before, as job one"):
        sent(JobServer(lost), new)
    refused = Job("one", "one", "train", "FAILED", "/r/one", 2, "x:\nrefused: RunError: no")
    assert sent(JobServer(refused), new)[0].job_id == "one.2"


def test_everybody_leaves_a_stopped_job_the_same_time_for_its_checkpoint():
    seconds = f"{STOP_S + LINGER_S:g}"
    image = (REPO / "docker" / "Dockerfile").read_text()
    assert f"RAY_JOB_STOP_WAIT_TIME_S={seconds}" in image
    assert f'"RAY_JOB_STOP_WAIT_TIME_S": "{seconds}"' in (REPO / "README.md").read_text()
