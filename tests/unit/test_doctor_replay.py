"""`doctor run`: a journal replayed through the policy, whole, cut, superseded, of a sweep."""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service import cli
from service.bounds import Rules
from service.causes import Cause
from service.config import Config
from service.decisions import Decision, PolicyState, Verdict
from service.doctor.check import Diagnosis, Status
from service.doctor.replay import SWEEP_JOURNAL, diagnose_run, read_past
from service.errors import ConfigError, ExitCode, RunError
from service.gonogo import decide
from service.health import HealthReport
from service.orchestration.runs import Run, create_run
from service.settings import load_text
from service.training.journal import FILE_NAME, Journal
from tests.reports import healthy, stuck


@pytest.fixture
def made(tmp_path: Path) -> Run:
    config = load_text(f"run: {{storage: {tmp_path}}}\ndata: {{records: {tmp_path}}}")
    return create_run(config, "night")


def decisions_of(reports: Iterable[HealthReport], config: Config) -> list[Decision]:
    state, found = PolicyState(), []
    for report in reports:
        state, decision = decide(state, report, Rules.of(config))
        found.append(decision)
    return found


def write(run: Run, reports: Sequence[HealthReport], *, attempt: int = 1, start: int = 0) -> None:
    """An attempt's journal, judged as the loop judges."""
    journal = Journal(run.path, attempt)
    journal.append({"event": "start", "step": start})
    for report, decision in zip(reports, decisions_of(reports, run.config), strict=True):
        journal.append({"event": "health", "step": report.step, "health": report.to_dict()})
        journal.append({"event": "decision", **decision.to_dict()})
    journal.close()


def looks(found: Diagnosis) -> list[tuple[str, str]]:
    """(step, verdict) of the table."""
    table = found.tables[0]
    at = table.columns.index("verdict")
    return [(row[0], row[at]) for row in table.rows]


STUCK = [stuck(step) for step in (100, 200, 300)]
HEALTHY = [healthy(step) for step in (100, 200, 300)]


def test_a_healthy_run_is_explained_as_go(made: Run):
    write(made, HEALTHY)
    found = diagnose_run(str(made.path))
    assert found.exit_code == ExitCode.OK
    assert looks(found) == [("100", "WAIT"), ("200", "GO"), ("300", "GO")]
    assert "at step 300" in found.closing
    assert "every decision that was journaled" in " ".join(found.notes)


def test_a_no_go_names_its_cause_its_findings_and_what_to_do(made: Run):
    write(made, STUCK)
    found = diagnose_run("night", storage=str(made.path.parent))
    assert found.exit_code == ExitCode.NO_GO
    assert looks(found)[-1] == ("300", "NO_GO")
    assert "optim.head_lr" in found.closing
    lines = {check.name: check for check in found.checks}
    assert lines["ce_fraction"].status is Status.FAIL
    assert "since step 100" in lines["ce_fraction"].found
    assert f"more: crossreid explain {Cause.HEAD_LR_TOO_SMALL}" in found.notes


def test_other_thresholds_are_replayed_and_what_they_change_is_told(made: Run):
    write(made, STUCK)
    found = diagnose_run(str(made.path), ["no_go_from=400", "policy.final_look=600"])
    assert found.exit_code == ExitCode.OK
    assert looks(found)[-1] == ("300", "WAIT")
    told = " ".join(found.notes)
    assert "policy.no_go_from=400, policy.final_look=600" in told
    assert "step 300: NO_GO (head_lr_too_small) then, WAIT now" in told
    found = diagnose_run(str(made.path), ["max_swing=0.2"])
    assert "they change no decision" in found.notes


def test_other_thresholds_that_outlive_the_run_say_that_it_ended_there(made: Run):
    write(made, STUCK)
    said = "the records end at step 300: the run ended there with NO_GO (head_lr_too_small)"
    told = " ".join(diagnose_run(str(made.path), ["no_go_from=400", "final_look=600"]).notes)
    assert said in told
    assert "later is not known" in told
    for thresholds in ([], ["max_swing=0.2"]):
        told = " ".join(diagnose_run(str(made.path), thresholds).notes)
        assert "the records end" not in told


@pytest.mark.parametrize(("total", "is_told"), [(300, False), (400, True)])
def test_a_run_that_came_to_its_end_leaves_nothing_unknown(made: Run, total: int, is_told: bool):
    write(made, [replace(report, total_steps=total) for report in HEALTHY])
    told = " ".join(diagnose_run(str(made.path), ["max_swing=0.2"]).notes)
    assert ("the records end at step 300: there is no more" in told) is is_told


