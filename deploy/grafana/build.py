"""Writes the dashboards that Grafana reads: `python -m deploy.grafana.build`, or `make dashboards`.

What they show is in service/telemetry/panels/; here it becomes Grafana's JSON.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import (
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.watchers import Alerts, watchers
from service.telemetry.panels.fleet import FLEET_VIEW
from service.telemetry.panels.panel import (
    VERDICT_WORDS,
    Panel,
    Target,
    View,
    Word,
    description,
)
from service.telemetry.panels.run import RUN_VIEW

FOLDER = Path(__file__).parent / "dashboards"
RULES = Path(__file__).parents[1] / "prometheus"
GRID = 24
"""Cells in a row of Grafana's grid."""

_SOURCE = shared.DataSourceRef(type_val="prometheus", uid="${datasource}")
_SEVERITIES = {"critical": "red", "warning": "orange", "info": "blue"}
_AnyPanel = timeseries.Panel | statetimeline.Panel | stat.Panel | table.Panel


def files(alerts: Alerts) -> dict[str, str]:
    """File name to content, of every dashboard."""
    return {"fleet.json": text(fleet(alerts)), "run.json": text(run(alerts))}


def text(built: models.Dashboard) -> str:
    """The dashboard as JSON; equal dashboards give equal text."""
    plain = json.loads(json.dumps(built, cls=JSONEncoder))
    _take_out_extras(plain)
    return json.dumps(plain, sort_keys=True, indent=2) + "\n"


def run(alerts: Alerts) -> models.Dashboard:
    """The run view, for one run and some of its trials."""
    runs = _variable("run", "label_values(reid_train_running, run)")
    trials = _variable("trial", 'label_values(reid_train_running{run="$run"}, trial)')
    built = _dashboard(RUN_VIEW, alerts)
    return (
        built.with_variable(runs)
        .with_variable(trials.multi(True).include_all(True).all_value(".+").current(_ALL))
        .link(_link("All runs", f"/d/{FLEET_VIEW.uid}?var-datasource=${{datasource}}"))
        .build()
    )


def fleet(alerts: Alerts) -> models.Dashboard:
    """The fleet view, for some runs and all of their trials."""
    runs = _variable("run", "label_values(reid_train_running, run)")
    return (
        _dashboard(FLEET_VIEW, alerts)
        .with_variable(runs.multi(True).include_all(True).all_value(".+").current(_ALL))
        .link(_link("One run", f"/d/{RUN_VIEW.uid}?var-datasource=${{datasource}}"))
        .build()
    )


_ALL = models.VariableOption(text="All", value="$__all", selected=True)


