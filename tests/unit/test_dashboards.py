"""The dashboards as committed: what Grafana loads, held against the table of metrics."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray.dashboard.modules.metrics.dashboards import common as rays_dashboards

from deploy.grafana.build import FOLDER, GRID, RULES, files, text
from deploy.grafana.watchers import watchers
from service.causes import Cause
from service.telemetry.lines import BY_NAME, GATES, LABELS, PREFIX
from service.telemetry.panels.fleet import FLEET_VIEW
from service.telemetry.panels.panel import RUN, Panel, series
from service.telemetry.panels.run import RUN_VIEW

NAMES = ("fleet", "run")
PROVISIONING = FOLDER.parent / "provisioning"
UNITS = {"none", "percentunit", "s", "h", "sci", "dateTimeFromNow", "dateTimeAsIso"}
"""Ids of Grafana's own units that we use."""
SUFFIXES = {"nats", "nats/step", "images/s", "steps/s", "rows", "steps", "x"}
"""Text that Grafana puts behind a number as it is."""

Json = dict[str, Any]


def dashboard(name: str) -> Json:
    return json.loads((FOLDER / f"{name}.json").read_text())


def panels(root: Json) -> list[Json]:
    return [panel for panel in root["panels"] if panel["type"] != "row"]


def exprs(root: Json) -> Iterator[str]:
    yield from (target["expr"] for panel in panels(root) for target in panel["targets"])
    yield from (mark["target"]["expr"] for mark in root["annotations"]["list"])
    yield from (v["query"] for v in root["templating"]["list"] if v["type"] == "query")


def selectors(root: Json) -> Iterator[tuple[str, list[str]]]:
    """Metric, without its prefix, and the labels that are matched, of every selector."""
    for expr in exprs(root):
        for name, matchers in re.findall(rf"\b{PREFIX}(\w+)(?:{{([^}}]*)}})?", expr):
            yield name, re.findall(r'(\w+)(?:=~|!~|!=|=)"', matchers)


def unknown(root: Json) -> list[str]:
    """Metrics that the table lacks, and labels that a metric has not."""
    found = []
    for name, labels in selectors(root):
        known = (*LABELS, *BY_NAME[name].labels) if name in BY_NAME else ()
        found += [f"{name}:{label}" for label in labels if label not in known]
        found += [] if name in BY_NAME else [name]
    return found


def overlaps(root: Json) -> list[tuple[int, int]]:
    """Pairs of ids of panels that lie on each other, or one with itself that leaves the grid."""
    found = []
    for a in root["panels"]:
        place = a["gridPos"]
        if place["x"] < 0 or place["x"] + place["w"] > GRID or place["w"] < 1 or place["h"] < 1:
            found.append((a["id"], a["id"]))
    for a, b in itertools.combinations(root["panels"], 2):
        p, q = a["gridPos"], b["gridPos"]
        is_beside = p["x"] + p["w"] <= q["x"] or q["x"] + q["w"] <= p["x"]
        is_below = p["y"] + p["h"] <= q["y"] or q["y"] + q["h"] <= p["y"]
        if not (is_beside or is_below):
            found.append((a["id"], b["id"]))
    return found


def units(root: Json) -> set[str]:
    """Of panels, and of the columns of tables."""
    found = {panel["fieldConfig"]["defaults"]["unit"] for panel in panels(root)}
    for panel in panels(root):
        for override in panel["fieldConfig"]["overrides"]:
            found |= {p["value"] for p in override["properties"] if p["id"] == "unit"}
    return found


def undefined(root: Json) -> set[str]:
    """Variables that are used and that nobody defines."""
    own = {v["name"] for v in root["templating"]["list"]}
    grafanas = {"__all", "__range", "__rate_interval", "__url_time_range"}
    plain = re.findall(r"\$(\w+)|\$\{(\w+)\}", json.dumps(root))
    return {a or b for a, b in plain} - own - grafanas


