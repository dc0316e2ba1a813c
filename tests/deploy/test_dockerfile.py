"""The Dockerfile, read as instructions: pinned, without root, caches and secrets."""

import fnmatch
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FILE = Path("docker/Dockerfile")
TEXT = FILE.read_text()
IGNORE = Path("docker/Dockerfile.dockerignore")
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Name and words of each, with continued lines joined."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def stages(text: str) -> dict[str, list[Instruction]]:
    """Stage name to its instructions; what stands before the first FROM is under an empty name."""
    found: dict[str, list[Instruction]] = {"": []}
    name = ""
    for instruction, words in instructions(text):
        if instruction == "FROM":
            name = words.split(" AS ")[1]
            found[name] = []
        found[name].append((instruction, words))
    return found


def complaints(text: str) -> list[str]:
    """What is wrong with a Dockerfile; empty when nothing is."""
    found = stages(text)
    defaults = dict(argument(words) for name, words in found[""] if name == "ARG")
    wrong = [said for name in found if name for said in of_base(found, name, defaults)]
    for target in ("cuda", "cpu"):
        users = [words for name, words in found.get(target, ()) if name == "USER"]
        if users != ["1000:1000"] or found[target][-1][0] != "USER":
            wrong.append(f"{target} does not end as a user without rights, by number")
    for name, words in instructions(text):
        wrong += of_instruction(name, words)
    return wrong


def argument(words: str) -> tuple[str, str]:
    name, _, default = words.partition("=")
    return name, default


def of_base(
    found: dict[str, list[Instruction]], stage: str, defaults: dict[str, str]
) -> Iterator[str]:
    base = found[stage][0][1].split(" AS ")[0]
    base = re.sub(r"\$\{(\w+)\}", lambda match: defaults.get(match[1], ""), base)
    if base not in found and not re.fullmatch(r"python:3\.1[123]\.\d+-slim-bookworm", base):
        yield f"{stage} stands on {base}"


def of_instruction(name: str, words: str) -> Iterator[str]:
    if name == "ADD":
        yield "ADD fetches and unpacks; COPY does not"
    if name in ("ARG", "ENV") and re.search("(?i)token|password|secret|credential", words):
        yield f"{words} would stay in a layer"
    if name == "COPY" and not words.startswith("--from"):
        for source in words.split()[:-1]:
            if not Path(source).exists():
                yield f"{source} is not there"
            elif not reaches(source):
                yield f"{source} is kept from the build"
    if name == "RUN":
        yield from of_run(words)


def of_run(words: str) -> Iterator[str]:
    for call in re.findall(r"pip (?:install|wheel)[^;&]*", words):
        if "--no-cache-dir" not in call:
            yield "pip keeps a cache"
        if "install" in call and "-c /constraints.txt" not in call:
            yield "pip takes any version"
    if "apt-get install" in words and "rm -rf /var/lib/apt/lists/*" not in words:
        yield "package lists stay"
    if "apt-get install" in words and "--no-install-recommends" not in words:
        yield "more packages than needed"


def reaches(source: str) -> bool:
    """Whether .dockerignore lets a file or folder through; its last line that fits decides."""
    kept = True
    for line in IGNORE.read_text().splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(source, line.lstrip("!")):
            kept = line.startswith("!")
    return kept


def test_the_dockerfile_is_as_it_must_be():
    assert complaints(TEXT) == []


def test_it_has_the_two_targets():
    assert {"cpu", "cuda"} <= stages(TEXT).keys()


@pytest.mark.parametrize("path", ["runs", "docker", ".git", ".venv", "shared", "tests"])
def test_nothing_else_reaches_the_build(path: str):
    assert not reaches(path)


def test_kuberays_needs_are_met():
    """ray[default], and bash and wget for the probes; the base has bash."""
    assert "apt-get install -y --no-install-recommends wget" in TEXT
    assert '"ray[default,' in Path("pyproject.toml").read_text()


def test_a_login_shell_finds_ray():
    """Debian's /etc/profile sets PATH anew, so nothing may lie in an environment of its own."""
    assert "venv" not in TEXT
    assert "PATH" not in TEXT


def test_configs_and_deploy_lie_where_the_jobs_and_watch_look():
    base = stages(TEXT)["base"]
    assert ("WORKDIR", "/opt/crossreid") in base
    assert {("COPY", "configs configs"), ("COPY", "deploy deploy")} <= set(base)
    assert any("ln -s /opt/crossreid/deploy" in words and "purelib" in words for _, words in base)


def test_the_store_that_is_named_fits_fsspec():
    """s3fs and fsspec are released together, and want each other's version."""
    constraints = Path("constraints.txt").read_text()
    (fsspec,) = re.findall(r"^fsspec==(\S+)$", constraints, re.M)
    for path in (FILE, Path("deploy/README.md")):
        named = re.findall(r"s3fs==([\d.]+)", path.read_text())
        assert named
        assert set(named) == {fsspec}


def hadolint(file: Path) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, file], capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing():
    said = hadolint(FILE)
    assert said.returncode == 0, said.stdout + said.stderr


def test_hadolint_finds_a_planted_fault(tmp_path: Path):
    file = tmp_path / "Dockerfile"
    file.write_text(TEXT + "RUN cd /tmp\n")
    assert "DL3003" in hadolint(file).stdout


def swap(old: str, new: str) -> Callable[[str], str]:
    def plant(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return plant


FAULTS = {
    "any python": swap("python:3.11.14-slim-bookworm\n", "python:latest\n"),
    "root": swap("USER 1000:1000", "USER root"),
    "user by name": swap("USER 1000:1000", "USER crossreid"),
    "root in the end": lambda text: text + "USER 0\n",
    "cache": swap("pip install --no-cache-dir", "pip install"),
    "any version": swap("-c /constraints.txt ", ""),
    "token": swap('ARG TORCH_INDEX=""', 'ARG TORCH_INDEX=""\nARG HF_TOKEN=""'),
    "lists": swap(" \\\n    && rm -rf /var/lib/apt/lists/*", ""),
    "lost folder": swap("COPY configs configs", "COPY config config"),
    "kept out": swap("COPY configs configs", "COPY tests tests"),
    "add": swap("COPY deploy deploy", "ADD deploy deploy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str):
    assert complaints(FAULTS[fault](TEXT))
