"""A sweep's journal: read whole although a crash cut it, and refused when it is another sweep's.

The oracle of a restart is the sweep that was never interrupted.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.config import Config, DataConfig, TuneConfig
from service.errors import RunError
from service.orchestration.bases import make_base
from service.orchestration.progress import Update
from service.orchestration.runs import Run, make_run
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal
from service.orchestration.sweeps import check_head, head_line
from service.orchestration.tune import _scheduler
from service.settings import override
from tests.reports import LN_C, healthy, stuck
from tests.sweeps import Sweep

CONFIG = override(
    Config(data=DataConfig(records="nowhere")), ["tune.space={run.seed: {grid: [0, 1]}}"]
)
NAMES = "abcd"


def restarted(sweep: Sweep, base: Any) -> Sweep:
    """A new driver's scheduler over the same journal; every trial comes back from Tune."""
    sweep.journal.mend()
    again = Sweep(sweep.journal.path, sweep.config, base)
    again.scheduler.replay(sweep.journal.read())
    for name in sorted(again.scheduler.trials):
        again.add(name)
    return again


def told(sweep: Sweep) -> list[dict[str, Any]]:
    """What was decided, without when."""
    lines = [line for line in sweep.lines if line["event"] == "decision"]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


reports = st.lists(
    st.tuples(st.sampled_from(NAMES), st.floats(0.1, 1.0), st.booleans()), max_size=40
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    reports,
    st.integers(0, 40),
    st.sampled_from(["fifo", "asha", "median"]),
    st.sampled_from([b"", b'{"event": "decision", "tri', b"\x00\xff", b'"half"\n']),
)
def test_a_restarted_sweep_decides_as_if_it_had_never_stopped(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, float, bool]],
    cut: int,
    kind: Any,
    torn: bytes,
):
    tune = TuneConfig(base=kind, base_grace_steps=200, reduction_factor=2, min_trials=1)
    folder = tmp_path_factory.mktemp("sweep")
    whole = Sweep(folder / "whole.jsonl", CONFIG, make_base(tune, 10_000))
    broken = Sweep(folder / "broken.jsonl", CONFIG, make_base(tune, 10_000))
    for name in NAMES:
        whole.add(name)
        broken.add(name)
    steps = dict.fromkeys(NAMES, 100)
    for at, (name, fraction, is_stuck) in enumerate(drawn):
        if at == cut:
            with broken.journal.path.open("ab") as file:
                file.write(torn)
            broken = restarted(broken, make_base(tune, 10_000))
        steps[name] += 100
        lines = {"ce_fraction": fraction, "ce": fraction * LN_C}
        report = stuck(steps[name]) if is_stuck else healthy(steps[name], **lines)
        numbers = [
            record.directive.number if record and record.directive else 0
            for record in (s.scheduler.trials.get(name) for s in (whole, broken))
        ]
        for sweep, number in zip((whole, broken), numbers, strict=True):
            sweep.report(report, name, directive=number)
            if sweep.scheduler.trials[name].is_stopping:
                sweep.scheduler.on_trial_complete(None, SimpleNamespace(trial_id=name), {})
    assert told(broken) == told(whole)


def judged(tmp_path: Path) -> Sweep:
    sweep = Sweep(tmp_path / "decisions.jsonl", CONFIG)
    for name in "ab":
        sweep.add(name)
    sweep.report(healthy(200), "a")
    sweep.report(healthy(1863), "a")
    sweep.report(stuck(300), "b")
    return sweep


def test_steps_that_a_resumed_trial_makes_again_are_not_judged_again(tmp_path: Path):
    again = restarted(judged(tmp_path), None)
    before = len(again.lines)
    again.report(healthy(200), "a")
    again.report(healthy(1863), "a")
    assert again.heard == []
    again.report(healthy(2000), "a", directive=1)
    assert [decision.step for _, decision in again.heard] == [2000]
    assert len(again.lines) == before + 1


def test_a_directive_keeps_its_number_and_is_sent_until_the_trial_echoes_it(tmp_path: Path):
    again = restarted(judged(tmp_path), None)
    again.report(healthy(200), "a", directive=0)
    assert [(key, d.number) for key, d in again.sent] == [("a", 1)]
    again.report(healthy(1863), "a", directive=1)
    assert len(again.sent) == 1


def test_who_was_asked_to_stop_or_has_ended_is_not_run_again_and_others_wait_for_room(
    tmp_path: Path,
):
    sweep = judged(tmp_path)
    trial = sweep.add("c")
    sweep.scheduler.on_trial_complete(None, trial, {"outcome": '{"verdict": "WAIT"}'})
    lines = sweep.journal.read()
    again = Sweep(sweep.journal.path, CONFIG)
    again.scheduler.replay(lines)
    status = {name: again.add(name).status for name in "abcd"}
    assert status == {"a": "PAUSED", "b": "TERMINATED", "c": "TERMINATED", "d": "PENDING"}
    assert [key for key, _ in again.told] == ["b", "c"]
    assert again.told[0][1]["ce_fraction"] == pytest.approx(1.0)
    assert again.scheduler.ended == {"b", "c"}
    # A retry of the restored trial is Tune's own matter.
    again.scheduler.on_trial_error(None, trial)
    assert again.add("a").status == "PENDING"


def test_a_trial_with_another_sample_than_the_journal_says_is_refused(tmp_path: Path):
    again = restarted(judged(tmp_path), None)
    with pytest.raises(RunError, match=r"of different sweeps"):
        again.add("a", **{"run.seed": 3})


