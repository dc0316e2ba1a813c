"""What `make` does to a folder, tried on a copy whose Python is a stand-in that writes a log."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

SOURCES = [
    f"service/data/{name}.py" for name in ("synthetic", "people", "figure", "drawing", "ingest")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project in a folder with a space in its name, not set up yet."""
    folder = tmp_path / "a b"
    for name in ("pyproject.toml", "constraints.txt", *SOURCES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    shutil.copy("Makefile", folder)
    return folder


def stand_in(path: Path, version: str = "3.11") -> Path:
    """A Python of that version, which logs its words and makes a `.venv` when asked."""
    supported = 0 if version == "3.11" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
echo "$PIP_CONSTRAINT" "$@" >> "{path}.log"
case "$*" in
  --version) echo "Python {version}" ;;
  *sys.version_info*) exit {supported} ;;
  "-m venv .venv") mkdir -p .venv/bin; touch .venv/pyvenv.cfg; cp "$0" .venv/bin/python ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def make(folder: Path, *words: str) -> tuple[int, str]:
    """Exit status and everything that was said."""
    kept = {
        k: v for k, v in os.environ.items() if "MAKE" not in k and k not in ("MFLAGS", "PYTHON")
    }
    found = subprocess.run(
        ["make", *words], cwd=folder, env=kept, text=True, capture_output=True, timeout=60
    )
    return found.returncode, found.stdout + found.stderr


def set_up(folder: Path) -> Path:
    """A `.venv` that is older than what it was made from, with a mark in it."""
    python = stand_in(folder / ".venv/bin/python")
    (folder / ".venv/pyvenv.cfg").touch()
    (folder / ".venv/mark").touch()
    return python


def test_an_old_environment_is_updated_and_not_deleted(folder: Path):
    python = set_up(folder)
    status, said = make(folder, "setup")
    assert (status, (folder / ".venv/mark").exists()) == (0, True)
    assert "Updating .venv: pip install" in said
    assert "GB" not in said
    log = Path(f"{python}.log").read_text()
    assert "constraints.txt -m pip install" in log
    assert str(folder) not in log
    assert "Nothing to be done" in make(folder, "setup")[1]


def test_an_environment_whose_python_is_too_old_is_made_again(folder: Path):
    set_up(folder)
    stand_in(folder / ".venv/bin/python", "3.9")
    status, said = make(folder, "setup", f"PYTHON={stand_in(folder / 'my python')}")
    assert (status, (folder / ".venv/mark").exists()) == (0, False)
    assert "Setting up .venv with Python 3.11" in said


@pytest.mark.parametrize("goal", ["setup", "clean"])
def test_a_folder_that_is_no_environment_is_left_alone(folder: Path, goal: str):
    (folder / ".venv").mkdir()
    (folder / ".venv/precious").touch()
    status, said = make(folder, goal)
    assert (status == 0) == (goal == "clean")
    assert "is not a Python environment" in said
    assert (folder / ".venv/precious").exists()


def test_a_python_that_does_not_run_is_named(folder: Path):
    status, said = make(folder, "setup", "PYTHON=/no/such/python")
    assert status
    assert "PYTHON=/no/such/python does not run" in said


def test_a_python_of_another_version_is_named_with_its_version(folder: Path):
    python = stand_in(folder / "old python", "3.9")
    status, said = make(folder, "setup", f"PYTHON={python}")
    assert status
    assert f"PYTHON={python} is Python 3.9; crossreid needs 3.11" in said


@pytest.mark.parametrize("source", SOURCES)
def test_the_demos_data_is_drawn_again_when_its_source_has_changed(folder: Path, source: str):
    set_up(folder)
    for name in (".venv/.ready", "runs/data/records/manifest.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert "data synth" not in make(folder, "-n", "demo")[1]
    os.utime(folder / source, (2**31, 2**31))
    assert "data synth" in make(folder, "-n", "demo")[1]


def test_clean_keeps_trained_runs(folder: Path):
    set_up(folder)
    for name in ("runs/data/records", "runs/demo-1", "runs/own/records"):
        (folder / name).mkdir(parents=True)
    assert make(folder, "clean")[0] == 0
    assert not (folder / ".venv").exists()
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["demo-1", "own"]
