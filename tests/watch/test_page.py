"""The page of a real Prometheus: what is drawn is what it answers and what the trials reported."""

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.build import FOLDER
from service.causes import WORDS, Cause
from service.errors import WatchError
from service.telemetry.panels.run import RUN_VIEW
from service.watching.asking import moments
from service.watching.canvas import WIDTH
from service.watching.page import write_page
from service.watching.prometheus import Prometheus as Client
from tests.pages import Card, cards, found, lines_of, main_of, text
from tests.watch.grafana import Span, filled
from tests.watch.prometheus import Prometheus, Snapshot, backfill, lacks, serving
from tests.watch.stories import LENGTH_S, ODD_TRIAL, SCRAPE_S, SCRAPES, stories

pytestmark = pytest.mark.skipif(
    bool(lacks()),
    reason=f"this machine lacks {lacks()} (apt-get install --no-install-recommends prometheus)",
)

NOW = math.floor(time.time() / 60) * 60
START = NOW - LENGTH_S - 600
TOLD = stories(START)
GOOD = TOLD["sweep", "good"].snapshots
EVIL = '</script><img src=x onerror=alert("1")>'
SHORT_S, SHORT_SCRAPE_S = 180.0, 5.0
GAP = range(60, 68)
"""Scrapes that are missing: four minutes, less than the five for which a sample is repeated."""
ODD_SCRAPES = range(100, 110)
"""Scrapes at which cross-entropy is NaN."""


def as_run(run: str, shots: list[Snapshot], trial: str = "main") -> list[Snapshot]:
    return [replace(shot, run=run, trial=trial) for shot in shots]


def short() -> list[Snapshot]:
    """Three minutes up to a moment ago, scraped every five seconds."""
    start = NOW - 60 - SHORT_S
    shots = GOOD[: int(SHORT_S / SHORT_SCRAPE_S) + 1]
    times = [start + SHORT_SCRAPE_S * place for place in range(len(shots))]
    beats = [
        {**shot.values, "heartbeat_timestamp_seconds": {(): at}}
        for shot, at in zip(shots, times, strict=True)
    ]
    return [Snapshot("short", "main", at, values) for at, values in zip(times, beats, strict=True)]


