"""Healthy runs of many kinds: none is ended, paused or rolled back."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from service.causes import Cause
from service.decisions import Verdict
from service.settings import load_config
from tests.faults import Shelf
from tests.healthy import HEALTHY, Healthy
from tests.planting import Told, follow
from tests.small import small_config

NEVER = (Verdict.NO_GO, Verdict.PAUSE, Verdict.ROLLBACK)
BY_THE_CLOCK = (Cause.THROUGHPUT_FALLEN, Cause.DATA_STARVED)
SHORT = [HEALTHY[i] for i in (0, 3, 5, 6)]


def run(kind: Healthy, shelf: Shelf, folder: Path, more: Iterable[str] = ()) -> Told:
    records = shelf.people(kind.people, kind.seed)
    return follow(small_config(records, [*kind.overrides, *more]), folder)


def check(told: Told) -> None:
    assert (told.verdict, told.code) == ("GO", 0)
    wrong = [(d.step, str(d.verdict), str(d.cause)) for d in told.decisions if d.verdict in NEVER]
    assert not wrong


def figure(name: str, told: Told) -> str:
    """What was said, by verdict and by hint; hints of the clock apart, which a busy machine
    causes."""
    hints = Counter(str(d.cause) for d in told.hints)
    clock = sum(hints.pop(cause, 0) for cause in BY_THE_CLOCK)
    holds = Counter(str(d.cause) for d in told.decisions if d.verdict is Verdict.HOLD)
    values = {
        "healthy": name,
        "verdict": told.verdict,
        "go_at": next((d.step for d in told.decisions if d.verdict is not Verdict.WAIT), None),
        "raises": sum(d.verdict is Verdict.RAISE for d in told.decisions),
        "ended_or_rolled_back": sum(d.verdict in NEVER for d in told.decisions),
        "holds": dict(holds),
        "hints": dict(hints),
        "clock_hints": clock,
        "ok": told.verdict == "GO" and not any(d.verdict in NEVER for d in told.decisions),
    }
    return json.dumps(values)


@pytest.mark.parametrize("kind", SHORT, ids=lambda kind: kind.name)
def test_a_healthy_run_is_left_to_learn(kind: Healthy, shelf: Shelf, tmp_path: Path):
    check(run(kind, shelf, tmp_path, ["train.max_steps=160"]))


@pytest.mark.prove
@pytest.mark.parametrize("kind", HEALTHY, ids=lambda kind: kind.name)
def test_a_healthy_run_of_every_kind_is_left_to_learn(
    kind: Healthy, shelf: Shelf, tmp_path: Path, record_property: Any
):
    told = run(kind, shelf, tmp_path)
    record_property("figure", figure(f"{kind.name}, seed {kind.seed}", told))
    check(told)


@pytest.mark.prove
def test_the_demo_is_left_to_learn(demo_records: Path, tmp_path: Path, record_property: Any):
    settings = ["telemetry.enabled=false", "eval.after_training=false"]
    config = load_config("configs/demo.yaml", [f"data.records={demo_records}", *settings])
    told = follow(config, tmp_path)
    record_property("figure", figure("configs/demo.yaml, 500 steps, one worker", told))
    check(told)
