"""`submit`, `status`, `logs`, `stop`, `list`: words and messages, where no cluster is needed."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import cli, cli_cluster, cli_jobs, cli_submit, views_jobs
from service.config import Config, DataConfig
from service.errors import ExitCode
from service.orchestration.job import Job
from service.orchestration.reading import ANSWER
from service.orchestration.runs import Run, create_run, held
from service.orchestration.standing import Standing, State
from service.orchestration.summary import write_summary
from service.settings import override
from tests.jobserver import JobServer
from tests.journals import Trainer


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is named; runs lie in this folder."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> Run:
    made = create_run(override(Config(data=DataConfig(records="r")), ["run.storage=runs"]), "one")
    trainer = Trainer(made.path)
    trainer.begin(0)
    trainer.train(1, 12)
    return made


def said(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "train"], "submit train needs a config"),
        (["submit", "train", "none.yaml"], "cannot read config"),
        (["submit", "train", "{config}", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["submit", "train", "{config}", "--resume", "a b"], "must be 1 to 64 letters"),
        (["submit", "train", "--resume", "a", "--run-id", "b"], "leave --run-id out"),
        (["submit", "tune", "{config}"], "tune.space is empty"),
        (["submit", "ingest", "a", "b", "9"], "must look like 384x128"),
        (["submit", "train", "{config}"], "which cluster"),
        (["submit", "evaluate", "one"], "which cluster"),
        (
            ["submit", "train", "{config}", "--address", "head:6379"],
            "must be that of the dashboard",
        ),
        (["status", "nobody"], "the folder of run nobody is not seen from here; which cluster"),
        (["logs", "one"], "which cluster"),
        (["stop", "one"], "which cluster"),
        (["list"], "which cluster"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: Any
):
    config = tmp_path / "c.yaml"
    config.write_text("data: {records: r}\n")
    code, out, err = said(capsys, *(word.format(config=config) for word in words))
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["submit", "train"], ["status"], ["logs"], ["stop"], ["list"]])
def test_help_has_examples_and_says_where_the_token_is_looked_for(words: list[str], capsys: Any):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  crossreid {words[0]}" in text
    assert "RAY_AUTH_TOKEN_PATH" in text


def test_a_run_of_this_machine_needs_no_cluster(run: Run, capsys: Any):
    with held(run):
        code, out, err = said(capsys, "status", "one")
        assert (code, err) == (ExitCode.OK, "")
        assert "state      training, last heard of" in out
        assert "step       12 of 100000, epoch 2, ETA " in out
        assert f"in {run.path}/checkpoint_00000012" in out
        values = json.loads(said(capsys, "status", str(run.path), "--json")[1])
    assert (values["state"], values["step"], values["checkpoint_step"]) == ("training", 12, 12)
    code, out, _ = said(capsys, "status", "one", "--storage", str(run.path.parent))
    assert "state      lost; --resume goes on with it" in out


def test_a_damaged_summary_is_told_in_words(run: Run, capsys: Any):
    (run.path / "summary.json").write_text("{")
    code, out, err = said(capsys, "status", "one")
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert "summary.json is damaged" in err


def test_a_cluster_that_cannot_be_asked_does_not_hide_a_run_that_is_seen(
    run: Run, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    write_summary(run.path, {"verdict": "GO", "steps": 12})
    Trainer(run.path, attempt=1, now=2000.0).end(12)
    code, out, err = said(capsys, "status", "one")
    assert code == ExitCode.OK
    assert "state      ended" in out
    assert "nobody answers at http://127.0.0.1:1" in err
    assert "goes by the run's folder alone" in err


NOW = 10_000.0
JOBS = [
    Job("a", "a", "train", "FAILED", "/r/a", 3, began=NOW - 500, ended=NOW - 400),
    Job("b", "b", "train", "FAILED", "/r/b", -9, began=NOW - 300, ended=NOW - 200),
    Job("b.2", "b", "train", "RUNNING", "/r/b", began=NOW - 60),
    Job("c", "c", "tune", "PENDING", "/r/c", began=NOW - 5),
    Job("d", "d", "ingest", "SUCCEEDED", "", 0, began=NOW - 9, ended=NOW - 1),
    Job("e", "e", "train", "STOPPED", "/r/e", began=NOW - 9, ended=NOW - 1),
    Job("f", "f", "train", "FAILED", "/r/f", 1, began=NOW - 9, ended=NOW - 1),
    Job("g", "g", "train", "FAILED", "/r/g", 137, began=NOW - 9, ended=NOW - 1),
    Job("h", "h", "train", "FAILED", "/r/h", began=NOW - 9, ended=NOW - 1),
]


def test_the_table_of_runs_says_how_each_ended():
    newest = [job for job in JOBS if job.job_id != "b"]
    text = views_jobs.runs(newest, JOBS, NOW)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert [row for row in rows if row] == [
        ["a", "train", "ended", "NO_GO", "8m20s ago", "1m40s", "1"],
        ["b", "train", "running", "", "1m00s ago", "1m00s", "2"],
        ["c", "tune", "waiting", "", "5s ago", "5s", "1"],
        ["d", "ingest", "ended", "done", "9s ago", "8s", "1"],
        ["e", "train", "ended", "stopped", "9s ago", "8s", "1"],
        ["f", "train", "ended", "failed", "9s ago", "8s", "1"],
        ["g", "train", "ended", "killed", "9s ago", "8s", "1"],
        ["h", "train", "ended", "lost", "9s ago", "8s", "1"],
    ]
    assert views_jobs.runs([], [], NOW) == "no runs on this cluster\n"


def test_a_stopped_run_says_its_checkpoint_and_how_it_goes_on():
    found = Standing(
        "b",
        State.STOPPED,
        "/r/b",
        step=9,
        total=90,
        checkpoint_step=9,
        checkpoint_at="/r/b/checkpoint_00000009",
    )
    text = views_jobs.stopped(JOBS[2], found, " --address http://h:1")
    assert text == (
        "run b is stopped at step 9 of 90\n"
        "checkpoint of step 9 in /r/b/checkpoint_00000009\n"
        "go on: crossreid submit train --resume b --address http://h:1\n"
    )
    early = views_jobs.stopped(JOBS[2], Standing("b", State.LOST, "/r/b"), "")
    assert "has ended at step 0\nthere is no checkpoint yet" in early
    killed = replace(JOBS[2], driver_exit=-9)
    text = views_jobs.stopped(killed, Standing("b", State.LOST, "/r/b"), "")
    assert "was killed at step 0" in text
    over = views_jobs.stopped(JOBS[2], Standing("b", State.ENDED, "/r/b", "GO"), "")
    assert over == "run b had come to its end: GO\n"


def test_a_sweeps_decisions_are_shown_as_they_are_written():
    trial = Standing("t", State.TRAINING, step=4, total=9, newest="[verdict] step=4 GO")
    text = views_jobs.standing(Standing("s", State.TRAINING, step=0, total=1, trials=(trial,)))
    assert "trials     0 of 1 have ended" in text
    assert "[verdict] step=4 GO" in text
    over = views_jobs.stopped(
        replace(JOBS[3], state="STOPPED"), Standing("c", State.STOPPED, "/r/c", step=1, total=3), ""
    )
    assert over == (
        "run c is stopped: 1 of 3 trials have ended\ngo on: crossreid submit tune --resume c\n"
    )


def test_a_run_that_ended_without_a_word_says_where_it_goes_on():
    found = Standing("b", State.LOST, "/r/b", "GO", step=9, total=90, checkpoint_step=6)
    text = views_jobs.ended(JOBS[1], replace(found, checkpoint_at="/r/b/c6"), " --address u")
    assert "run b was killed at step 9 of 90\ncheckpoint of step 6 in /r/b/c6\n" in text
    assert "go on: crossreid submit train --resume b --address u\n" in text
    assert "GO" not in text


def test_an_evaluation_that_failed_shows_no_result_of_an_earlier_one():
    summary = {"mAP": {"mean": 0.5}, "R1": {"mean": 0.5}, "mINP": {"mean": 0.5}}
    found = Standing("a", State.ENDED, "/r/a", "GO", summary=summary)
    for state, code in (("FAILED", 2), ("STOPPED", None)):
        job = Job("a.evaluate", "a", "evaluate", state, "/r/a", code)
        assert views_jobs.ended(job, found, "") == f"job a.evaluate: exit code {job.exit_code}\n"
    done = Job("a.evaluate", "a", "evaluate", "SUCCEEDED", "/r/a", 0)
    assert "everything is in /r/a" in views_jobs.ended(done, found, "")


# -- with a job server -----------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobServer]:
    """A job server that the commands reach, with these jobs."""

    def made(*jobs: Job, **told: Any) -> JobServer:
        server = JobServer(*jobs, **told)
        for module in (cli_cluster, cli_jobs, cli_submit):
            monkeypatch.setattr(module, "reach", lambda args, why="": server)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
        return server

    return made


def answering(found: Standing | None) -> Callable[[Any], tuple[int, str]]:
    """A small job that reads this in the run's folder."""
    line = f"{ANSWER}{json.dumps(found.to_dict() if found else None)}\n"
    return lambda words: (0, line)


