"""A real Prometheus scrapes the real exporter, and the dashboards say what is true of it."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.grafana.build import FOLDER
from service.telemetry.exporter import Series as Exported
from service.telemetry.exporter import Server
from tests.watch.grafana import Span, ask, empty, panels_of, queries_of
from tests.watch.prometheus import Prometheus, Series, lacks, serving
from tests.watch.stories import ODD_TRIAL, SCRAPES, stories

pytestmark = pytest.mark.skipif(
    bool(lacks()),
    reason=f"this machine lacks {lacks()} (apt-get install --no-install-recommends prometheus)",
)

RULES = """
groups:
  - name: example
    rules:
      - alert: Example
        expr: reid_train_error_timestamp_seconds
        labels: {severity: critical}
"""
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: crossreid
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
TICKS = 10
"""Scrapes in which a story of many is told."""
LOOK_S = 15
"""Step at which the table looks for a trial's last verdict."""
SWEEP = {"run": "sweep", "trial": ".+"}
ALL = {"run": ".+"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Span]]:
    """Stories told to the exporter in fast motion, until the stopped trial's series are gone."""
    exported = Exported()
    server = Server(exported, "127.0.0.1", 0)
    folder = tmp_path_factory.mktemp("live")
    (folder / "rules.yml").write_text(RULES)
    try:
        with serving(folder, CONFIG.format(port=server.port)) as prometheus:
            wait_for_the_first_scrape(prometheus)
            start = math.floor(time.time())
            tell(exported, start)
            time.sleep(LOOK_S + 2 - time.time() % LOOK_S)
            exported.end("sweep", "stuck")
            exported.sweep()
            time.sleep(3)
            yield prometheus, Span(start, math.floor(time.time()), 1.0)
    finally:
        server.close()


def wait_for_the_first_scrape(prometheus: Prometheus) -> None:
    until = time.monotonic() + 30
    while not prometheus.at("up == 1", time.time()):
        assert time.monotonic() < until
        time.sleep(0.1)


def tell(exported: Exported, start: float) -> None:
    """Every story from its beginning to its end; nothing lingers."""
    told = stories(start)
    for run in {run for run, _ in told}:
        exported.lease(run, 600.0)
    for tick in range(TICKS):
        scrape = (tick + 1) * SCRAPES // TICKS - 1
        for (run, trial), story in told.items():
            shot = story.snapshots[min(scrape, len(story.snapshots) - 1)]
            exported.push(run, trial, shot.values, linger_s=0.0)
        time.sleep(1.0)


def dashboard(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def answer(seen: tuple[Prometheus, Span], name: str, title: str) -> list[Series]:
    """What a panel's first query gives: for the sweep in the run view, else for all runs."""
    server, span = seen
    query = next(q for q in queries_of(dashboard(name)) if q.place.endswith(f"{title} A"))
    return ask(server, query, SWEEP if name == "run" else ALL, span)


@pytest.mark.parametrize(("name", "chosen"), [("run", SWEEP), ("fleet", ALL)])
def test_every_query_gives_data_of_scraped_series(
    seen: tuple[Prometheus, Span], name: str, chosen: dict[str, str]
):
    server, span = seen
    assert empty(server, dashboard(name), chosen, span) == []


def test_a_trial_that_is_gone_keeps_its_row_and_its_last_verdict(seen: tuple[Prometheus, Span]):
    rows = [names for names, _ in answer(seen, "fleet", "Trials")]
    found = {(r["run"], r["trial"]): (r["verdict"], r["cause"]) for r in rows}
    assert len(rows) == len(found) == 4
    assert found["sweep", "stuck"] == ("NO_GO", "head_lr_too_small")
    assert found["sweep", ODD_TRIAL] == ("RAISE", "none")


def test_the_timeline_ends_with_the_trial_and_changes_without_overlap(
    seen: tuple[Prometheus, Span],
):
    panel = next(p for p in panels_of(dashboard("run")) if p["title"] == "Verdict in force")
    words = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    lines = {names["trial"]: pairs for names, pairs in answer(seen, "run", "Verdict in force")}
    told = {
        trial: list(dict.fromkeys(words[f"{value:g}"]["text"] for _, value in pairs))
        for trial, pairs in lines.items()
    }
    assert told["stuck"] == ["WAIT", "NO_GO"]
    assert told["good"] == ["GO", "RAISE"]
    assert lines["stuck"][-1][0] < lines["good"][-1][0]


def test_a_firing_alert_names_its_run(seen: tuple[Prometheus, Span]):
    found = [(names["alertname"], names["run"]) for names, _ in answer(seen, "fleet", "alerts")]
    assert found == [("Example", "broken")]
