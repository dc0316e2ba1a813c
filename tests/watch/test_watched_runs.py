"""Real runs under a real Prometheus and Alertmanager, from the loop to the webhook.

At once on one Ray cluster: a healthy run, one that is NO_GO, and one whose driver is killed; in the
long form also one whose numbers overflow, and a sweep of two trials. The exporter is killed on the
way. `crossreid watch` looks at them with the deployed rules, whose waits are shortened. Every test
of this file reads what that hour in fast motion left.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from deploy.grafana.build import FOLDER
from service.config import ClusterConfig
from service.orchestration.cluster import NAMESPACE, environment
from service.telemetry.exporter import ACTOR_NAME
from service.telemetry.lines import LINES, PREFIX
from service.telemetry.panels.run import RUN_VIEW
from service.training.journal import read_journal
from tests.alerting import needs
from tests.ray.processes import pids_of
from tests.small import make_records, small_config
from tests.watch.grafana import Span, empty, filled
from tests.watch.prometheus import Prometheus
from tests.watch.running import (
    Driver,
    Listener,
    Samples,
    Scraper,
    drivers,
    hasty,
    parsed,
    written,
)
from tests.watch.watching import Watch, eventually, started

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    needs("prometheus", "prometheus-alertmanager"),
]

FASTER = 60
"""An alert that waits an hour waits a minute."""
LINGER_S = 25
"""On a busy machine the exporter misses scrapes for some seconds."""
STEPS = 700
STUCK = "optim.head_lr=1e-6"
OVERFLOW = "model.neck.norm_scale=1e38"
FIELDS = {line.field: line.name for line in LINES if line.field}
BROKEN = ("broken", "main")
CODES = {"healthy": 0, "stuck": 3, "lost": 130, "broken": 5, "sweep": 0}
"""What each run of the long form ends with."""
SHORT = ("healthy", "stuck", "lost")
KINDS = "cross_entropy_by_kind_nats"
HEALTH = (*FIELDS.values(), KINDS)
OF_ERRORS = "Errors that ended a trial A"
NEVER_OF_A_HEALTHY_RUN = {"Cause in force A", "Device-hours B", "Trials O"}


@dataclass(frozen=True)
class Seen:
    """What was left. codes: exit codes by run. back_s: from the exporter's death to its full state.
    gone_s: from the last end to no series. answers: of Prometheus, while one still trains."""

    storage: Path
    listener: Listener
    pages: list[dict[tuple[str, str], Samples]]
    codes: dict[str, int]
    back_s: float
    gone_s: float
    answers: dict[str, Any]


@pytest.fixture(scope="module")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray of six logical CPUs that other processes can join."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(ClusterConfig(poll_s=0.1)).items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=6,
            namespace=NAMESPACE,
            include_dashboard=False,
            object_store_memory=150_000_000,
            log_to_driver=False,
            configure_logging=False,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SHORT, id="short"),
        pytest.param(tuple(CODES), id="long", marks=pytest.mark.prove),
    ],
)
def seen(
    ray_address: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("watched")
    storage, records = folder / "runs", make_records(folder / "data")
    storage.mkdir()
    fixed = [
        f"run.storage={storage}",
        f"cluster.address={ray_address}",
        "telemetry.enabled=true",
        "telemetry.port=0",
        f"telemetry.linger_s={LINGER_S}",
        "train.checkpoint_every=50",
        f"train.max_steps={STEPS}",
        "cluster.poll_s=0.1",
    ]
    plain = written(
        small_config(records, [*fixed, "telemetry.sinks=[tensorboard]"]), folder / "a.yaml"
    )
    space = 'tune.space={"optim.head_lr": {"grid": [3e-3, 1e-6]}}'
    sweep = written(
        small_config(records, [*fixed, space, "tune.max_concurrent=2"]), folder / "b.yaml"
    )
    listener, scraper = Listener(), Scraper(storage / "exporters")
    rules = str(hasty(folder / "rules", FASTER))
    watch = started(folder, "--rules", rules, "--webhook", listener.url)
    with watch as command, drivers(folder) as start:
        try:
            stage = Stage(storage, start, command, listener, scraper)
            yield stage.play(request.param, plain, sweep)
        finally:
            scraper.close()
            listener.close()


@dataclass(frozen=True)
class Stage:
    """Where it is played, and who looks on. start: starts a driver with these words."""

    storage: Path
    start: Any
    watch: Watch
    listener: Listener
    scraper: Scraper

    def play(self, names: tuple[str, ...], plain: str, sweep: str) -> Seen:
        """plain, sweep: files of the configs."""
        begun = time.time()
        words = {
            "healthy": ("train", plain),
            "lost": ("train", plain, "train.max_steps=100000"),
            "stuck": ("train", plain, STUCK),
            "broken": ("train", plain, OVERFLOW),
            "sweep": ("tune", sweep),
        }
        cast = {name: self.start(*words[name], "--run-id", name) for name in names}
        going = set(cast) - {"broken"}
        self.until(lambda: going <= {run for run, _ in self.scraper.now()}, 150)
        self.until(lambda: all(steps_of(page) > 60 for page in self.whole().values()), 150)
        if "broken" in cast:
            self.until(lambda: self.listener.told("TrainingError", "broken"), 60)
        # An end that nobody has scraped yet goes with the exporter; that is another test's matter.
        stuck = set(cast) & {"stuck", "sweep"}
        self.until(lambda: all(self.listener.told("NoGo", run) for run in stuck), 90)
        cast["lost"].kill()
        back_s = self.kill_the_exporter()
        cast["lost"] = self.resumed_when_missed("lost")
        self.until(lambda: all(cast[name].exit_code is not None for name in going - {"lost"}), 240)
        server = Prometheus(self.watch.url, self.watch.pids[0])
        # While a run still trains: some panels show only what is now.
        answers = asked(server, begun, time.time())
        cast["lost"].end()
        ended_at = time.monotonic()
        self.until(lambda: server.at(PREFIX + "running", time.time()) == [], 60)
        gone_s = time.monotonic() - ended_at
        self.until(lambda: not self.listener.open_ones(), 90)
        codes = {name: driver.exit_code for name, driver in cast.items()}
        pages = [parsed(page) for page in self.scraper.pages]
        return Seen(self.storage, self.listener, pages, codes, back_s, gone_s, answers)

    def kill_the_exporter(self) -> float:
        """Seconds until everything is served again that had not ended meanwhile."""
        before = {key for key in self.whole() if key[0] != "lost"}
        (pid,) = pids_of("Exporter")
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        self.until(lambda: self.scraper.now() == {}, 10)
        self.until(lambda: before <= set(self.scraper.now()) | ended(self.storage), 30)
        return time.monotonic() - killed

    def resumed_when_missed(self, run: str) -> Driver:
        """Its driver died without a word; somebody hears of it and continues the run.

        The exporter that came back has nothing from the dead driver. One that had lived would have
        waited for its lease to run out first.
        """
        self.until(lambda: self.listener.told("TrainingVanished", run), 120)
        again = self.start("train", "--resume", str(self.storage / run))
        self.until(lambda: self.listener.told("TrainingVanished", run, "resolved"), 120)
        return again

    def whole(self) -> dict[tuple[str, str], Samples]:
        """What is served of all but the run that breaks at its first step."""
        return {key: page for key, page in self.scraper.now().items() if key != BROKEN}

    def until(self, is_so: Callable[[], bool], seconds: float) -> None:
        assert eventually(is_so, seconds), self.state()

    def state(self) -> str:
        """For the message of a failed wait."""
        told = {
            (a["labels"]["alertname"], a["labels"].get("run"), a["status"])
            for a in self.listener.alerts
        }
        logs = [file.read_text()[-500:] for file in sorted(self.storage.parent.glob("*.log"))]
        return "\n".join((f"alerts {told}; served {sorted(self.scraper.now())}", *logs))


def steps_of(page: Samples) -> float:
    return page.get("global_step", {}).get((), 0.0)


def ended(storage: Path) -> set[tuple[str, str]]:
    """Trials whose journal has come to its end."""
    files = [*storage.glob("*/journal.jsonl"), *storage.glob("sweep/*/journal.jsonl")]
    return {
        (file.parent.name, "main") if file.parent.parent == storage else ("sweep", file.parent.name)
        for file in files
        if any(event["event"] == "end" for event in read_journal(file.parent))
    }


def asked(server: Prometheus, begun: float, now: float) -> dict[str, Any]:
    """What the dashboards' queries, and every line's own, say of the runs."""
    span = Span(math.floor(begun), math.ceil(now), 1.0)
    boards = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("run", "fleet")}
    chosen = {
        ("run", "healthy"): {"run": "healthy", "trial": ".+"},
        ("run", "stuck"): {"run": "stuck", "trial": ".+"},
        ("fleet", ""): {"run": ".+"},
    }
    silent = {key: empty(server, boards[key[0]], values, span) for key, values in chosen.items()}
    values = {
        (run, name): server.at(f'last_over_time({PREFIX}{name}{{run="{run}"}}[1h])', now)
        for run in ("healthy", "stuck")
        for name in FIELDS.values()
    }
    ce = next(p for p in RUN_VIEW.panels if p.title == "Cross-entropy").targets[0].expr
    panel = server.between(filled(ce, {**chosen["run", "healthy"]}), begun, now, 1.0)
    return {"silent": silent, "values": values, "panel": panel}


def test_every_run_ends_as_it_should(seen: Seen):
    assert seen.codes == {name: CODES[name] for name in seen.codes}


def test_a_healthy_run_wakes_nobody(seen: Seen):
    """Its speed does fall, for seconds, while others start and end on the same cores."""
    assert seen.listener.fired("healthy", but="speed") == set()


def test_a_no_go_reaches_the_webhook_with_its_cause_and_resolves(seen: Seen):
    labels = seen.listener.labels("NoGo")
    stuck = {"stuck", "sweep"} & set(seen.codes)
    assert {found["run"] for found in labels} == stuck
    assert all(seen.listener.told("NoGo", run, "resolved") for run in stuck)
    assert {found["cause"] for found in labels} == {"head_lr_too_small"}
    assert len({(found["run"], found["trial"]) for found in labels}) == len(stuck)


def test_an_error_reaches_the_webhook_by_name_and_resolves(seen: Seen):
    told = {(found["run"], found["cause"]) for found in seen.listener.labels("TrainingError")}
    assert told == {("broken", "non_finite")} & {(run, "non_finite") for run in seen.codes}
    assert all(seen.listener.told("TrainingError", run, "resolved") for run, _ in told)


def test_only_the_run_that_died_without_a_word_is_said_to_have_vanished(seen: Seen):
    assert {labels["run"] for labels in seen.listener.labels("TrainingVanished")} == {"lost"}


def test_a_killed_exporter_is_whole_again_within_seconds(seen: Seen, record_property: Any):
    record_property("seconds_to_full_state", round(seen.back_s, 1))
    assert seen.back_s < 30


def test_after_the_linger_nothing_is_left(seen: Seen, record_property: Any):
    record_property("seconds_to_no_series", round(seen.gone_s, 1))
    assert eventually(lambda: _exporter() is None, 30)
    assert list((seen.storage / "exporters").glob("*.json")) == []
    assert pids_of("service train") == pids_of("service tune") == []


def _exporter() -> Any:
    try:
        return ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return None


@pytest.mark.parametrize("run", ["healthy", "stuck", "lost"])
def test_every_page_of_metrics_says_what_the_journal_says_at_that_step(seen: Seen, run: str):
    told = [shown(health) for health in reports(seen.storage / run)]
    pages = [page[run, "main"] for page in seen.pages if (run, "main") in page]
    served = [{name: page[name] for name in HEALTH if name in page} for page in pages]
    served = [page for page in served if page]
    assert len(served) >= 3
    assert [page for page in served if page not in told] == []


def reports(run: Path) -> list[dict[str, Any]]:
    """Every health report of every attempt, in order."""
    return [event["health"] for event in read_journal(run) if event["event"] == "health"]


def shown(health: dict[str, Any]) -> Samples:
    """What `/metrics` must say of a report, line by line."""
    lines = {
        FIELDS[field]: {(): float(v)}
        for field, v in health.items()
        if field in FIELDS
        if v is not None
    }
    return {**lines, KINDS: {(kind,): float(ce) for kind, ce in health["ce_by_kind"].items()}}


@pytest.mark.parametrize("run", ["healthy", "stuck"])
def test_prometheus_keeps_the_journals_last_values(seen: Seen, run: str):
    last = reports(seen.storage / run)[-1]
    for field, name in FIELDS.items():
        found = seen.answers["values"][run, name]
        if last[field] is None:
            assert found == []
        else:
            assert found[0][1][0][1] == float(last[field]), name


def test_a_panel_draws_the_journals_values_and_no_other(seen: Seen):
    ((_, pairs),) = seen.answers["panel"]
    drawn = [value for _, value in pairs if not math.isnan(value)]
    told = [health["ce"] for health in reports(seen.storage / "healthy")]
    assert set(drawn) <= set(told)
    assert drawn[-1] == told[-1]
    assert [told.index(v) for v in drawn] == sorted(told.index(v) for v in drawn)


def test_every_panel_of_every_dashboard_has_data(seen: Seen):
    """A run that learns has no cause and saves no hours; the stuck one shows those."""
    silent = {
        key: {place.split(" ", 1)[1] for place in places}
        for key, places in seen.answers["silent"].items()
    }
    assert silent["run", "healthy"] <= NEVER_OF_A_HEALTHY_RUN
    assert silent["run", "healthy"] & silent["run", "stuck"] == set()
    assert silent["fleet", ""] == (set() if "broken" in seen.codes else {OF_ERRORS})


def test_tensorboard_has_the_healthy_run_too(seen: Seen):
    assert list((seen.storage / "healthy").rglob("events.out.tfevents.*"))