@pytest.mark.parametrize("torn", [b'{"event": "dec', b"\xff\xfe", b'{"event": "trial"}\x00\n'])
def test_a_line_cut_off_at_the_end_or_in_the_middle_is_left_out(tmp_path: Path, torn: bytes):
    sweep = judged(tmp_path)
    lines = sweep.journal.path.read_bytes().splitlines(keepends=True)
    whole = sweep.journal.read()
    for at in range(len(lines) + 1):
        sweep.journal.path.write_bytes(b"".join([*lines[:at], torn, b"\n", *lines[at:]]))
        assert sweep.journal.read() == whole
    sweep.journal.path.write_bytes(b"".join(lines) + torn.rstrip(b"\n"))
    sweep.journal.mend()
    sweep.journal.append({"event": "trial"})
    assert sweep.journal.read() == [*whole, {"event": "trial"}]


def test_every_cut_of_the_file_still_gives_the_lines_before_it(tmp_path: Path):
    sweep = judged(tmp_path)
    data, whole = sweep.journal.path.read_bytes(), sweep.journal.read()
    for length in range(0, len(data), 37):
        sweep.journal.path.write_bytes(data[:length])
        found = sweep.journal.read()
        complete = data[:length].count(b"\n")
        assert found in (whole[:complete], whole[: complete + 1])


def started(tmp_path: Path) -> Run:
    """A sweep's folder with its config and the first line of its journal."""
    run = make_run(Run("s", tmp_path / "s", CONFIG))
    SweepJournal(run.path / FILE_NAME).append(head_line("s", CONFIG))
    return run


@pytest.mark.parametrize(
    ("overrides", "sweep", "words"),
    [
        (["optim.weight_decay=0.5"], "s", "sweep: optim.weight_decay was 0.0001 and is 0.5. Con"),
        (["tune.space={run.seed: {grid: [0, 2]}}"], "s", "tune.space was"),
        (["tune.samples=2"], "s", "tune.samples was 1 and is 2"),
        (["tune.base=asha"], "s", "tune.base was fifo and is asha"),
        (["tune.min_trials=9"], "s", "tune.min_trials was 3 and is 9"),
        ([], "other", "sweep was s and is other"),
    ],
)
def test_a_journal_of_another_sweep_is_refused_by_what_differs_and_left_as_it_was(
    tmp_path: Path, overrides: list[str], sweep: str, words: str
):
    run = started(tmp_path)
    before = (run.path / FILE_NAME).read_bytes()
    with pytest.raises(RunError, match=words):
        check_head(Run(sweep, run.path, override(CONFIG, overrides)))
    assert (run.path / FILE_NAME).read_bytes() == before


def test_a_config_that_was_changed_after_the_start_is_named_itself(tmp_path: Path):
    run = started(tmp_path)
    changed = override(CONFIG, ["optim.weight_decay=0.5"])
    (run.path / "config.yaml").write_text(changed.to_yaml())
    with pytest.raises(RunError, match=r"its config\.yaml was changed after its start"):
        check_head(Run("s", run.path, changed))


def test_where_a_sweep_runs_and_how_many_at_a_time_may_change(tmp_path: Path):
    run = make_run(Run("s", tmp_path / "s", CONFIG))
    assert check_head(run) == []
    SweepJournal(run.path / FILE_NAME).append(head_line("s", CONFIG))
    other = override(CONFIG, ["tune.max_concurrent=4", "cluster.num_workers=2", "tune.grace_s=5"])
    assert check_head(Run("s", run.path, other)) == []


def test_the_head_of_a_version_that_compared_less_is_taken_for_what_it_says(tmp_path: Path):
    run = started(tmp_path)
    head = head_line("s", CONFIG)
    del head["min_trials"]
    (run.path / FILE_NAME).write_text(json.dumps(head) + "\n")
    assert check_head(Run("s", run.path, override(CONFIG, ["tune.min_trials=9"]))) == []


def test_a_journal_without_its_first_line_is_refused(tmp_path: Path):
    run = Run("s", tmp_path, CONFIG)
    text = '{"event": "swee\n{"event": "trial", "trial": "a", "sample": {}}\n'
    (run.path / FILE_NAME).write_text(text)
    with pytest.raises(RunError, match=r"has lost its first line"):
        check_head(run)


def test_a_journal_cut_in_its_first_line_gets_a_whole_one_and_says_so_once(tmp_path: Path):
    run, said = started(tmp_path), list[str]()
    file = run.path / FILE_NAME
    file.write_bytes(file.read_bytes()[:-20])

    def hear(update: Update) -> None:
        said.extend(update.messages)

    plan: Any = SimpleNamespace(longest=100)
    scheduler = _scheduler(run, plan, hear)
    scheduler.on_trial_add(None, SimpleNamespace(trial_id="a", config={"run.seed": 0}))
    assert [line["event"] for line in SweepJournal(file).read()] == ["sweep", "trial"]
    assert said == [f"1 line was cut off in {file} and left out: what stood there is decided again"]
    assert [line["trial"] for line in check_head(run)] == ["a"]
    whole = make_run(Run("w", tmp_path / "w", CONFIG))
    _scheduler(whole, plan, hear)
    assert len(said) == 1


def test_a_line_of_another_version_is_refused_by_name(tmp_path: Path):
    sweep = judged(tmp_path)
    lines = sweep.journal.read()
    lines[2]["state"]["nodge"] = lines[2]["state"].pop("notch")
    again = Sweep(tmp_path / "again.jsonl", CONFIG)
    with pytest.raises(RunError, match=r"this version cannot read"):
        again.scheduler.replay(lines)