def asked(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(["doctor", "run", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_thresholds_stand_before_or_behind_the_run_alone_or_together(made: Run, capsys: Any):
    write(made, STUCK)
    run, policy = str(made.path), "--policy"
    one, two = "no_go_from=400", "policy.final_look=600"
    orders = [
        [run, policy, one, policy, two],
        [run, policy, one, two],
        [policy, one, run, policy, two],
        [policy, one, two, run],
        [policy, one, policy, two, run],
    ]
    told = [asked(capsys, *words) for words in orders]
    assert {(code, err) for code, _, err in told} == {(ExitCode.OK, "")}
    assert all("policy.no_go_from=400" in out and two in out for _, out, _ in told)


def test_the_replay_wants_one_run(made: Run, capsys: Any):
    code, _, err = asked(capsys, str(made.path), "other")
    assert (code, f"expected one run, found {made.path}, other" in err) == (2, True)
    code, _, err = asked(capsys, "--policy", "go=0.93", "no_go_from=400")
    assert (code, "expected one run, found none" in err) == (2, True)
    with pytest.raises(SystemExit):
        asked(capsys, "--policy", "go=0.93")


def test_of_a_sweep_the_trials_are_listed_with_the_command_for_each(tmp_path: Path, capsys: Any):
    config = load_text(f"run: {{storage: {tmp_path}}}\ndata: {{records: {tmp_path}}}")
    sweep = create_run(config, "night")
    (_, last) = decisions_of(STUCK, config)[-2:]
    for name in ("t1", "t2"):
        write(create_run(config, name, sweep.path), STUCK)
    lines: list[dict[str, Any]] = [
        {"event": "sweep", "sweep": "night"},
        *({"event": "trial", "trial": name, "sample": {}} for name in ("t2", "t1", "t3")),
        {"trial": "t1", "step": 300, "decision": last.to_dict()},
        {"event": "end", "trial": "t1"},
    ]
    (sweep.path / SWEEP_JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = diagnose_run("night", storage=str(tmp_path))
    (table,) = found.tables
    assert [row[:4] for row in table.rows] == [
        ("t1", "300", "NO_GO", "head_lr_too_small"),
        ("t2", "", "", ""),
        ("t3", "", "", ""),
    ]
    assert table.rows[2][4] == "it made no step yet"
    code, out, err = asked(capsys, str(sweep.path))
    assert (code, err) == (ExitCode.USER_ERROR, "")
    for row in table.rows[:2]:
        assert row[4] in out
        assert asked(capsys, *shlex.split(row[4])[3:])[0] == ExitCode.NO_GO


@pytest.mark.parametrize("threshold", ["gone=0.9", "go=0.99", "go", "go=much"])
def test_a_threshold_that_does_not_fit_is_refused(made: Run, threshold: str):
    write(made, STUCK)
    with pytest.raises(ConfigError):
        diagnose_run(str(made.path), [threshold])


def test_decisions_of_another_version_are_told_as_differences(made: Run):
    write(made, HEALTHY)
    text = (made.path / FILE_NAME).read_text()
    (made.path / FILE_NAME).write_text(text.replace('"verdict": "GO"', '"verdict": "HOLD"', 1))
    found = diagnose_run(str(made.path))
    assert "step 200: HOLD then, GO now" in found.notes
    assert [c.status for c in found.checks if c.name == "replay"] == [Status.WARN]


def test_what_a_later_attempt_superseded_is_not_replayed(made: Run):
    write(made, [*HEALTHY[:1], stuck(200), stuck(300)])
    write(made, HEALTHY[1:], attempt=2, start=100)
    past = read_past(made.path)
    assert [report.step for report in past.reports] == [100, 200, 300]
    assert past.reports[1] == HEALTHY[1]
    assert diagnose_run(str(made.path)).exit_code == ExitCode.OK


def test_a_journal_cut_anywhere_is_read_up_to_the_cut(made: Run):
    write(made, HEALTHY)
    whole = (made.path / FILE_NAME).read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for line, end in enumerate(ends[2:], start=2):
        for cut in (end - 1, end - 20, ends[line - 1] + 2):
            (made.path / FILE_NAME).write_bytes(whole[:cut])
            past = read_past(made.path)
            events = [json.loads(text) for text in whole[: ends[line - 1]].splitlines()]
            assert [r.step for r in past.reports] == [
                e["step"] for e in events if e["event"] == "health"
            ]
            assert past.notes == [
                f"{FILE_NAME} is cut off in line {line + 1}; what is told ends with line {line}"
            ]


def test_a_line_torn_by_an_earlier_crash_is_left_out_and_said(made: Run):
    write(made, HEALTHY[:2])
    with (made.path / FILE_NAME).open("a") as file:
        file.write('{"attempt": 1, "event": "hea')
    write(made, HEALTHY[2:], attempt=2, start=200)
    past = read_past(made.path)
    assert [r.step for r in past.reports] == [100, 200, 300]
    assert past.notes == [f"{FILE_NAME} is cut off in line 6; it is left out"]


def test_a_report_of_another_version_is_refused_by_its_line(made: Run):
    journal = Journal(made.path, 1)
    values = HEALTHY[0].to_dict()
    del values["body_moved"]
    journal.append({"event": "health", "step": 100, "health": values})
    journal.close()
    with pytest.raises(RunError, match=r"step 100 lacks the line\s'body_moved'"):
        diagnose_run(str(made.path))


def test_a_run_without_a_report_is_refused_with_what_it_ended_with(made: Run):
    journal = Journal(made.path, 1)
    journal.append({"event": "error", "kind": "DataError", "message": "a torn file"})
    journal.close()
    with pytest.raises(RunError, match=r"no health report.*DataError: a torn file"):
        diagnose_run(str(made.path))


def test_a_run_without_a_journal_is_refused(made: Run):
    with pytest.raises(RunError, match="is this a run's folder"):
        diagnose_run(str(made.path))


def test_an_error_that_ended_the_run_is_told_with_its_cause(made: Run):
    write(made, HEALTHY)
    journal = Journal(made.path, 1)
    journal.append(
        {
            "event": "error",
            "kind": "NonFiniteError",
            "cause": "non_finite",
            "message": "NaN at step 312",
        }
    )
    journal.close()
    found = diagnose_run(str(made.path))
    assert found.exit_code == ExitCode.NO_GO
    (end,) = (check for check in found.checks if check.name == "end")
    assert end.cause is Cause.NON_FINITE
    assert "NaN at step 312" in end.found
    write(made, [], attempt=2, start=300)
    assert diagnose_run(str(made.path)).exit_code == ExitCode.OK


def test_a_paused_run_has_its_own_exit_code_and_goes_on_when_it_was_continued(made: Run):
    chance = {"ce": 5.99, "ce_fraction": 1.0, "ce_slope": 0.0}
    fallen = [healthy(step, **chance) for step in range(300, 1000, 100)]
    reports = [*HEALTHY[:2], *fallen]
    paused = next(d.step for d in decisions_of(reports, made.config) if d.verdict is Verdict.PAUSE)
    until = [r for r in reports if r.step <= paused]
    write(made, until)
    assert diagnose_run(str(made.path)).exit_code == ExitCode.PAUSED
    journal = Journal(made.path, 1)
    journal.append({"event": "end", "step": paused, "verdict": "PAUSE"})
    journal.append({"event": "start", "attempt": 2, "step": paused})
    back = healthy(paused + 100)
    journal.append({"event": "health", "step": back.step, "health": back.to_dict()})
    journal.close()
    found = diagnose_run(str(made.path))
    assert found.exit_code == ExitCode.OK
    assert looks(found)[-1][0] == str(back.step)


def test_a_trial_is_held_against_what_its_sweep_decided(tmp_path: Path):
    config = load_text(f"run: {{storage: {tmp_path}}}\ndata: {{records: {tmp_path}}}")
    sweep = tmp_path / "sweep"
    trial = create_run(config, "t1", sweep)
    journal = Journal(trial.path, 1)
    for report in STUCK:
        journal.append({"event": "health", "step": report.step, "health": report.to_dict()})
    journal.close()
    assert "no decision was journaled" in " ".join(diagnose_run(str(trial.path)).notes)
    lines: list[dict[str, Any]] = [
        {"trial": "t1", "step": d.step, "decision": d.to_dict()}
        for d in decisions_of(STUCK, config)
    ]
    others = [{"trial": "t2", "step": 300, "decision": lines[0]["decision"] | {"step": 300}}]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *others])
    (sweep / SWEEP_JOURNAL).write_text(text + '{"trial": "t1", "st')
    found = diagnose_run(str(trial.path))
    assert found.exit_code == ExitCode.NO_GO
    told = " ".join(found.notes)
    assert "a trial of sweep" in told
    assert "every decision that was journaled" in told
    assert f"{SWEEP_JOURNAL} is cut off" in told


def test_a_long_run_shows_every_change_and_its_end(made: Run):
    reports = [healthy(step) for step in range(100, 20_000, 100)]
    write(made, reports)
    found = diagnose_run(str(made.path))
    shown = looks(found)
    assert len(shown) < 80
    assert "of 199" in found.tables[0].title
    assert {"100", "200", "19900"} <= {step for step, _ in shown}
