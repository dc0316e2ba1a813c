"""The fault library in the plain loop: whatever is planted is called by its name, and in time."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.causes import Cause
from service.decisions import Verdict
from service.settings import load_config
from tests.faults import FAULTS, Fault, Shelf
from tests.planting import WITHIN, follow, recognise
from tests.relabel import shuffled

SHORT = [pytest.param(fault, id=fault.name) for fault in FAULTS if fault.short]
SEEDS = (0, 1, 2)


def test_every_cause_has_a_fault_that_shows_it():
    assert set(Cause) - {fault.cause for fault in FAULTS} == {Cause.NONE, Cause.CE_NOT_FALLING}


@pytest.mark.parametrize("fault", SHORT)
def test_a_fault_is_named(fault: Fault, shelf: Shelf, tmp_path: Path):
    named = recognise(fault, shelf, tmp_path)
    assert named.is_ok, named.wrong


@pytest.mark.prove
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_with_every_seed(
    fault: Fault, seed: int, shelf: Shelf, tmp_path: Path, record_property: Any
):
    named = recognise(fault, shelf, tmp_path, seed)
    record_property("figure", json.dumps(named.to_dict()))
    assert named.is_ok, named.wrong


@pytest.mark.prove
def test_shuffled_labels_of_the_demos_data_are_named(
    demo_records: Path, tmp_path: Path, record_property: Any
):
    mixed = shuffled(demo_records, tmp_path / "records")
    settings = ["telemetry.enabled=false", "eval.after_training=false"]
    config = load_config("configs/demo.yaml", [f"data.records={mixed}", *settings])
    told = follow(config, tmp_path / "run")
    last = told.decisions[-1]
    found = (last.step <= WITHIN, last.verdict, last.cause)
    figure = {
        "fault": "labels shuffled, the demo",
        "planted": "rows of the demo's 64 people given to one another, windows of 50",
        "seed": config.run.seed,
        "shows_at": 1,
        "named_at": last.step,
        "verdict": str(last.verdict),
        "cause": str(last.cause),
        "ok": found == (True, Verdict.NO_GO, Cause.LABELS_SHUFFLED),
    }
    record_property("figure", json.dumps(figure))
    assert found == (True, Verdict.NO_GO, Cause.LABELS_SHUFFLED)
