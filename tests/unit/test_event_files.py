"""TensorBoard shows what the journals say: all of what counts, once, whatever the attempts."""

import contextlib
import json
import math
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.health import HealthReport
from service.orchestration.runs import create_run
from service.orchestration.sinks import source_of
from service.orchestration.sweep_journal import FILE_NAME as SWEEP_JOURNAL
from service.orchestration.sweep_journal import SweepJournal
from service.settings import load_text
from service.telemetry.sinks.channel import Channel
from service.telemetry.sinks.event_files import FOLDER, EventFile, TensorBoard
from service.telemetry.sinks.sink import Numbers, Status, Subject
from tests.journals import (
    CHECKPOINT_EVERY,
    HEALTH_EVERY,
    LOG_EVERY,
    STEPS_PER_EPOCH,
    Scalars,
    Trainer,
    decision_event,
    records,
    scalars,
    steps_event,
    texts,
)
from tests.reports import healthy

NUMERIC = {
    name
    for name, value in healthy(3).to_dict().items()
    if isinstance(value, int | float) and name != "step"
}


def run_folder(parent: Path, name: str = "night") -> Path:
    config = load_text(f"run: {{storage: {parent}}}\ndata: {{records: {parent}}}")
    return create_run(config, name, parent).path


Follow = Callable[..., Channel]


@contextlib.contextmanager
def channel(folder: Path, trial: str = "main") -> Iterator[Channel]:
    found = Channel(source_of(folder, folder.name, trial), TensorBoard())
    yield found
    found.close()