def test_the_committed_files_are_those_that_the_generator_writes():
    written = files(watchers(RULES))
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(written)
    for name, content in written.items():
        assert (FOLDER / name).read_text() == content, "run `make dashboards`"


@pytest.mark.parametrize("name", NAMES)
def test_the_vendors_sdk_reads_what_it_wrote(name: str):
    register_default_plugins()
    content = (FOLDER / f"{name}.json").read_text()
    assert text(Dashboard.from_json(json.loads(content))) == content


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_and_label_of_a_query_is_in_the_table(name: str):
    assert unknown(dashboard(name)) == []


def test_a_misspelt_metric_or_label_is_found():
    root = dashboard("run")
    panels(root)[0]["targets"][0]["expr"] = f'{PREFIX}runing{{run="a"}} + {PREFIX}epoch{{rnu="a"}}'
    assert unknown(root) == ["runing:run", "runing", "epoch:rnu"]


def test_every_line_of_the_table_is_shown():
    shown = {name for root in map(dashboard, NAMES) for name, _ in selectors(root)}
    assert shown == set(BY_NAME)
    in_run_view = {name for name, _ in selectors(dashboard("run"))}
    assert set(BY_NAME) - in_run_view == {"error_timestamp_seconds"}


def test_every_limit_is_drawn_where_its_line_is_or_told_in_the_table_of_limits():
    drawn = set(re.findall(r'gate=\\"(\w+)\\"', json.dumps(dashboard("run"))))
    limits = next(p for p in panels(dashboard("run")) if p["title"] == "Limits of the policy")
    assert "gate=" not in limits["targets"][0]["expr"]
    assert set(GATES) - drawn == {"margin", "max_head_growth"}
    assert all(f"`{gate}`" in limits["description"] for gate in set(GATES) - drawn)


