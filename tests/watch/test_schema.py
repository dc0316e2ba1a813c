"""Grafana Labs' own types accept the dashboards, and refuse planted faults."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from deploy.grafana.build import FOLDER
from tests.watch.vendor import complaints, lacks

pytestmark = pytest.mark.skipif(bool(lacks()), reason=f"this machine lacks {lacks()}")

Json = dict[str, Any]


def dashboard(name: str) -> Json:
    return json.loads((FOLDER / f"{name}.json").read_text())


def panel(root: Json, kind: str) -> Json:
    return next(p for p in root["panels"] if p["type"] == kind)


def misspelt_option(root: Json) -> None:
    panel(root, "timeseries")["options"]["tooltipp"] = {}


def wrong_option(root: Json) -> None:
    panel(root, "timeseries")["options"]["tooltip"]["mode"] = "several"


def wrong_line_style(root: Json) -> None:
    panel(root, "timeseries")["fieldConfig"]["defaults"]["custom"]["showPoints"] = "sometimes"


def misspelt_override(root: Json) -> None:
    override = {"matcher": {"id": "byName", "options": "go"}, "properties": []}
    override["properties"] = [{"id": "custom.lineStile", "value": {"fill": "dash"}}]
    panel(root, "timeseries")["fieldConfig"]["overrides"].append(override)


def wrong_cell(root: Json) -> None:
    override = {"matcher": {"id": "byName", "options": "go"}, "properties": []}
    override["properties"] = [{"id": "custom.cellOptions", "value": {"type": "colour"}}]
    panel(root, "table")["fieldConfig"]["overrides"].append(override)


def misspelt_panel_key(root: Json) -> None:
    panel(root, "state-timeline")["descripton"] = ""


def misspelt_root_key(root: Json) -> None:
    root["refreshh"] = "30s"


def wrong_variable(root: Json) -> None:
    root["templating"]["list"][0]["type"] = "source"


def wrong_format(root: Json) -> None:
    panel(root, "table")["targets"][0]["format"] = "tabel"


def misspelt_mark(root: Json) -> None:
    root["annotations"]["list"][0]["useValueForTimes"] = True


FAULTS: tuple[Callable[[Json], None], ...] = (
    misspelt_option,
    wrong_option,
    wrong_line_style,
    misspelt_override,
    wrong_cell,
    misspelt_panel_key,
    misspelt_root_key,
    wrong_variable,
    wrong_format,
    misspelt_mark,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """One run of tsc over the dashboards and over one damaged copy a fault."""
    asked = {name: dashboard(name) for name in ("fleet", "run")}
    for fault in FAULTS:
        asked[fault.__name__] = copy.deepcopy(asked["run"])
        fault(asked[fault.__name__])
    return complaints(asked, tmp_path_factory.mktemp("schema"))


@pytest.mark.parametrize("name", ["fleet", "run"])
def test_the_vendors_types_accept_the_dashboard(found: dict[str, list[str]], name: str):
    assert found[name] == []
    assert found.keys() == {"fleet", "run", *(fault.__name__ for fault in FAULTS)}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_vendors_types_refuse_a_planted_fault(
    found: dict[str, list[str]], fault: Callable[[Json], None]
):
    assert len(found[fault.__name__]) == 1