TRAINING = Job("one", "one", "train", "RUNNING", "/far/one", began=1.0)
STOPPED = Standing("one", State.STOPPED, "/far/one", step=9, total=90, checkpoint_step=9)


def test_a_run_that_was_stopped_says_where_it_stands(cluster: Any, capsys: Any):
    server = cluster(TRAINING, small=answering(STOPPED))
    code, out, err = said(capsys, "stop", "one")
    assert (code, server.jobs["one"].state) == (ExitCode.OK, "STOPPED")
    assert "run one is stopped at step 9 of 90" in out
    assert "asked it to write a checkpoint" in err


FAILED = replace(STOPPED, state=State.FAILED, verdict="ERROR", words="no space left")


@pytest.mark.parametrize(
    ("found", "more", "code", "words"),
    [
        (STOPPED, [], ExitCode.OK, "is stopped at step 9 of 90"),
        (replace(STOPPED, state=State.PAUSED), [], ExitCode.OK, "is paused at step 9 of 90"),
        (replace(STOPPED, state=State.ENDED, verdict="NO_GO"), [], ExitCode.OK, "end: NO_GO"),
        (replace(STOPPED, state=State.LOST), [], 1, "has ended at step 9 of 90"),
        (FAILED, [], ExitCode.USER_ERROR, "--resume one\nERROR: no space left\n"),
        # It was killed as asked.
        (replace(STOPPED, state=State.LOST), ["--now"], ExitCode.OK, "has ended at step 9 of 90"),
        # What stands there is an earlier job's end.
        (replace(STOPPED, state=State.LOST, begun=False), [], ExitCode.OK, "has ended at step 9"),
        (replace(FAILED, begun=False), [], ExitCode.OK, "has failed at step 9 of 90"),
    ],
)
def test_a_stop_that_was_to_leave_a_checkpoint_says_by_its_exit_code_whether_it_did(
    cluster: Any, capsys: Any, found: Standing, more: list[str], code: int, words: str
):
    cluster(TRAINING, small=answering(found))
    ended, out, _ = said(capsys, "stop", "one", *more)
    assert (ended, words in out) == (code, True), out


