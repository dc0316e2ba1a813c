"""Which programs are taken from the PATH. Scripts that print a version stand for them."""

from pathlib import Path

import pytest

from service.errors import WatchError
from service.watching.programs import ALERTMANAGER, PROMETHEUS, Need, find

VERSION = "{name}, version {version} (branch: debian/sid, revision: 1)\n  go version: go1.19.8"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n")
    (path / name).chmod(0o755)


def put_version(path: Path, name: str, version: str, to: str = "1") -> None:
    put(path, name, f"echo '{VERSION.format(name=name, version=version)}' >&{to}")


@pytest.mark.parametrize("version", ["2.42", "2.42.0+ds", "2.53.3", "3.0.0", "3.5.0-rc.1"])
@pytest.mark.parametrize("to", ["1", "2"])
def test_a_prometheus_that_is_new_enough_is_taken(path: Path, version: str, to: str):
    put_version(path, "prometheus", version, to)
    found = find(PROMETHEUS)
    assert found.path == str(path / "prometheus")
    assert version.startswith(found.version)


@pytest.mark.parametrize("version", ["2.41.0", "2.9.2", "1.8.2", "2.4.42"])
def test_one_that_is_too_old_is_named_with_what_is_needed_and_where_it_comes_from(
    path: Path, version: str
):
    put_version(path, "prometheus", version)
    with pytest.raises(WatchError) as error:
        find(PROMETHEUS)
    for part in (f"{path}/prometheus is {version};", "2.42 or newer", "package prometheus,"):
        assert part in str(error.value)
    assert PROMETHEUS.releases in str(error.value)


@pytest.mark.parametrize("need", [PROMETHEUS, ALERTMANAGER], ids=lambda need: need.title)
def test_a_missing_one_is_named_by_all_its_names(path: Path, need: Need):
    with pytest.raises(WatchError, match=f"no {' or '.join(need.names)} on the PATH"):
        find(need)


@pytest.mark.parametrize("name", ["alertmanager", "prometheus-alertmanager"])
def test_alertmanager_goes_by_either_name(path: Path, name: str):
    put_version(path, name, "0.25.0")
    assert find(ALERTMANAGER).path == str(path / name)


def test_an_old_one_under_the_first_name_does_not_hide_a_new_one_under_the_second(path: Path):
    put_version(path, "alertmanager", "0.15.3")
    put_version(path, "prometheus-alertmanager", "0.22.0")
    assert find(ALERTMANAGER).path == str(path / "prometheus-alertmanager")
    put_version(path, "prometheus-alertmanager", "0.21.0")
    with pytest.raises(WatchError, match=r"alertmanager is 0\.15\.3; .* is 0\.21\.0; needed is"):
        find(ALERTMANAGER)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'usage: something else'; exit 2", "usage: something else"),
        ("exit 3", "status 3"),
    ],
)
def test_another_program_of_that_name_is_shown_by_what_it_says(path: Path, script: str, said: str):
    put(path, "prometheus", script)
    with pytest.raises(WatchError, match=rf"prometheus tells no version: .*{said}"):
        find(PROMETHEUS)


def test_one_that_cannot_be_run_is_named(path: Path):
    (path / "prometheus").write_bytes(b"\x7fELF is none")
    (path / "prometheus").chmod(0o755)
    with pytest.raises(WatchError, match=r"prometheus tells no version: .*Exec format error"):
        find(PROMETHEUS)