@pytest.fixture
def follow() -> Iterator[Follow]:
    """Makes channels that are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *words: stack.enter_context(channel(*words))


def export(folder: Path) -> Path:
    """All of the journal, told at once; the folder of its event files."""
    with channel(folder) as once:
        once.catch_up()
    return folder / FOLDER


def close(found: Scalars) -> dict[str, list[tuple[int, float]]]:
    """Rounded to what 32 bits keep."""
    return {tag: [(s, pytest.approx(v, rel=1e-6)) for s, v in line] for tag, line in found.items()}


# -- what stands there -----------------------------------------------------------------------------


def test_every_number_of_the_journal_stands_under_its_name_at_its_step_and_time(tmp_path: Path):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    trainer.train(1, 6)
    trainer.end(6, ce=1.5, mAP={"mean": 0.25, "NIR+CP": 0.5}, run_id="night", equal=True)
    found = scalars(export(folder))
    assert {f"health/{name}" for name in NUMERIC} <= set(found)
    assert {f.name for f in fields(HealthReport)} - NUMERIC == {"step", "ce_by_kind", "sdm_reason"}
    assert found["health/ce"] == close({"": [(3, 5.03), (6, 5.06)]})[""]
    assert found["health/memory_equal"] == [(3, 1.0), (6, 1.0)]
    assert found["ce_by_kind/vis"] == close({"": [(3, 5.4), (6, 5.4)]})[""]
    assert found["steps/seconds"] == [(2, 0.125), (4, 0.125), (6, 0.125)]
    assert found["epoch/sdm_weight"] == close({"": [(0, 0.1)]})[""]
    assert found["checkpoint/step"] == [(6, 6.0)]
    assert (found["summary/ce"], found["mAP/NIR+CP"]) == ([(6, 1.5)], [(6, 0.5)])
    assert found["summary/equal"] == [(6, 1.0)]
    ends = [r.wall_time for r in records(folder / FOLDER) if "run/end" in str(r.summary)]
    assert ends == [trainer.now - 1]


def test_a_line_that_is_not_measured_is_left_out_and_one_that_is_not_a_number_stays(tmp_path: Path):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    odd = healthy(3, body_grad_norm=None, ce=math.nan, head_norm=math.inf).to_dict()
    trainer.write({"event": "health", "step": 3, "health": odd})
    found = scalars(export(folder))
    assert "health/body_grad_norm" not in found
    assert math.isnan(found["health/ce"][0][1])
    assert found["health/head_norm"] == [(3, math.inf)]


def test_decisions_are_told_when_they_change_and_settings_once(tmp_path: Path):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    trainer.train(1, 15)
    found = texts(export(folder))
    decisions = [(step, words) for tag, step, words in found if tag == "run/decision"]
    assert decisions == [(3, "[verdict] step=3 WAIT"), (12, "[verdict] step=12 GO")]
    table = next(words for tag, _, words in found if tag == "run/settings")
    assert "| sampler.ids_per_batch | 16 |" in table
    assert [tag for tag, _, _ in found if tag == "run/start"] == ["run/start"]


def test_no_secret_of_the_environment_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORE_TOKEN", "open-sesame")
    folder = run_folder(tmp_path)
    (folder / "config.yaml").write_text("data: {records: 's3://me:secret@host/open-sesame'}\n")
    trainer = Trainer(folder)
    trainer.begin(0)
    error = {"event": "error", "kind": "DataError", "name": "DataError", "cause": "none"}
    trainer.write({**error, "message": "cannot read https://u:pw@host with open-sesame"})
    written = b"".join(file.read_bytes() for file in export(folder).iterdir())
    assert b"cannot read" in written
    assert b"data.records" in written
    for secret in (b"open-sesame", b"u:pw", b"me:secret"):
        assert secret not in written


def test_a_long_journal_comes_over_whole(tmp_path: Path):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    lines = [{"attempt": 1, "time": 5.0, **steps_event(step)} for step in range(1, 1202)]
    with (folder / "journal.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    shown = scalars(export(folder))["steps/ce"]
    assert [step for step, _ in shown] == list(range(1, 1202))


# -- attempts --------------------------------------------------------------------------------------

attempts = st.lists(st.tuples(st.integers(1, 25), st.integers(0, 5)), min_size=1, max_size=4)
"""Steps that an attempt makes, and how many checkpoints back the next one begins."""


SHOWN = ("health/ce", "steps/ce", "checkpoint/step", "epoch/sdm_weight")


def expected(trained_by: Mapping[int, float]) -> Scalars:
    """What a run shows whose step `s` was trained last with the offset `trained_by[s]`."""
    last = max(trained_by, default=0)
    reports = [s for s in range(1, last + 1) if s % HEALTH_EVERY == 0]
    logged = [s for s in range(1, last + 1) if s % LOG_EVERY == 0]
    saved = [s for s in range(1, last + 1) if s % CHECKPOINT_EVERY == 0]
    begun = range(0, max(last, 1), STEPS_PER_EPOCH)
    found = {
        "health/ce": [(s, 5.0 + s / 100 + trained_by[s]) for s in reports],
        "steps/ce": [(s, 6.0 - s / 100 + trained_by[s]) for s in logged],
        "checkpoint/step": [(s, float(s)) for s in saved],
        "epoch/sdm_weight": [(s, (s // STEPS_PER_EPOCH + 1) / 10) for s in begun if last],
    }
    return close({tag: line for tag, line in found.items() if line})


@settings(max_examples=40, deadline=None)
@given(attempts, st.booleans())
def test_any_attempts_show_what_an_uninterrupted_run_shows(
    plan: list[tuple[int, int]], is_live: bool
):
    with tempfile.TemporaryDirectory() as parent:
        folder = run_folder(Path(parent))
        trainer, trained_by, starts, at = Trainer(folder), dict[int, float](), list[int](), 0
        with channel(folder) as here:
            for number, (num_steps, back) in enumerate(plan):
                trainer.begin(at)
                starts = [step for step in starts if step <= at] + [at]
                trained_by = {s: offset for s, offset in trained_by.items() if s <= at}
                if is_live:
                    here.catch_up()
                last = at + num_steps
                trainer.train(at + 1, last, offset=float(number))
                trained_by |= dict.fromkeys(range(at + 1, last + 1), float(number))
                if is_live:
                    here.catch_up()
                at = max(0, last // CHECKPOINT_EVERY - back) * CHECKPOINT_EVERY
            here.catch_up()
        found = scalars(folder / FOLDER)
        told = [step for tag, step, _ in texts(folder / FOLDER) if tag == "run/start"]
    wanted = expected(trained_by)
    assert {tag: line for tag, line in found.items() if tag in SHOWN} == wanted
    assert told == starts


def test_how_an_attempt_ended_does_not_stand_in_a_run_that_went_on(tmp_path: Path, follow: Follow):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    trainer.train(1, 6)
    trainer.end(6, "STOPPED", ce=9.0)
    here = follow(folder)
    here.catch_up()
    assert scalars(folder / FOLDER)["summary/ce"] == [(6, 9.0)]
    trainer.begin(6)
    trainer.train(7, 12)
    here.catch_up()
    found = scalars(folder / FOLDER)
    assert "summary/ce" not in found
    assert [step for step, _ in found["health/ce"]] == [3, 6, 9, 12]
    # One that a TensorBoard may be reading, and the one that counts.
    sizes = [file.stat().st_size for file in sorted((folder / FOLDER).iterdir())]
    assert sizes[0] == 0 < sizes[1]


def test_a_second_export_doubles_nothing_and_leaves_other_files_alone(tmp_path: Path):
    folder = run_folder(tmp_path)
    Trainer(folder).begin(0)
    (folder / FOLDER).mkdir()
    other = folder / FOLDER / "events.out.tfevents.1.host"
    other.write_bytes(b"")
    for _ in range(3):
        export(folder)
    assert len([tag for tag, _, _ in texts(folder / FOLDER) if tag == "run/start"]) == 1
    assert other.exists()


def test_a_disk_that_fills_up_costs_no_record_and_breaks_no_file(tmp_path: Path):
    subject = Subject("night", "", tmp_path, 1, {}, 5.0)
    sink = EventFile(tmp_path, subject)
    size = next(tmp_path.iterdir()).stat().st_size
    sink.put(Numbers(1, 6.0, {f"health/{i}": 1.0 for i in range(500)}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert scalars(tmp_path) == {}
    sink.flush()
    sink.close(Status.FINISHED)
    assert len(scalars(tmp_path)) == 500


# -- a sweep ---------------------------------------------------------------------------------------


def judge(sweep: Path, trial: str, step: int, now: float, sample: str = "") -> None:
    line = {"event": "decision", "time": now, "trial": trial, "step": step, "sample": sample}
    decision = {name: v for name, v in decision_event(step).items() if name != "event"}
    SweepJournal(sweep / SWEEP_JOURNAL).append({**line, "decision": decision})


def sweep_of(parent: Path, *trials: str) -> Path:
    sweep = run_folder(parent, "hunt")
    SweepJournal(sweep / SWEEP_JOURNAL).append({"event": "sweep", "sweep": "hunt"})
    for trial in trials:
        run_folder(sweep, trial)
    return sweep


def test_a_trials_decisions_are_its_schedulers_and_its_end_is_the_last_word(
    tmp_path: Path, follow: Follow
):
    sweep = sweep_of(tmp_path, "a", "b")
    trainer = Trainer(sweep / "a", decides=False)
    here = follow(sweep, "a")
    trainer.begin(0)
    for step in (3, 12):
        trainer.report(step)
        here.catch_up()
        judge(sweep, "a", step, trainer.now)
        judge(sweep, "b", 99, trainer.now, sample="a")
    trainer.end(12)
    here.catch_up()
    judge(sweep, "a", 15, trainer.now)
    SweepJournal(sweep / SWEEP_JOURNAL).append(
        {"event": "end", "time": trainer.now, "trial": "a", "outcome": {}}
    )
    here.catch_up()
    found = texts(sweep / "a" / FOLDER)
    assert [step for tag, step, _ in found if tag == "run/decision"] == [3, 12]
    assert [step for tag, step, _ in found if tag == "run/end"] == [12]
    assert not (sweep / "b" / FOLDER).exists()
    before = records(sweep / "a" / FOLDER)
    trainer.write(steps_event(14))
    here.catch_up()
    assert records(sweep / "a" / FOLDER) == before


def test_a_trial_that_goes_on_alone_keeps_what_its_scheduler_decided(
    tmp_path: Path, follow: Follow
):
    sweep = sweep_of(tmp_path, "a")
    trainer = Trainer(sweep / "a", decides=False)
    trainer.begin(0)
    for step in (3, 6, 12):
        trainer.report(step)
        judge(sweep, "a", step, trainer.now)
    SweepJournal(sweep / SWEEP_JOURNAL).append(
        {"event": "end", "time": trainer.now, "trial": "a", "outcome": {}}
    )
    trainer.now += 10
    trainer.decides = True
    trainer.begin(3)
    alone = follow(sweep / "a")
    alone.catch_up()
    for step in (6, 9, 15):
        trainer.report(step)
        alone.catch_up()
    again = follow(sweep / "a")
    again.catch_up()
    found = texts(sweep / "a" / FOLDER)
    assert [step for tag, step, _ in found if tag == "run/decision"] == [3, 15]
    assert source_of(sweep / "a", "a", "main").group == "hunt"


def test_a_line_that_is_being_written_waits(tmp_path: Path, follow: Follow):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    trainer.begin(0)
    here = follow(folder)
    line = json.dumps({"attempt": 1, "time": 5.0, **steps_event(2)}).encode() + b"\n"
    with (folder / "journal.jsonl").open("ab") as file:
        for part in (line[:30], line[30:]):
            here.catch_up()
            assert "steps/ce" not in scalars(folder / FOLDER)
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
    here.catch_up()
    assert [step for step, _ in scalars(folder / FOLDER)["steps/ce"]] == [2]