def _dashboard(view: View, alerts: Alerts) -> dashboard.Dashboard:
    built = (
        dashboard.Dashboard(view.title)
        .uid(view.uid)
        .description(view.text)
        .tags(["crossreid"])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .timezone("browser")
        .refresh("30s")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for mark in view.marks:
        built.annotation(_annotation(mark))
    _lay_out(built, view, alerts)
    return built


def _lay_out(built: dashboard.Dashboard, view: View, alerts: Alerts) -> None:
    """Panels from left to right, a new line where one does not fit; ids in reading order."""
    number, top = 1, 0
    for row in view.rows:
        place = models.GridPos(h=1, w=GRID, x=0, y=top)
        built.with_row(dashboard.Row(row.title).id(number).grid_pos(place))
        number, top, left, tallest = number + 1, top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > GRID:
                top, left, tallest = top + tallest, 0, 0
            place = models.GridPos(h=panel.height, w=panel.width, x=left, y=top)
            built.with_panel(_panel(panel, alerts).id(number).grid_pos(place))
            number, left, tallest = number + 1, left + panel.width, max(tallest, panel.height)
        top += tallest


def _take_out_extras(plain: dict[str, Any]) -> None:
    """Drops what the SDK writes everywhere and what does not belong there."""
    for variable in plain["templating"]["list"]:
        for of_intervals in ("auto", "auto_count", "auto_min"):
            del variable[of_intervals]
    for shown in (*plain["links"], *plain["annotations"]["list"]):
        # Its only value hides them in a menu.
        del shown["placement"]
    for panel in plain["panels"]:
        # A table's; Grafana 13 has none.
        panel.get("options", {}).pop("footer", None)


def _panel(panel: Panel, alerts: Alerts) -> _AnyPanel:
    watching = {name for metric in panel.metrics for name in alerts.get(metric, ())}
    is_curve = panel.kind in ("lines", "areas")
    built = _OF_KIND[panel.kind](panel)
    built.title(panel.title).datasource(_SOURCE).unit(panel.unit)
    built.description(description(panel, tuple(sorted(watching)) if is_curve else ()))
    for ref, target in _refed(panel):
        built.with_target(_query(ref, target, panel))
    if panel.decimals is not None:
        built.decimals(panel.decimals)
    if panel.words:
        built.mappings(_mappings(panel.words))
    return built


def _curves(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(0)
        .show_points(shared.VisibilityMode.AUTO)
        .legend(
            build.VizLegendOptions()
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            build.VizTooltipOptions()
            .mode(shared.TooltipDisplayMode.MULTI)
            .sort(shared.SortOrder.DESCENDING)
        )
    )
    if panel.kind == "areas":
        stacked = build.StackingConfig().mode(shared.StackingMode.NORMAL).group("A")
        built.fill_opacity(40).stacking(stacked)
    if panel.is_symlog:
        # A logarithm alone would hide zero, which is what some of these lines watch for.
        scale = build.ScaleDistributionConfig().type(shared.ScaleDistribution.SYMLOG)
        built.scale_distribution(scale.log(10).linear_threshold(1e-9))
    if panel.lowest is not None:
        built.axis_soft_min(panel.lowest)
    if panel.highest is not None:
        built.axis_soft_max(panel.highest)
    for target in panel.targets:
        if target.is_bound:
            built.override_by_name(target.name, _dashed(target.color))
    return built


def _states(_: Panel) -> statetimeline.Panel:
    return (
        statetimeline.Panel()
        .merge_values(True)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
        .show_value(shared.VisibilityMode.AUTO)
        .legend(
            build.VizLegendOptions()
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
            .show_legend(False)
            .calcs([])
        )
    )


def _stats(_: Panel) -> stat.Panel:
    newest = build.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)
    return (
        stat.Panel()
        .reduce_options(newest)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .color_mode(shared.BigValueColorMode.NONE)
        .text_mode(shared.BigValueTextMode.VALUE_AND_NAME)
        .no_value("0")
    )


def _table(panel: Panel) -> table.Panel:
    """One row a set of labels: the queries are merged on the labels that all of them have."""
    built = table.Panel().show_header(True).filterable(True)
    if len(panel.targets) > 1:
        built.with_transformation(models.DataTransformerConfig("merge", options={}))
    built.with_transformation(models.DataTransformerConfig("organize", options=_columns(panel)))
    for label, properties in _label_columns(_labels(panel)):
        built.override_by_name(label, properties)
    for target in panel.targets:
        if target.name:
            built.override_by_name(target.name, _column(target))
    return built


_OF_KIND = {"lines": _curves, "areas": _curves, "states": _states, "stat": _stats, "table": _table}


def _columns(panel: Panel) -> dict[str, Any]:
    """Names and order of a table's columns: labels first, then values as they are listed."""
    is_alone = len(panel.targets) == 1
    values = ["Value"] if is_alone else [f"Value #{r}" for r, _ in _refed(panel)]
    names = dict(zip(values, (target.name for target in panel.targets), strict=True))
    order = [*_labels(panel), *values]
    return {
        "excludeByName": {"Time": True, **{v: True for v, name in names.items() if not name}},
        "includeByName": {},
        "indexByName": {field: place for place, field in enumerate(order)},
        "renameByName": {v: name for v, name in names.items() if name},
    }


