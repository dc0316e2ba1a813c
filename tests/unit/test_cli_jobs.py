"""`submit`, `status`, `logs`, `stop`, `list`: words and messages, where no cluster is needed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import cli, views_jobs
from service.config import Config, DataConfig
from service.errors import ExitCode
from service.orchestration.job import Job
from service.orchestration.runs import Run, create_run, held, write_summary
from service.orchestration.standing import Standing, State
from service.settings import override
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
