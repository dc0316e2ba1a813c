"""Prometheus' rule files as values, and promtool to try them with."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
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
        for path in sorted(PROMETHEUS.glob("rules/*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for values in group["rules"]
        for kind in ("alert", "record")
        if kind in values
    ]


def read_tests() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every promtool test, with the head of its file."""
    for path in sorted(PROMETHEUS.glob("tests/*.yml")):
        head = yaml.safe_load(path.read_text())
        tests = head.pop("tests")
        yield from ((head, test) for test in tests)


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
    path.write_text(yaml.safe_dump({**head, "tests": tests}))
    return run("promtool", "test", "rules", str(path))


def run(*words: str) -> tuple[bool, str]:
    """Whether the program was content, and everything that it said."""
    found = subprocess.run(words, text=True, capture_output=True, timeout=120)
    return found.returncode == 0, found.stdout + found.stderr