def _labels(panel: Panel) -> list[str]:
    """The labels that the queries keep, in the order in which they name them."""
    kept = (by for target in panel.targets for by in re.findall(r"by \(([^)]*)\)", target.expr))
    return list(dict.fromkeys(label for by in kept for label in by.split(", ")))


def _label_columns(labels: list[str]) -> Iterator[tuple[str, list[models.DynamicConfigValue]]]:
    """How a table's labels look: links to the run view where it has both, and colours."""
    to_run = f"/d/{RUN_VIEW.uid}?var-datasource=${{datasource}}&${{__url_time_range}}{_var('run')}"
    if {"run", "trial"} <= set(labels):
        for label, url in (("run", to_run), ("trial", to_run + _var("trial"))):
            link = {"title": f"Open this {label}", "url": url, "targetBlank": False}
            yield label, [models.DynamicConfigValue("links", [link])]
    verdicts = {word.text: word.color for word in VERDICT_WORDS}
    colors = {"verdict": verdicts, "decision": verdicts, "severity": _SEVERITIES}
    for label in labels:
        if label in colors:
            shown = colors[label].items()
            words = {name: models.ValueMappingResult(color=color) for name, color in shown}
            yield label, _colored([models.ValueMap(words)])


def _var(label: str) -> str:
    return f"&var-{label}=${{__data.fields.{label}:percentencode}}"


def _column(target: Target) -> list[models.DynamicConfigValue]:
    properties = [models.DynamicConfigValue("unit", target.unit or "none")]
    if target.decimals is not None:
        properties.append(models.DynamicConfigValue("decimals", target.decimals))
    return [*properties, *(_colored(_mappings(target.words)) if target.words else ())]


def _colored(mappings: list[Any]) -> list[models.DynamicConfigValue]:
    return [
        models.DynamicConfigValue("mappings", mappings),
        models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
    ]


def _mappings(words: tuple[Word, ...]) -> list[Any]:
    options = {str(w.value): models.ValueMappingResult(text=w.text, color=w.color) for w in words}
    return [models.ValueMap(options)]


def _dashed(color: str) -> list[models.DynamicConfigValue]:
    return [
        models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color}),
        models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
        models.DynamicConfigValue("custom.fillOpacity", 0),
        models.DynamicConfigValue("custom.showPoints", "never"),
        models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "bounds"}),
    ]


def _query(ref: str, target: Target, panel: Panel) -> prometheus.Dataquery:
    query = prometheus.Dataquery().ref_id(ref).expr(target.expr).datasource(_SOURCE)
    if panel.kind == "table":
        return query.instant().format(PromQueryFormat.TABLE)
    if panel.kind == "stat":
        return query.instant().legend_format(target.name)
    return query.range().legend_format(target.name)


def _annotation(mark: Target) -> dashboard.AnnotationQuery:
    """Marks at the query's values, one a decision."""
    query = prometheus.Dataquery().ref_id("Anno").expr(mark.expr).datasource(_SOURCE).range()
    return (
        dashboard.AnnotationQuery()
        .name(mark.name)
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("purple")
        .target(query)
        .use_value_for_time(True)
        .title_format("{{decision}}")
        .text_format("{{run}} {{trial}}")
        .tag_keys("decision,trial")
        .step("15s")
    )


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_DESC)
    )


def _link(title: str, url: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(title)
        .type(models.DashboardLinkType.LINK)
        .icon("dashboard")
        .url(url)
        .keep_time(True)
    )


def _refed(panel: Panel) -> Iterator[tuple[str, Target]]:
    return zip(_refs(), panel.targets, strict=False)


def _refs() -> Iterator[str]:
    return iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, content in files(watchers(RULES)).items():
        (FOLDER / name).write_text(content)


if __name__ == "__main__":
    main()
