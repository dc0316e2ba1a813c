"""What a sweep shows: a live row for each trial with ETA, and a final table that cuts nothing."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from service import views_sweep
from service.orchestration.progress import SWEEP, Update
from service.orchestration.rows import Row, Sweep
from service.views_sweep import LiveTable, final, said, saved

LINE = {
    "ce_fraction": 0.8123,
    "top1": 0.25,
    "pair_coverage": 0.97,
    "sdm_weight": 0.1,
    "verdict": "RAISE",
    "cause": "",
}


def drawn(table: LiveTable, width: int = 120, height: int = 50) -> str:
    return "\n".join(table.lines(width, height))


def update(trial: str, step: int = 0, total: int = 0, **values: Any) -> Update:
    return Update(trial=trial, step=step, total=total, sample={"optim.head_lr": 3e-3}, **values)


def test_the_live_table_has_each_trials_newest_numbers():
    table = LiveTable()
    table.take(Update(trial=SWEEP, total=3))
    table.take(update("ab_0"))
    table.take(update("ab_0", 40, 400, line=LINE))
    table.take(update("ab_0", 60, 400))
    text = drawn(table)
    for told in ("ab_0", "optim.head_lr=0.003", "60/400", "0.812", "25.0%", "0.97", "RAISE"):
        assert told in text
    assert "0 of 3 trials have ended" in text
    table.take(update("ab_0", ended=True))
    assert "1 of 3 trials have ended" in drawn(table)
    assert "60/400" in drawn(table)


def test_the_eta_counts_what_every_trial_still_has_to_make():
    clock = [0.0]
    table = LiveTable(clock=lambda: clock[0])
    table.take(Update(trial=SWEEP, total=3))
    table.take(update("a", 10, 100))
    assert table.eta_s() is None
    clock[0] = 5.0
    table.take(update("a", 20, 100))
    table.take(update("b", 40, 100))
    # 50 steps in 5 s; left are 80, 60, and 100 of the trial to come.
    assert table.eta_s() == pytest.approx((80 + 60 + 100) * 5 / 50)
    table.take(update("b", ended=True))
    assert table.eta_s() == pytest.approx((80 + 100) * 5 / 50)
    assert "ETA 18s if all run to their end" in drawn(table)


def test_above_the_table_are_decisions_losses_and_words_about_the_sweep():
    messages = ("step=40 ce=1", "[verdict] step=40 GO", "[workers] rank 1 hangs", "[plan] x")
    assert said(Update(trial="a", messages=messages)) == [
        "a  [verdict] step=40 GO",
        "a  [workers] rank 1 hangs",
    ]
    assert said(Update(trial=SWEEP, messages=("s with 3 trials",))) == ["s with 3 trials"]


REMEDY = "set optim.head_lr to 1e-2 (3e-3 for random weights) and look at the head's norm"


def found() -> Sweep:
    cause = "the head's learning rate is too small to move the head"
    rows = (
        Row("ab123_00000", {"optim.head_lr": 3e-3}, "GO", steps=400, total=400, summary=LINE),
        Row(
            "ab123_00001",
            {"optim.head_lr": 1e-6, "loss.sdm.form": "kl", "optim.weight_decay": 1e-4},
            "NO_GO",
            cause,
            REMEDY,
            steps=100,
            total=400,
            saved=300,
        ),
        Row("ab123_00002", {}, "NO_GO", cause, REMEDY, steps=100, total=400, saved=300),
        Row("ab123_00003", {}, "GO", note="stopped by asha at step 200", steps=210, saved=190),
    )
    decisions = {
        "ab123_00001": [
            {"step": 100, "verdict": "NO_GO", "cause": cause, "actions": ["stop"]},
        ],
        "ab123_00000": [
            {"step": n, "verdict": "RAISE", "cause": "", "actions": [f"sdm_weight={n}"]}
            for n in range(1, 31)
        ],
    }
    return Sweep("night", Path("/runs/night"), rows, rows[0], 0, decisions)


def test_the_final_table_names_everything_within_120_columns():
    text = final(found())
    table = text[: text.index("the head's learning rate is too small to move the head:")]
    assert max(len(line) for line in table.splitlines()) <= 120
    assert {line.count("│") for line in table.splitlines() if "│" in line} == {10}
    assert "…" not in text
    for told in ("optim.weight_decay=0.0001", "loss.sdm.form=kl", "optim.head_lr=1e-06"):
        assert told in text
    assert "stopped by asha" in text
    assert f"{REMEDY} (ab123_00001, ab123_00002)" in text
    assert "ab123_00001  step 100 NO_GO the head's learning rate" in text
    assert "step 1 RAISE [sdm_weight=1]" in text
    assert "... 18 more; step 30 RAISE [sdm_weight=30]" in text


WORDS = "the head's learning rate is too small to move the head"


def night(number: int) -> Sweep:
    """Real-looking rows: long ids, samples of two settings, long causes."""
    rows = tuple(
        Row(
            f"1f3a2b4c_{n:05d}",
            {"optim.head_lr": 3e-3 / (n + 1), "loss.sdm.form": "kl", "optim.backbone_lr": 1e-6},
            "ROLLBACK" if n % 2 else "NO_GO",
            WORDS,
            REMEDY,
            steps=11_000 + n,
            total=12_000,
            summary={**LINE, "top1": 1.0},
        )
        for n in range(number)
    )
    return Sweep("night", Path("/runs/night"), rows, None, 3)


def table_of(text: str) -> list[str]:
    """The lines up to the first remedy."""
    lines = text.splitlines()
    return lines[: next(i for i, line in enumerate(lines) if REMEDY in line)]


@pytest.mark.parametrize("width", [80, 100])
def test_the_final_table_cuts_no_trial_verdict_number_or_word_on_a_narrow_screen(width: int):
    lines = table_of(final(night(4), width))
    assert max(map(len, lines)) <= width
    for n in range(4):
        (at,) = (i for i, line in enumerate(lines) if f"1f3a2b4c_{n:05d}" in line)
        verdict = "ROLLBACK" if n % 2 else "NO_GO"
        for told in (f"{11_000 + n}/12000", "0.812", "100.0%", "0.97", "0.1", verdict):
            assert told in lines[at].split()
        below = itertools.takewhile(lambda line: line.startswith("    "), lines[at + 1 :])
        note = " ".join(line.strip() for line in below)
        rate = f"{3e-3 / (n + 1):.4g}"
        sample = f"optim.head_lr={rate}, loss.sdm.form=kl, optim.backbone_lr=1e-06"
        assert note == f"{sample}; {WORDS}"


def test_a_screen_too_narrow_for_the_numbers_still_shows_all_of_them():
    lines = table_of(final(night(2), 40))
    assert max(map(len, lines)) <= 40
    text = " ".join(line.strip() for line in lines)
    for told in ("1f3a2b4c_00001  ROLLBACK", "step 11001/12000", "CE/lnC 0.812", "SDM 0.1", WORDS):
        assert told in text


@given(
    width=st.integers(70, 200),
    samples=st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e9)), max_size=4),
    cause=st.text("ab []/:", max_size=80),
)
def test_at_no_width_is_a_trial_a_verdict_or_a_number_broken(
    width: int, samples: list[dict[str, float]], cause: str
):
    rows = tuple(
        Row(f"1f3a_{n:05d}", sample, "NO_GO", cause, steps=12345, total=67890, summary=LINE)
        for n, sample in enumerate(samples)
    )
    told = final(Sweep("s", Path("/s"), rows, None, 3), width)
    for row in rows:
        (line,) = (line for line in told.splitlines() if row.trial in line)
        assert {"NO_GO", "12345/67890", "0.812", "25.0%"} <= set(line.replace("│", " ").split())


def test_what_stands_in_a_cause_is_not_markup():
    row = Row("a", {"x": "[kl]"}, "ERROR", "found [/red] and [bold]")
    for width in (60, 200):
        text = final(Sweep("s", Path("/s"), (row,), None, 2), width)
        assert "x=[kl]" in text
        assert "[/red] and [bold]" in text


def crowd(running: int, ended: int) -> LiveTable:
    """Trials of which those that run came last."""
    clock = [0.0]
    table = LiveTable(clock=lambda: clock[0])
    table.take(Update(trial=SWEEP, total=running + ended))
    for n in range(running + ended):
        table.take(update(f"t_{n:03d}", 10, 400, line=LINE))
    clock[0] = 60.0
    for n in range(ended):
        table.take(update(f"t_{n:03d}", 100, 400, ended=True))
    return table


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("height", [24, 50])
def test_a_screen_shows_the_eta_and_every_running_trial_however_many_have_ended(
    width: int, height: int
):
    lines = crowd(running=3, ended=60).lines(width, height)
    assert len(lines) <= height
    assert lines[0].startswith("60 of 63 trials have ended  ETA ")
    text = "\n".join(lines)
    assert all(f"t_{n:03d}" in text for n in (60, 61, 62))
    assert lines[-1] == "60 ended"
    assert "t_000" not in text


def test_running_trials_stand_above_those_that_have_ended_where_all_fit():
    lines = crowd(running=2, ended=3).lines(120, 24)
    trials = [line.split()[0] for line in lines[2:]]
    assert trials == ["t_003", "t_004", "t_000", "t_001", "t_002"]


def test_more_running_trials_than_lines_are_counted():
    lines = crowd(running=40, ended=5).lines(120, 24)
    assert len(lines) == 24
    assert lines[-1] == "19 more running, 5 ended"
    assert [line.split()[0] for line in lines[2:-1]] == [f"t_{n:03d}" for n in range(5, 26)]
    assert crowd(running=40, ended=5).lines(120, 2)[-1] == "40 more running, 5 ended"


def test_the_steps_saved_are_a_share_of_what_would_have_been_made():
    assert saved(found()) == ("810 steps made; steps saved by stopping early: 790 of 1600 (49%)")
    empty = Sweep("s", Path("/"), (), None, 2)
    assert saved(empty) == "0 steps made; steps saved by stopping early: 0 of 0 (0%)"
    assert "decisions" not in final(empty)


def test_on_a_terminal_the_table_lives_below_what_is_said(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(views_sweep, "Console", lambda **_: console)
    with views_sweep.sweep_progress() as show:
        show(Update(trial=SWEEP, total=1, messages=("night with 1 trials",)))
        show(update("ab_0", 40, 400, line=LINE, messages=("[verdict] step=40 RAISE", "[plan] x")))
    text = screen.getvalue()
    assert "night with 1 trials" in text
    assert "ab_0  [verdict] step=40 RAISE" in text
    assert "[plan] x" not in text
    assert "40/400" in text


def test_a_terminal_of_24_lines_shows_the_running_trial_behind_60_ended_ones(
    monkeypatch: pytest.MonkeyPatch,
):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=24, highlight=False)
    monkeypatch.setattr(views_sweep, "Console", lambda **_: console)
    with views_sweep.sweep_progress() as show:
        show(Update(trial=SWEEP, total=61))
        for n in range(60):
            show(update(f"t_{n:03d}", 100, 400, line=LINE, ended=True))
        show(update("t_060", 40, 400, line=LINE))
        screen.truncate(0)
    text = screen.getvalue()
    assert "60 of 61 trials have ended" in text
    assert "t_060" in text
    assert "60 ended" in text


def test_elsewhere_a_sweep_is_told_in_plain_lines(capsys: pytest.CaptureFixture[str]):
    with views_sweep.sweep_progress() as show:
        show(
            update("ab_0", 40, 400, line={**LINE, "images_per_second": 9.0}, messages=("[plan] x",))
        )
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "ab_0  [plan] x"
    assert told[1].startswith("ab_0  step 40/400  CE/lnC 0.812")
