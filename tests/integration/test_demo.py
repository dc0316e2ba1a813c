"""What `make demo` promises, through the command line, on two Ray workers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def crossreid(*words: str, folder: Path) -> str:
    """The standard output of a command that must end well."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *words],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    (folder / "stderr.txt").write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("demo")
    crossreid("data", "synth", f"{folder}/orbench", folder=folder)
    crossreid(
        "data", "ingest", f"{folder}/orbench", f"{folder}/records", "--size", "96x48", folder=folder
    )
    shown = crossreid(
        "train",
        "configs/demo.yaml",
        f"data.records={folder}/records",
        f"run.storage={folder}/runs",
        "telemetry.port=0",
        folder=folder,
    )
    assert shown.rstrip().endswith("GO")
    assert "ETA" in (folder / "stderr.txt").read_text()
    (path,) = folder.glob("runs/*/summary.json")
    return json.loads(path.read_text())


def test_the_run_is_healthy_and_has_learned(summary: dict[str, Any]):
    assert (summary["verdict"], summary["world_size"], summary["num_classes"]) == ("GO", 2, 64)
    assert summary["ce_fraction"] <= 0.75
    assert summary["rows_without_positive"] == 0
    assert summary["memory_hash_equal"] is True
    assert summary["pair_coverage"] == 1
    assert summary["sdm_weight"] > 0


def test_retrieval_is_far_above_chance_and_gains_from_more_modalities(summary: dict[str, Any]):
    found = summary["mAP"]
    assert found["mean"] >= 5 * summary["chance_mAP"]
    assert (found["MM-2"] + found["MM-3"] + found["MM-4"]) / 3 > found["MM-1"]


def test_single_modalities_rank_as_in_the_real_data(summary: dict[str, Any]):
    found = summary["mAP"]
    assert found["CP"] > found["SK"] > found["TEXT"] > found["NIR"]
