"""Prometheus' rule files as values, and promtool to try them with."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path("deploy/prometheus")
ALERTMANAGER = Path("deploy/alertmanager/alertmanager.yml")
RUNBOOK = Path("deploy/README.md")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips where one of Debian's programs is missing, and says what brings it."""
    missing = [name for name in programs if not shutil.which(name)]
    return pytest.mark.skipif(
        bool(missing),
        reason=f"{', '.join(missing)} missing; apt-get install --no-install-recommends "
        "prometheus prometheus-alertmanager",
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. kind: alert or record. values: as the file has it."""

    group: str
    kind: str
    name: str
    values: dict[str, Any]

    @property
    def expr(self) -> str:
        return self.values["expr"]


def read_rules() -> list[Rule]:
    """Every rule, in the files' order."""
    return [
        Rule(group["name"], kind, values[kind], values)
        for content in _read("rules")
        for group in content["groups"]
        for values in group["rules"]
        for kind in ("alert", "record")
        if kind in values
    ]


def read_tests() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every promtool test, with the head of its file."""
    for content in _read("tests"):
        head = {key: value for key, value in content.items() if key != "tests"}
        yield from ((head, test) for test in content["tests"])


@cache
def _read(folder: str) -> list[dict[str, Any]]:
    """The files of a folder, in their order; nobody may change what they say."""
    files = sorted(PROMETHEUS.glob(f"{folder}/*.yml"))
    return [yaml.load(path.read_text(), yaml.CSafeLoader) for path in files]


def as_yaml(values: Any) -> str:
    return yaml.dump(values, Dumper=yaml.CSafeDumper, sort_keys=False)


_TOKEN = re.compile(
    r"""(?P<text>"[^"]*")
    | \[(?P<range>\w+)\] | \boffset\s+(?P<offset>\w+)
    | (?P<word>[A-Za-z_:][\w:]*)
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<compare>==|!=|>=|<=|>|<)
    """,
    re.VERBOSE,
)


def tokens(expr: str) -> Iterator[tuple[str, str, int, int]]:
    """Kind, text and place of what a mutation or a check may want to know of an expression.

    kind: text (a label's value), range, offset, word, number or compare. The operators `=~` and
    `=` between a label and its value are not told.
    """
    for found in _TOKEN.finditer(expr.replace("=~", "  ")):
        kind = found.lastgroup
        assert kind is not None
        yield kind, found[kind], *found.span(kind)


def promtool(folder: Path, head: dict[str, Any], tests: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether these tests pass on the rules in `folder`/rules, and everything that was said."""
    (folder / "tests").mkdir(exist_ok=True)
    path = folder / "tests/tests.yml"
    path.write_text(as_yaml({**head, "tests": tests}))
    return run("promtool", "test", "rules", str(path))


def run(*words: str) -> tuple[bool, str]:
    """Whether the program was content, and everything that it said."""
    found = subprocess.run(words, text=True, capture_output=True, timeout=120)
    return found.returncode == 0, found.stdout + found.stderr