def test_a_plain_run_whose_config_has_a_space_is_stopped_as_a_run(cluster: Any, capsys: Any):
    space = ["run.storage=runs", "tune.space={optim.head_lr: {grid: [1e-2, 1e-3]}}"]
    run = create_run(override(Config(data=DataConfig(records="r")), space), "one")
    trainer = Trainer(run.path)

    def stops(job: Job) -> Job:
        trainer.train(13, 14)
        trainer.write({"event": "checkpoint", "step": 14})
        trainer.end(14, "STOPPED")
        return replace(job, state="STOPPED")

    trainer.begin(0)
    trainer.train(1, 12)
    cluster(replace(TRAINING, folder=str(run.path)), stops=stops)
    assert "step       12 of 100000" in said(capsys, "status", "one")[1]
    code, out, _ = said(capsys, "stop", "one")
    assert (code, out.splitlines()[:2]) == (
        ExitCode.OK,
        [
            "run one is stopped at step 14 of 100000",
            f"checkpoint of step 14 in {run.path}/checkpoint_00000014",
        ],
    )


@pytest.mark.parametrize(
    ("small", "why"),
    [
        (answering(None), "run one never began"),
        (lambda words: (1, "no space left\n"), "did not say where run one stands: no space left"),
    ],
)
def test_a_run_that_was_stopped_before_anything_was_written_is_stopped_all_the_same(
    cluster: Any, capsys: Any, small: Any, why: str
):
    cluster(TRAINING, small=small)
    code, out, err = said(capsys, "stop", "one")
    assert (code, "job one has ended (STOPPED)" in out) == (ExitCode.OK, True)
    assert "how the run stands cannot be told: " in err
    assert why in err
    assert "RunError" not in err


