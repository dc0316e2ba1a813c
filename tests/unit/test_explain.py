"""The pages on causes: complete, and naming only what exists."""

import argparse
import re
import sys
from dataclasses import fields
from typing import Any

import pytest

from service import cli, explain
from service.causes import WORDS, Cause
from service.errors import ConfigError, ExitCode
from service.health import HealthReport
from service.modality import Modality
from service.pages import PAGES
from service.settings import known_settings

CAUSES = [cause for cause in Cause if cause is not Cause.NONE]
QUOTED = re.compile(r"`([^`]+)`")
LINES = {field.name for field in fields(HealthReport)}
MODULES = {"classifier"}


def quoted(cause: Cause) -> list[str]:
    page = PAGES[cause]
    return QUOTED.findall(" ".join((page.looks, page.why, *page.do, page.seen, *WORDS[cause])))


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_every_cause_has_a_page_and_nothing_else_has():
    assert list(PAGES) == CAUSES


@pytest.mark.parametrize("cause", CAUSES)
def test_every_page_answers_every_question(cause: Cause):
    page = PAGES[cause]
    assert all((page.looks, page.why, page.do, page.seen))
    text = explain.page(cause)
    for heading in ("How it looks", "Why", "What to do", "Where it has been seen"):
        assert f"\n{heading}\n" in text
    heading = text.partition("\n\n")[0]
    assert " ".join(heading.split()) == f"{cause}: {WORDS[cause][0]}"


@pytest.mark.parametrize("cause", CAUSES)
def test_pages_name_only_settings_health_lines_and_commands_that_exist(cause: Cause):
    for word in quoted(cause):
        if word.startswith("crossreid "):
            check_command(word)
        else:
            assert word in known_settings() or word in LINES or word in MODULES, word


def check_command(words: str) -> None:
    """Walks the parser with the words of a command, up to its arguments."""
    parser: argparse.ArgumentParser = cli._parser()
    rest = words.split()[1:]
    while True:
        choices = next((a.choices for a in parser._actions if isinstance(a.choices, dict)), None)
        if choices is None:
            break
        assert rest, words
        assert rest[0] in choices, words
        parser, rest = choices[rest[0]], rest[1:]
    known = {option for action in parser._actions for option in action.option_strings}
    assert {word for word in rest if word.startswith("--")} <= known, words


def test_a_page_that_named_something_unknown_would_be_noticed():
    with pytest.raises(AssertionError):
        check_command("crossreid doctor everything CONFIG")
    with pytest.raises(AssertionError):
        check_command("crossreid doctor data CONFIG --picture x.png")


@pytest.mark.parametrize("cause", CAUSES)
def test_thresholds_that_a_page_suggests_fit_the_defaults(cause: Cause):
    from service.settings import load_text

    for words in quoted(cause):
        changes = re.findall(r"--policy (\S+)", words)
        load_text("data: {records: x}", [f"policy.{change}" for change in changes])


def test_pages_speak_of_modalities_by_the_names_of_the_service():
    text = " ".join(explain.page(cause) for cause in CAUSES)
    assert not re.search(r"\b(rgb|RGB|infrared|ir)\b", text)
    assert Modality.VIS.label.upper() in text


@pytest.mark.parametrize("name", ["no_gradient", "No-Gradient", " NO GRADIENT "])
def test_a_cause_is_found_however_it_is_written(name: str):
    assert explain.find(name) is Cause.NO_GRADIENT


@pytest.mark.parametrize(
    ("name", "hint"),
    [("no_gradiant", "no_gradient"), ("non_finit", "non_finite"), ("qqqq", "lists them all")],
)
def test_an_unknown_cause_is_told_what_it_may_have_meant(name: str, hint: str):
    with pytest.raises(ConfigError, match=hint):
        explain.find(name)


def test_none_is_no_cause_to_explain():
    with pytest.raises(ConfigError):
        explain.find("none")


def test_the_command_gives_the_page_and_without_a_cause_the_list(capsys: Any):
    code, out, _ = run(capsys, "explain", "non_finite")
    assert (code, out) == (ExitCode.OK, explain.page(Cause.NON_FINITE))
    code, out, _ = run(capsys, "explain")
    named = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert named == [str(cause) for cause in CAUSES]
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("width", [50, 80, 96])
def test_pages_and_the_list_fit_the_screen_and_say_the_same_at_every_width(width: int):
    texts = {cause: explain.page(cause, width) for cause in CAUSES}
    for cause, text in [*texts.items(), (Cause.NONE, explain.listing(width))]:
        assert max(map(len, text.splitlines())) <= width, cause
    for cause, text in texts.items():
        assert text.split() == explain.page(cause, 1000).split()
    assert explain.listing(width).split() == explain.listing(1000).split()


@pytest.mark.parametrize(("columns", "widest"), [(60, 60), (300, 96)])
def test_on_a_terminal_the_command_takes_its_width(
    columns: int, widest: int, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["explain"], ["explain", "labels_shuffled"]):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        _, out, _ = run(capsys, *words)
        assert widest - 12 < max(map(len, out.splitlines())) <= widest


def test_the_command_gives_json_and_refuses_what_it_does_not_know(capsys: Any):
    import json

    code, out, _ = run(capsys, "explain", "--json", "non_finite")
    assert code == ExitCode.OK
    assert json.loads(out)["remedy"] == WORDS[Cause.NON_FINITE][1]
    code, out, _ = run(capsys, "explain", "--json")
    assert [page["cause"] for page in json.loads(out)["causes"]] == [str(c) for c in CAUSES]
    code, out, err = run(capsys, "explain", "nan")
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert "no known cause" in err