def torn() -> list[Snapshot]:
    shots = [shot for place, shot in enumerate(GOOD) if place not in GAP]
    nan = {"cross_entropy_nats": {(): math.nan}}
    odd = {GOOD[place].at for place in ODD_SCRAPES}
    return [
        replace(shot, values={**shot.values, **nan}) if shot.at in odd else shot for shot in shots
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    told = [shot for story in TOLD.values() for shot in story.snapshots]
    more = [*short(), *as_run("torn", torn()), *as_run(EVIL, list(GOOD), EVIL)]
    backfill(folder, [*told, *more])
    with serving(folder) as running:
        yield running


def page(server: Prometheus, tmp_path: Path, run: str | None = "sweep", **options: Any) -> str:
    file = tmp_path / "page.html"
    asked = {"trial": None, "hours": 6.0, "every_s": 0.0, **options}
    named = write_page(server.url, file, run=run, **asked)
    assert run in (None, named)
    return file.read_text("utf-8")


@pytest.fixture(scope="module")
def of_sweep(server: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(server, tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def of_good(server: Prometheus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Card]:
    return cards(page(server, tmp_path_factory.mktemp("good"), trial="good"))


def test_every_panel_of_the_run_view_has_data(of_sweep: str):
    shown = [Card(article) for article in main_of(of_sweep).iter("article")]
    assert [card.title for card in shown] == [panel.title for panel in RUN_VIEW.panels]
    assert [card.title for card in shown if card.is_empty] == []


def test_every_picture_is_well_formed(of_sweep: str):
    drawn = found(main_of(of_sweep), "svg", "plot")
    assert len(drawn) == sum(panel.kind != "table" for panel in RUN_VIEW.panels)


def asked_of_good(server: Prometheus, title: str) -> Iterator[tuple[str, float]]:
    """Names and newest values of a panel's curves, as the dashboard's own queries give them."""
    dashboard = json.loads((FOLDER / "run.json").read_text())
    panel = next(p for p in dashboard["panels"] if p["title"] == title)
    chosen = {"run": "sweep", "trial": "good"}
    span = Span(START, START + LENGTH_S, SCRAPE_S)
    for target in panel["targets"]:
        expr = filled(target["expr"], {**chosen, **span.variables})
        for labels, pairs in server.between(expr, span.start, span.end, span.scrape):
            name = target["legendFormat"].replace("{{trial}}", "")
            for label, value in labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            yield name.strip() or "good", pairs[-1][1]


def bounds_of(panel: Any) -> set[str]:
    names = (target.name for target in panel.targets if target.is_bound)
    return {name.replace("{{trial}}", "").strip() for name in names}


FACTORS = {"%": 0.01, "ms": 1e-3, "µs": 1e-6, "min": 60.0, "h": 3600.0, "d": 86400.0}


def read(words: str, unit: str) -> float:
    """A shown number in the panel's own unit."""
    number, _, shown = words.partition(" ")
    factor = FACTORS.get(shown, 1.0)
    return float(number.replace(",", "")) * (factor / 3600 if unit == "h" else factor)


CURVES = [panel for panel in RUN_VIEW.panels if panel.kind in ("lines", "areas")]


@pytest.mark.parametrize("panel", CURVES, ids=lambda panel: panel.title)
def test_the_last_value_below_a_chart_is_prometheus_own(
    server: Prometheus, of_good: dict[str, Card], panel: Any
):
    expected = dict(asked_of_good(server, panel.title))
    legend = of_good[panel.title].legend
    bounds = bounds_of(panel)
    assert legend.keys() == expected.keys() - bounds
    for name, words in legend.items():
        least = 0.5 * 10.0 ** -(panel.decimals if panel.decimals is not None else 9)
        assert read(words, panel.unit) == pytest.approx(expected[name], rel=0.006, abs=least)


@pytest.mark.parametrize(
    "panel",
    [panel for panel in CURVES if panel.kind == "lines" and not panel.is_symlog],
    ids=lambda panel: panel.title,
)
def test_a_line_ends_at_the_height_of_prometheus_last_value(
    server: Prometheus, of_good: dict[str, Card], panel: Any
):
    expected = dict(asked_of_good(server, panel.title))
    card = of_good[panel.title]
    (canvas,) = found(card.root, "svg", "canvas")
    top, height = float(canvas.get("y", "")), float(canvas.get("height", ""))
    units = (canvas.get("viewBox") or "").split()
    ticks = [(tick_value(words), (y - top) / height) for words, y in card.ticks()]
    (low, low_at), (high, high_at) = ticks[0], ticks[-1]
    if low == high:
        pytest.skip("one tick says nothing of the scale")
    shown = next(iter(card.legend.values())).partition(" ")[2]
    factor = FACTORS.get(shown, 1.0) / (3600 if panel.unit == "h" else 1)
    names = [*card.legend, *bounds_of(panel)]
    ends = []
    for path in found(card.root, "path", "line"):
        line = lines_of(path.get("d", ""))[-1]
        at = line[-1][1] / float(units[3])
        ends.append((low + (high - low) * (at - low_at) / (high_at - low_at)) * factor)
    length = abs((high - low) / (high_at - low_at)) * factor
    wanted = sorted(expected[name] for name in names)
    assert sorted(ends) == pytest.approx(wanted, abs=0.005 * length)


def tick_value(words: str) -> float:
    factor = {"k": 1e3, "M": 1e6}.get(words[-1], 1.0)
    return float(words.rstrip("kM").replace(",", "")) * factor


@pytest.mark.parametrize(
    ("title", "line"),
    [
        ("Cross-entropy over ln C", "cross_entropy_chance_ratio"),
        ("Training Top-1", "top1_accuracy_ratio"),
        ("SDM weight", "sdm_weight"),
        ("Head gradient", "classifier_grad_norm"),
        ("Memory rows", "memory_rows"),
        ("Step", "global_step"),
        ("Images a second", "images_per_second"),
    ],
)
def test_the_last_value_is_what_the_trial_reported(of_good: dict[str, Card], title: str, line: str):
    (value,) = GOOD[-1].values[line].values()
    legend = of_good[title].legend
    words = legend.get("applied") or legend["good"]
    assert read(words, "") == pytest.approx(value, rel=0.006)


def test_the_head_says_verdict_cause_and_progress_of_each_trial(of_sweep: str):
    main = main_of(of_sweep)
    entries = {
        text(found(entry, "span", "trial")[0]): text(entry)
        for entry in found(main, "ul", "trials")[0]
    }
    assert set(entries) == {"good", "stuck", ODD_TRIAL}
    assert entries["good"].startswith("RAISE")
    assert "step 9,000 of 20,000 (45 %)" in entries["good"]
    assert "gone without a word" in entries["good"]
    words, remedy = WORDS[Cause.HEAD_LR_TOO_SMALL]
    assert entries["stuck"].startswith("NO_GO")
    assert "stopped" in entries["stuck"]
    assert words[1:] in entries["stuck"]
    assert remedy[1:] in entries["stuck"]


def test_a_table_says_what_the_trials_reported_last(of_sweep: str):
    rows = {row["trial"]: row for row in cards(of_sweep)["Trials"].rows}
    assert set(rows) == {"good", "stuck", ODD_TRIAL}
    assert rows["good"]["step"] == "9,000"
    assert (rows["stuck"]["verdict"], rows["stuck"]["cause"]) == ("NO_GO", "head_lr_too_small")
    assert rows["good"]["cause"] == "-"


def test_a_trial_with_an_awkward_name_can_be_shown_alone(server: Prometheus, tmp_path: Path):
    drawn = cards(page(server, tmp_path, trial=ODD_TRIAL))
    # It is the only one of its run that never had a cause.
    assert [card.title for card in drawn.values() if card.is_empty] == ["Cause in force"]
    assert [row["trial"] for row in drawn["Trials"].rows] == [ODD_TRIAL]


def test_a_run_with_an_evil_name_is_drawn_as_text(server: Prometheus, tmp_path: Path):
    drawn = page(server, tmp_path, EVIL)
    assert text(next(main_of(drawn).iter("h1"))) == EVIL
    assert "<img" not in drawn


def test_the_page_spans_the_run_from_its_first_sample_to_its_last(of_sweep: str):
    times = (main_of(of_sweep).get("data-times") or "").split("|")
    assert len(times) == SCRAPES <= moments(3) + 1
    assert [times[0], times[-1]] == [
        datetime.fromtimestamp(at).strftime("%H:%M:%S") for at in (START, START + LENGTH_S)
    ]


def test_three_minutes_of_six_hours_fill_the_charts(server: Prometheus, tmp_path: Path):
    drawn = page(server, tmp_path, "short")
    path = found(cards(drawn)["Cross-entropy"].root, "path", "line", "c0")[0]
    (line,) = lines_of(path.get("d", ""))
    assert (line[0][0], line[-1][0]) == (0, WIDTH)
    times = (main_of(drawn).get("data-times") or "").split("|")
    assert len(times) == SHORT_S / SHORT_SCRAPE_S + 1


def test_no_line_goes_over_a_time_without_samples_or_with_nan(server: Prometheus, tmp_path: Path):
    card = cards(page(server, tmp_path, "torn"))["Cross-entropy"]
    path = found(card.root, "path", "line", "c0")[0]
    step = WIDTH / (SCRAPES - 1)
    ends = [
        (round(line[0][0] / step), round(line[-1][0] / step))
        for line in lines_of(path.get("d", ""))
    ]
    # Two lost scrapes are no gap yet: for so long the last sample counts.
    assert ends == [
        (0, GAP.start + 2),
        (GAP.stop, ODD_SCRAPES.start - 1),
        (ODD_SCRAPES.stop, SCRAPES - 1),
    ]
    assert [text(word) for word in found(card.root, "text", "odd")] == ["NaN"]


def test_decisions_stand_at_their_times(of_good: dict[str, Card]):
    paths = {
        path.get("class", "").split()[1]: path.get("d", "")
        for path in found(of_good["Cross-entropy"].root, "path", "mark")
    }
    drawn = {kind: [float(x) for x in re.findall(r"M(\d+)", path)] for kind, path in paths.items()}
    decided = {verdict: at for at, verdict in TOLD["sweep", "good"].decisions}
    places = {v: (at - START) / LENGTH_S * WIDTH for v, at in decided.items()}
    assert drawn["k-green"] == [pytest.approx(places["GO"], abs=1)]
    assert drawn["k-dark-green"] == [pytest.approx(places["RAISE"], abs=1)]


def test_without_a_name_the_run_with_the_newest_step_is_taken(server: Prometheus, tmp_path: Path):
    file = tmp_path / "page.html"
    options: dict[str, Any] = {"trial": None, "hours": 6.0, "every_s": 0.0}
    assert write_page(server.url, file, run=None, **options) == "short"


def test_the_page_names_the_prometheus_and_its_version(server: Prometheus, of_sweep: str):
    version = Client(server.url).version()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", version)
    assert f"Prometheus {version} at {server.url}" in text(next(main_of(of_sweep).iter("footer")))


def test_an_unknown_run_is_refused_with_those_that_are_known(server: Prometheus, tmp_path: Path):
    with pytest.raises(WatchError, match="knows no run 'sweeps' in the last 6 h") as caught:
        page(server, tmp_path, "sweeps")
    assert "broken, short, sweep, torn" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_run_that_lies_further_back_is_named_as_such(server: Prometheus, tmp_path: Path):
    back_to_short_s = time.time() - NOW + 540
    with pytest.raises(WatchError, match=r"within that time it knows short, ever .*sweep.*--hours"):
        page(server, tmp_path, "sweep", hours=back_to_short_s / 3600)


def test_an_unknown_trial_is_refused_with_those_of_the_run(server: Prometheus, tmp_path: Path):
    with pytest.raises(WatchError, match=r"run sweep has no trial 'god'.*good, stuck"):
        page(server, tmp_path, trial="god")


def test_without_any_run_it_says_what_to_look_at(tmp_path: Path):
    folder = tmp_path / "empty"
    folder.mkdir()
    with (
        serving(folder) as empty,
        pytest.raises(WatchError, match="never scraped an exporter"),
    ):
        page(empty, tmp_path, None)


def test_a_prometheus_that_is_not_there_is_named(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = Prometheus(f"http://127.0.0.1:{probe.getsockname()[1]}", 0)
        with pytest.raises(WatchError, match="no Prometheus answers at"):
            page(nobody, tmp_path)


def test_a_query_that_is_wrong_is_refused_in_prometheus_own_words(server: Prometheus):
    with pytest.raises(WatchError, match=r"refuses a query: .*parse error"):
        Client(server.url).at("up)", time.time())


def test_a_function_that_is_unknown_tells_of_an_old_version(server: Prometheus):
    with pytest.raises(WatchError, match="too old") as caught:
        Client(server.url).at("of_the_future(up[5m])", time.time())
    assert f"version {Client(server.url).version()}" in str(caught.value)


def test_an_old_page_is_replaced_as_a_whole_or_kept(server: Prometheus, tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(WatchError):
        page(server, tmp_path, "unknown")
    assert file.read_text() == "old"
    assert page(server, tmp_path).startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_file_that_cannot_be_written_is_named(server: Prometheus, tmp_path: Path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(WatchError, match=r"cannot write the page to .*page\.html"):
        page(server, tmp_path)


def test_neither_torch_nor_ray_is_loaded_to_draw_a_page():
    code = "import sys, service.watching.page; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