def test_stop_ends_the_training_and_not_the_evaluation_that_came_later(cluster: Any, capsys: Any):
    evaluation = Job("one.evaluate", "one", "evaluate", "RUNNING", "/far/one", began=2.0)
    server = cluster(TRAINING, evaluation, small=answering(STOPPED))
    assert said(capsys, "stop", "one")[0] == ExitCode.OK
    assert (server.jobs["one"].state, server.jobs["one.evaluate"].state) == ("STOPPED", "RUNNING")
    assert said(capsys, "stop", "one")[0] == ExitCode.OK
    assert server.jobs["one.evaluate"].state == "STOPPED"
    code, _, err = said(capsys, "stop", "one")
    assert code == ExitCode.USER_ERROR
    assert "run one is not running: its job one has ended (STOPPED)" in err
    assert said(capsys, "stop", "one.evaluate")[0] == ExitCode.USER_ERROR


def test_logs_are_those_of_the_job_that_runs_or_is_named(cluster: Any, capsys: Any):
    later = Job("one.2", "one", "train", "FAILED", "/far/one", 1, began=2.0)
    server = cluster(TRAINING, later, Job("two", "two", "train", "PENDING"))
    server.logs = {"one": "of one\n", "one.2": "of one.2\n"}
    assert said(capsys, "logs", "one")[1] == "of one\n"
    assert said(capsys, "logs", "/far/one")[1] == "of one\n"
    assert said(capsys, "logs", "one.2")[1] == "of one.2\n"
    code, _, err = said(capsys, "logs", "/near/one")
    assert (code, "no run '/near/one' on the cluster" in err) == (ExitCode.USER_ERROR, True)


def test_a_run_whose_job_does_not_say_where_it_lies_wants_a_folder(cluster: Any, capsys: Any):
    server = cluster(replace(TRAINING, folder=""), small=answering(STOPPED))
    code, _, err = said(capsys, "status", "one")
    assert (code, "give --storage FOLDER" in err) == (ExitCode.USER_ERROR, True)
    assert said(capsys, "status", "one", "--storage", "/far")[0] == ExitCode.OK
    assert server.sent[-1]["words"][1] == "/far/one"
    for command in ("status", "logs", "stop"):
        code, _, err = said(capsys, command, "nobody")
        assert (code, "no run 'nobody' on the cluster" in err) == (ExitCode.USER_ERROR, True)


def test_a_run_is_not_taken_for_one_of_the_same_name_in_another_folder(
    run: Run, cluster: Any, capsys: Any
):
    cluster(TRAINING)
    code, out, err = said(capsys, "status", "one")
    assert (code, "state      lost" in out) == (ExitCode.OK, True)
    assert f"the cluster has a run of that name in /far/one, not in {run.path}" in err
    cluster(replace(TRAINING, folder=str(run.path)))
    code, out, err = said(capsys, "status", "one")
    assert ("state      training" in out, err) == (True, "")


