"""The command line: words in, exit codes and messages out. Ray is not started here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from service import __version__, cli, views
from service.errors import ClusterError, ExitCode
from service.orchestration import local
from service.orchestration.progress import Update
from service.orchestration.runs import create_run
from service.settings import load_config
from service.training.ports import Outcome

CONFIG = """
run: {{name: night, storage: {folder}/runs}}
data: {{records: {folder}/records}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "night.yaml"
    file.write_text(CONFIG.format(folder=tmp_path))
    return str(file)


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_help_and_version_answer_at_once():
    found = subprocess.run(
        [sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True
    )
    assert "train a run, judge it and evaluate it" in found.stdout
    heavy = "import sys, service.cli; print({'ray', 'torch', 'rich'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", heavy], capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


def test_the_version_is_the_packages(capsys: Any):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"crossreid {__version__}\n"


def test_config_show_is_a_config_and_takes_overrides(config: str, capsys: Any, tmp_path: Path):
    code, out, _ = run(capsys, "config", "show", config, "train.epochs=3", "optim.head_lr=1e-5")
    assert code == ExitCode.OK
    (tmp_path / "again.yaml").write_text(out)
    again = load_config(tmp_path / "again.yaml")
    assert again == load_config(config, ["train.epochs=3", "optim.head_lr=1e-5"])
    code, out, _ = run(capsys, "config", "show", "--json", config, "train.epochs=3")
    assert json.loads(out)["train"]["epochs"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config", "show"], "expected a config file"),
        (["train"], "train needs a config"),
        (["train", "a.yaml", "b.yaml"], "expected one config, found a.yaml, b.yaml"),
        (["train", "{config}", "train.epoch=3"], "did you mean 'train.epochs'"),
        (["train", "--no-ray", "--resume", "nobody"], "no run 'nobody'"),
        (["train", "--resume", "a", "--run-id", "b"], "leave --run-id out"),
        (["train", "{config}", "--no-ray", "--resume", "a", "--run-id", ""], "leave --run-id out"),
        (["tune", "{config}"], "tune.space is empty"),
        (["tune", "--resume", "a", "--run-id", "b"], "leave --run-id and --dry-run out"),
        (["tune", "{config}", "--resume", "a", "--run-id", ""], "leave --run-id and --dry-run out"),
        (["tune", "--resume", "a", "--dry-run"], "leave --run-id and --dry-run out"),
        (["evaluate", "nobody"], "no run 'nobody'"),
        (["data", "synth", "{folder}/made", "--size", "96"], "must look like 384x128"),
        (["data", "inspect", "{folder}/nothing"], "nothing"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    words: list[str], message: str, config: str, tmp_path: Path, capsys: Any
):
    filled = [word.format(config=config, folder=tmp_path) for word in words]
    code, out, err = run(capsys, *filled)
    assert code == ExitCode.USER_ERROR
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_debug_shows_where_a_mistake_was_found(capsys: Any):
    with pytest.raises(Exception, match="no run 'nobody'"):
        cli.main(["evaluate", "--debug", "nobody"])


@pytest.mark.parametrize("words", [["train", "--locale"], ["evaluate"], ["nonsense"], []])
def test_unknown_words_are_refused_by_the_parser(words: list[str], capsys: Any):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


SUMMARY = {
    "verdict": "GO",
    "mAP": {"MM-1": 0.25, "mean": 0.3, "TEXT": 0.2},
    "R1": {"MM-1": 0.5, "mean": 0.6, "TEXT": 0.4},
    "after_neck": {"mAP": {"MM-1": 0.21}, "R1": {"MM-1": 0.41}},
    "chance_mAP": 0.05,
}


def fake_launch(monkeypatch: pytest.MonkeyPatch, outcome: Outcome | Exception) -> list[Any]:
    """Replaces the plain loop; notes the configs it was given."""
    given: list[Any] = []

    def launch(config: Any, *, run_id: Any, resume: Any, on_progress: Any) -> Any:
        given.append((config, run_id, resume))
        if isinstance(outcome, Exception):
            raise outcome
        return create_run(config, run_id), outcome

    monkeypatch.setattr(local, "train_here", launch)
    return given


def test_a_no_go_ends_with_3_and_one_line_with_cause_and_remedy(
    config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    words, remedy = "the head's learning rate is too small to move the head", "set it to 1e-2"
    outcome = Outcome("NO_GO", "head_lr_too_small", words, remedy, 3, {"verdict": "NO_GO"})
    given = fake_launch(monkeypatch, outcome)
    code, out, err = run(capsys, "train", config, "--no-ray", "--run-id", "x", "optim.head_lr=1e-5")
    assert code == ExitCode.NO_GO
    assert [line for line in out.splitlines() if "NO_GO" in line] == [f"NO_GO: {words} - {remedy}"]
    assert "Traceback" not in out + err
    assert given[0][0].optim.head_lr[0].lr == 1e-5
    assert given[0][1:] == ("x", None)


def test_a_go_shows_the_evaluation_and_where_everything_lies(
    config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    fake_launch(monkeypatch, Outcome("GO", "", "", "", 0, SUMMARY))
    code, out, _ = run(capsys, "train", config, "--no-ray", "--run-id", "x")
    assert code == ExitCode.OK
    assert out.splitlines()[-1] == "GO"
    assert "runs/x" in out
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert rows["TEXT"].split("│")[2:4] == [" 40.00 ", " 20.00 "]
    assert "41.00" in rows["MM-1 after the neck"]
    assert "mAP by chance 5.00%" in out


def test_json_is_the_only_thing_on_standard_output(
    config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    fake_launch(monkeypatch, Outcome("GO", "", "", "", 0, SUMMARY))
    code, out, _ = run(capsys, "train", config, "--no-ray", "--json", "--run-id", "x")
    values = json.loads(out)
    assert (code, values["verdict"], values["summary"]) == (0, "GO", SUMMARY)
    assert values["run_dir"].endswith("runs/x")


def test_secrets_do_not_reach_the_screen(config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    fake_launch(monkeypatch, ClusterError("token 0123456789abcdef was refused"))
    code, _, err = run(capsys, "train", config, "--no-ray")
    assert code == ExitCode.USER_ERROR
    assert err == "crossreid: ClusterError: token <RAY_AUTH_TOKEN> was refused\n"


def test_secrets_in_progress_do_not_reach_the_screen(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    update = Update("main", messages=("token 0123456789abcdef",))
    with views.progress() as show:
        show(update)
    with Progress(console=Console(stderr=True, force_terminal=True, highlight=False)) as bars:
        views._Bars(bars)(update)
    shown = capsys.readouterr().err
    assert shown.count("token <RAY_AUTH_TOKEN>") == 2
    assert "0123456789abcdef" not in shown


def test_an_interrupt_ends_with_130(config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "train_here", interrupt)
    code, _, err = run(capsys, "train", config, "--no-ray")
    assert (code, err) == (ExitCode.INTERRUPTED, "crossreid: interrupted\n")


def test_synth_ingest_and_inspect_tell_what_they_made(tmp_path: Path, capsys: Any):
    folder, records = str(tmp_path / "orbench"), str(tmp_path / "records")
    small = ["--people", "6", "--images", "5", "--size", "32x32", "--sheet", f"{tmp_path}/s.png"]
    code, out, _ = run(capsys, "data", "synth", folder, *small)
    assert code == ExitCode.OK
    assert "4 people to train on, 2 to test on" in out
    assert (tmp_path / "s.png").stat().st_size > 0
    code, out, err = run(capsys, "data", "ingest", folder, records, "--size", "32x32", "--json")
    assert json.loads(out)["train_people"] == 4
    rows = sum(json.loads(out)["rows"].values())
    assert f"orbench  step {rows}/{rows}" in err
    code, out, _ = run(capsys, "data", "inspect", records)
    assert "4 people to train on, 4 of them pairable; images 32x32" in out
    assert "quarantined: 0" in out
    code, out, _ = run(capsys, "data", "inspect", records, "--json")
    assert json.loads(out)["not_pairable"] == []


def test_a_run_without_evaluation_has_no_table():
    assert views.evaluation({"verdict": "NO_GO"}) == ""