def test_every_cause_is_told_on_the_panel_that_shows_it():
    told = {c for view in (RUN_VIEW, FLEET_VIEW) for panel in view.panels for c in panel.causes}
    assert told == set(Cause) - {Cause.NONE}


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_panels_do_not_overlap(name: str):
    root = dashboard(name)
    ids = [panel["id"] for panel in root["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    assert overlaps(root) == []


@pytest.mark.parametrize(("key", "value"), [("x", 20), ("y", 0), ("w", 25)])
def test_a_panel_out_of_its_place_is_found(key: str, value: int):
    root = dashboard("run")
    panels(root)[1]["gridPos"][key] = value
    assert overlaps(root)


@pytest.mark.parametrize("name", NAMES)
def test_units_are_grafanas_or_plain_text(name: str):
    assert units(dashboard(name)) <= UNITS | SUFFIXES


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_defined_and_people_can_choose_the_data_source(name: str):
    root = dashboard(name)
    assert undefined(root) == set()
    assert root["templating"]["list"][0]["type"] == "datasource"
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(root).replace(root["uid"], ""))
    assert set(sources) == {"${datasource}", ""}


def test_an_undefined_variable_is_found():
    root = dashboard("run")
    panels(root)[0]["targets"][0]["expr"] = f'{PREFIX}running{{run="$runs"}}'
    assert undefined(root) == {"runs"}


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_means_and_which_lines_it_shows(name: str):
    root = dashboard(name)
    titles = [panel["title"] for panel in panels(root)]
    assert all(titles)
    for panel in panels(root):
        first, *_ = panel["description"].split("\n\n")
        assert first.endswith("."), panel["title"]
        for target in panel["targets"]:
            for metric in re.findall(rf"\b{PREFIX}(\w+)", target["expr"]):
                assert BY_NAME[metric].help in panel["description"]


@pytest.mark.parametrize("view", [RUN_VIEW, FLEET_VIEW], ids=lambda view: view.uid)
def test_panels_of_a_view_differ_by_title_and_kind(view: Any):
    titles = [(panel.title, panel.kind) for panel in view.panels]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("view", [RUN_VIEW, FLEET_VIEW], ids=lambda view: view.uid)
def test_curves_of_a_panel_have_names_that_tell_them_apart(view: Any):
    def told_apart(panel: Panel) -> bool:
        names = [target.name for target in panel.targets]
        return len(set(names)) == len(names)

    assert all(told_apart(panel) for panel in view.panels)


def test_decisions_are_marks_whose_time_is_the_value():
    for name in NAMES:
        (mark,) = dashboard(name)["annotations"]["list"]
        assert mark["useValueForTime"]
        assert mark["target"]["expr"].endswith("* 1000")
        assert f"{PREFIX}gate_decision_timestamp_seconds" in mark["target"]["expr"]


def test_the_views_link_to_each_other():
    fleet, run = dashboard("fleet"), dashboard("run")
    assert run["links"][0]["url"].startswith(f"/d/{fleet['uid']}?")
    assert fleet["links"][0]["url"].startswith(f"/d/{run['uid']}?")
    table = next(panel for panel in panels(fleet) if panel["title"] == "Trials")
    links = {
        override["matcher"]["options"]: prop["value"][0]["url"]
        for override in table["fieldConfig"]["overrides"]
        for prop in override["properties"]
        if prop["id"] == "links"
    }
    assert links.keys() == {"run", "trial"}
    assert all(url.startswith(f"/d/{run['uid']}?") for url in links.values())
    assert "var-trial=${__data.fields.trial:percentencode}" in links["trial"]


def test_rays_dashboards_are_left_alone():
    folder = Path(rays_dashboards.__file__).parent
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    rays = set(re.findall(r'default_uid="(\w+)"', sources))
    assert rays
    assert not {dashboard(name)["uid"] for name in NAMES} & rays
    provider = yaml.safe_load((PROVISIONING / "dashboards/crossreid.yml").read_text())
    (ours,) = provider["providers"]
    assert (ours["name"], ours["folder"]) == ("crossreid", "crossreid")


def test_provisioning_adds_a_data_source_of_its_own_without_a_hand_step():
    added = yaml.safe_load((PROVISIONING / "datasources/crossreid.yml").read_text())
    (ours,) = added["datasources"]
    assert (ours["type"], ours["isDefault"]) == ("prometheus", False)
    assert added.keys() == {"apiVersion", "datasources"}
    assert not re.search(r"\$\w|\$\{", json.dumps(added))


def test_an_alert_is_told_on_the_panels_whose_lines_it_reads(tmp_path: Path):
    rules = {
        "groups": [
            {
                "name": "a",
                "rules": [
                    {"record": "trial:ce", "expr": f"{PREFIX}cross_entropy_nats"},
                    {"record": "trial:ce:high", "expr": "trial:ce > 3"},
                    {"alert": "High", "expr": f"trial:ce:high and {PREFIX}running == 1"},
                    {"alert": "Slow", "expr": f"{PREFIX}throughput_ratio < 0.5"},
                ],
            }
        ]
    }
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "rules_test.yml").write_text("rule_files: [rules.yml]\ntests: []\n")
    alerts = watchers(tmp_path)
    assert alerts == {"cross_entropy_nats": ("High",), "throughput_ratio": ("Slow",)}
    told = {p["title"]: p["description"] for p in panels(json.loads(files(alerts)["run.json"]))}
    assert told["Cross-entropy"].endswith("Alerts: High")
    assert "Alerts:" not in told["Head norm"]


def test_a_selector_takes_only_metrics_and_labels_of_the_table():
    assert series("epoch", RUN) == f'{PREFIX}epoch{{run="$run",trial=~"$trial"}}'
    with pytest.raises(KeyError, match="epok"):
        series("epok", RUN)
    with pytest.raises(ValueError, match="matcher gate="):
        series("epoch", RUN, 'gate="go"')