def test_a_folder_that_may_not_be_searched_is_looked_at_from_the_head(
    run: Run, cluster: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    is_file = Path.is_file

    def closed(self: Path) -> bool:
        if self.parent == run.path:
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    cluster(replace(TRAINING, folder=str(run.path)), small=answering(STOPPED))
    monkeypatch.setattr(Path, "is_file", closed)
    code, out, err = said(capsys, "status", "one")
    assert (code, "state      stopped" in out, err) == (ExitCode.OK, True, "")


# -- submit ----------------------------------------------------------------------------------------


class Followed:
    """Follows nothing: the job has ended as `job`, or is left after a while."""

    def __init__(self, job: Job | None, lines: tuple[str, ...] = ()) -> None:
        self.job, self.lines = job, lines

    def until_end(self) -> Job:
        assert self.job is not None
        return self.job

    def until(self, is_it: Callable[[str], bool], limit_s: float) -> Job | None:
        any(is_it(line) for line in self.lines)
        return self.job


@pytest.fixture
def submit(
    tmp_path: Path, cluster: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Submits the run `one`, whose job ends like this."""
    (tmp_path / "c.yaml").write_text("data: {records: r}\nrun: {storage: /far}\n")

    def done(followed: Followed, small: Any, *more: str) -> tuple[int, str, str]:
        cluster(small=small)
        monkeypatch.setattr(cli_submit, "follower", lambda jobs, job_id: followed)
        return said(capsys, "submit", "train", "c.yaml", "--run-id", "one", *more)

    return done


KILLED = replace(TRAINING, state="FAILED", driver_exit=-9)
ERROR = replace(TRAINING, state="FAILED", driver_exit=2)
LOST = Standing("one", State.LOST, "/far/one", step=9, total=90, checkpoint_step=6)


@pytest.mark.parametrize(("job", "code"), [(KILLED, 1), (ERROR, ExitCode.USER_ERROR)])
def test_a_job_that_ended_badly_says_where_its_run_stands_and_how_it_goes_on(
    submit: Any, job: Job, code: int
):
    found, out, _ = submit(Followed(job), answering(LOST))
    assert found == code
    assert "at step 9 of 90\ncheckpoint of step 6" in out
    assert "go on: crossreid submit train --resume one" in out


def test_a_job_that_was_refused_is_not_looked_at(submit: Any):
    refused = replace(ERROR, message="04:01:02 refused: RunError: no")
    found, out, err = submit(Followed(refused), answering(LOST))
    assert (found, out) == (ExitCode.USER_ERROR, "job one: exit code 2\n")
    assert "cannot be told" not in err


def test_what_hinders_the_look_after_the_end_changes_no_exit_code(
    submit: Any, monkeypatch: pytest.MonkeyPatch
):
    done = replace(TRAINING, state="FAILED", driver_exit=3)
    found, _, err = submit(Followed(done), lambda words: (1, "it broke\n"))
    assert (found, "how the run stands cannot be told" in err) == (ExitCode.NO_GO, True)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_submit, "look", interrupted)
    found, out, err = submit(Followed(done), answering(LOST))
    assert (found, out) == (ExitCode.NO_GO, "job one: exit code 3\n")
    assert "goes on" not in err


@pytest.mark.parametrize("begun", [True, False])
def test_a_detached_job_says_whether_it_has_begun(submit: Any, begun: bool):
    lines = ("04:01:02 accepted: /far/one",) if begun else ("waiting for machines",)
    code, out, err = submit(Followed(None, lines), answering(None), "--detach")
    assert (code, "run one goes on without this command" in out) == (ExitCode.OK, True)
    assert ("has not begun" in err) is not begun


def test_a_token_that_everybody_on_the_way_can_read_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    server = JobServer()
    server.tells_token = True
    monkeypatch.setattr("service.orchestration.cluster_jobs.ClusterJobs", lambda address: server)
    assert cli_cluster.reach(argparse.Namespace(address="http://head:8265")) is not None
    assert "the token goes to http://head:8265 unencrypted" in capsys.readouterr().err
