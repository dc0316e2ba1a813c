import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from service.data.ingest import ingest
from service.data.synthetic import SynthSettings, synthesize
from tests.faults import Shelf
from tests.small import make_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested records of 24 synthetic people."""
    return make_records(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Records of other people, each made once."""
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="session")
def demo_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data, as `make demo` draws it."""
    folder = tmp_path_factory.mktemp("demo-data")
    synthesize(folder / "orbench", SynthSettings())
    ingest(folder / "orbench", str(folder / "records"), image_size=(96, 48))
    return folder / "records"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What `make prove` measured: a table, then the same as JSON lines."""
    found = [
        json.loads(value)
        for reports in (terminalreporter.stats.get(k, []) for k in ("passed", "failed"))
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    for title, columns in _TABLES:
        rows = [figure for figure in found if title in figure]
        rows.sort(key=lambda row: (row[title], row.get("seed", 0)))
        if rows:
            terminalreporter.write_line("")
            for line in _table(columns, rows):
                terminalreporter.write_line(line)
    for figure in found:
        terminalreporter.write_line(json.dumps(figure))


_TABLES = (
    ("fault", ("fault", "planted", "seed", "shows_at", "named_at", "verdict", "cause", "ok")),
    ("healthy", ("healthy", "verdict", "go_at", "raises", "holds", "hints", "clock_hints", "ok")),
)


def _table(columns: Iterable[str], rows: list[Mapping[str, Any]]) -> list[str]:
    """Columns side by side, as wide as they need."""
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[_cell(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{n} {name}" for name, n in value.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "never" if value is None else str(value)
