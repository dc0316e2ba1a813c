"""Every query of the dashboards runs on a real Prometheus, gives data, and says what is true."""

import copy
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.grafana.build import FOLDER
from tests.reports import NUM_CLASSES
from tests.watch.grafana import Span, ask, empty, offered, panels_of, queries_of
from tests.watch.prometheus import Prometheus, Series, backfill, lacks, serving
from tests.watch.stories import (
    LENGTH_S,
    ODD_TRIAL,
    POLICY,
    SCRAPE_S,
    SCRAPES,
    STEPS,
    STUCK_SCRAPES,
    Story,
    firing,
    stories,
)

pytestmark = pytest.mark.skipif(
    bool(lacks()),
    reason=f"this machine lacks {lacks()} (apt-get install --no-install-recommends prometheus)",
)

START = math.floor(time.time() / 60) * 60 - LENGTH_S - 600
SPAN = Span(START, START + LENGTH_S, SCRAPE_S)
TOLD = stories(START)
SWEEP = {"run": "sweep", "trial": ".+"}
ALL = {"run": ".+"}
"""What Grafana puts for All: not `.*`, which a series without the label has too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    backfill(folder, [shot for told in TOLD.values() for shot in told.snapshots], firing(START))
    with serving(folder) as running:
        yield running


def dashboard(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def answers(server: Prometheus, name: str, title: str, letter: str = "A") -> list[Series]:
    """What one query of a panel gives: in the run view for the sweep, in the fleet view for all."""
    chosen = SWEEP if name == "run" else ALL
    found = [q for q in queries_of(dashboard(name)) if q.place.endswith(f"{title} {letter}")]
    assert len(found) == 1
    return ask(server, found[0], chosen, SPAN)


def newest(found: list[Series], *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(names[label] for label in labels): pairs[-1][1] for names, pairs in found}


def last_values(told: Story, name: str) -> dict[tuple[str, ...], float]:
    return told.snapshots[-1].values[name]


@pytest.mark.parametrize(("name", "chosen"), [("run", SWEEP), ("fleet", ALL)])
def test_every_query_gives_data(server: Prometheus, name: str, chosen: dict[str, str]):
    assert empty(server, dashboard(name), chosen, SPAN) == []


def test_a_misspelt_metric_or_label_is_noticed(server: Prometheus):
    damaged = copy.deepcopy(dashboard("run"))
    curve, table = (
        next(p for p in panels_of(damaged) if p["title"] == title)
        for title in ("Cross-entropy", "Limits of the policy")
    )
    curve["targets"][0]["expr"] = "reid_train_cross_entropy_nat" + '{run="$run",trial=~"$trial"}'
    table["targets"][0]["expr"] = table["targets"][0]["expr"].replace("trial=", "trail=")
    places = [f"{curve['id']} Cross-entropy A", f"{table['id']} Limits of the policy A"]
    assert empty(server, damaged, SWEEP, SPAN) == places


def test_an_unknown_variable_is_noticed(server: Prometheus):
    damaged = dashboard("run")
    panels_of(damaged)[0]["targets"][0]["expr"] = 'reid_train_running{run="$runs"}'
    with pytest.raises(KeyError, match="runs"):
        empty(server, damaged, SWEEP, SPAN)


@pytest.mark.parametrize("name", ["run", "fleet"])
def test_the_variables_offer_runs_and_trials(server: Prometheus, name: str):
    variables = {v["name"]: v for v in dashboard(name)["templating"]["list"]}
    assert sorted(offered(server, variables["run"], {}, SPAN)) == ["broken", "sweep"]
    if name == "run":
        found = offered(server, variables["trial"], {"run": "sweep"}, SPAN)
        assert set(found) == {trial for run, trial in TOLD if run == "sweep"}


def test_the_table_has_one_row_a_trial_with_its_last_verdict_and_cause(server: Prometheus):
    rows = [names for names, _ in answers(server, "fleet", "Trials")]
    found = {(r["run"], r["trial"]): (r["verdict"], r["cause"]) for r in rows}
    assert len(rows) == len(found)
    assert found == {
        ("sweep", "good"): ("RAISE", "none"),
        ("sweep", ODD_TRIAL): ("RAISE", "none"),
        ("sweep", "stuck"): ("NO_GO", "head_lr_too_small"),
        ("broken", "main"): ("WAIT", "none"),
    }


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("step", "global_step"),
        ("CE / ln C", "cross_entropy_chance_ratio"),
        ("Top-1", "top1_accuracy_ratio"),
        ("coverage", "pair_coverage_ratio"),
        ("images/s", "images_per_second"),
        ("restarts", "restarts_total"),
        ("device-hours", "device_hours_used"),
        ("hours saved", "device_hours_saved"),
    ],
)
def test_a_column_shows_each_trials_last_value_also_of_ended_ones(
    server: Prometheus, title: str, name: str
):
    table = next(p for p in panels_of(dashboard("fleet")) if p["title"] == "Trials")
    names = table["transformations"][1]["options"]["renameByName"]
    letter = next(key for key, value in names.items() if value == title).removeprefix("Value #")
    found = newest(answers(server, "fleet", "Trials", letter), "run", "trial")
    for key, told in TOLD.items():
        if name in told.snapshots[-1].values:
            assert found.pop(key) == pytest.approx(*last_values(told, name).values())
    assert found == {}


def test_marks_lie_at_the_times_of_the_decisions(server: Prometheus):
    query = next(q for q in queries_of(dashboard("run")) if q.place == "Decisions")
    for names, pairs in ask(server, query, SWEEP, SPAN):
        told = TOLD[names["run"], names["trial"]]
        times = [at * 1000 for at, verdict in told.decisions if verdict == names["decision"]]
        assert {value for _, value in pairs} == set(times)


def test_the_fleet_marks_only_what_takes_something_away(server: Prometheus):
    query = next(q for q in queries_of(dashboard("fleet")) if q.place == "Decisions")
    assert {names["decision"] for names, _ in ask(server, query, ALL, SPAN)} == {"NO_GO"}


def test_the_timeline_shows_the_verdict_in_force(server: Prometheus):
    panel = next(p for p in panels_of(dashboard("run")) if p["title"] == "Verdict in force")
    words = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    found = newest(answers(server, "run", "Verdict in force"), "trial")
    assert {trial: words[f"{value:g}"]["text"] for (trial,), value in found.items()} == {
        "good": "RAISE",
        ODD_TRIAL: "RAISE",
        # Backfilled series have no end, so the newest sample at which it stood still counts.
        "stuck": "NO_GO",
    }


def test_bounds_are_those_of_the_runs_own_config(server: Prometheus):
    found = answers(server, "run", "Cross-entropy over ln C", "B")
    assert newest(found, "gate") == {("go",): POLICY.go}
    chance = answers(server, "run", "Training Top-1", "B")
    assert newest(chance) == {(): pytest.approx(1 / NUM_CLASSES)}
    upper, lower = (
        newest(answers(server, "run", "Feature length after the neck", letter))[()]
        for letter in "CD"
    )
    assert upper == pytest.approx(8.0 * (1 + POLICY.norm_tolerance))
    assert lower == pytest.approx(8.0 * (1 - POLICY.norm_tolerance))


def test_a_curve_is_what_the_trial_reported(server: Prometheus):
    found = answers(server, "run", "Cross-entropy over ln C")
    pairs = next(pairs for names, pairs in found if names["trial"] == "good")
    told = [s.values["cross_entropy_chance_ratio"][()] for s in TOLD["sweep", "good"].snapshots]
    assert [value for _, value in pairs] == pytest.approx(told)
    assert len(pairs) == SCRAPES


def test_rates_give_steps_images_and_the_split_of_a_step(server: Prometheus):
    steps = newest(answers(server, "run", "Steps a second"), "trial")
    images = newest(answers(server, "run", "Images a second", "B"), "trial")
    split = newest(answers(server, "run", "Where a step's time goes"), "trial", "phase")
    assert steps["good",] == pytest.approx(STEPS / SCRAPE_S, rel=0.01)
    assert images["good",] == pytest.approx(64 * STEPS / SCRAPE_S, rel=0.01)
    assert split["good", "data"] == pytest.approx(0.1)
    assert split["good", "compute"] == pytest.approx(0.3)


def test_a_rise_is_counted_from_the_best_before_it(server: Prometheus):
    found = newest(answers(server, "run", "Rise above the best"), "trial")
    assert found["good",] == 0.0


def test_sdm_is_compared_with_chance_only_while_it_is_on(server: Prometheus):
    found = answers(server, "run", "SDM loss over its chance level")
    good = next(pairs for names, pairs in found if names["trial"] == "good")
    assert [value for _, value in good] == pytest.approx([0.8] * (SCRAPES - SCRAPES // 2))
    assert all(names["trial"] != "stuck" for names, _ in found)


def test_the_errors_table_names_the_cause_and_the_time(server: Prometheus):
    found = newest(answers(server, "fleet", "Errors that ended a trial"), "run", "cause")
    assert found == {("broken", "non_finite"): (START + STUCK_SCRAPES * SCRAPE_S) * 1000}


def test_alerts_on_a_run_and_on_the_service_are_both_shown(server: Prometheus):
    found = answers(server, "fleet", "Firing alerts")
    assert {names["alertname"] for names, _ in found} == {"Example0", "Example1"}
