"""Runs as the exporter would have shown them over an hour and a half, without the waiting."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.config import PolicyConfig
from service.decisions import Verdict
from service.telemetry.trial import TrialSeries
from tests.reports import LN_C, START, config, decision, healthy
from tests.watch.prometheus import Snapshot, selector

SCRAPE_S = 30.0
SCRAPES = 180
LENGTH_S = SCRAPE_S * (SCRAPES - 1)
STEPS = 50
"""Steps between two scrapes."""
TOTAL = 20_000
POLICY = PolicyConfig(go=0.9, learning=0.88)
STUCK_SCRAPES = 40
ODD_TRIAL = '试验 "3" \\ a'


@dataclass(frozen=True, slots=True)
class Story:
    """One trial's snapshots, and its decisions as (time, verdict)."""

    snapshots: tuple[Snapshot, ...]
    decisions: tuple[tuple[float, str], ...]


def stories(start: float) -> dict[tuple[str, str], Story]:
    """By run and trial, from `start` in Unix seconds.

    A sweep of a healthy trial, one that is stopped as NO_GO after twenty minutes, and one with an
    awkward name; and a run that ends with an error.
    """
    return {
        ("sweep", "good"): _told("sweep", "good", start, _good),
        ("sweep", "stuck"): _told("sweep", "stuck", start, _stuck),
        ("sweep", ODD_TRIAL): _told("sweep", ODD_TRIAL, start, _good),
        ("broken", "main"): _told("broken", "main", start, _broken),
    }


def firing(start: float) -> Iterator[str]:
    """An alert on a trial and one on the exporter, as Prometheus writes them down."""
    about = ({"run": "sweep", "trial": "stuck", "severity": "critical"}, {"severity": "warning"})
    for place, labels in enumerate(about):
        named = {"alertname": f"Example{place}", "alertstate": "firing", **labels}
        for scrape in range(SCRAPES):
            yield f"{selector('ALERTS', named)} 1 {start + scrape * SCRAPE_S:.3f}"


def _told(run: str, trial: str, start: float, story: Any) -> Story:
    series = TrialSeries(config(POLICY, num_workers=4, gpus_per_worker=1.0))
    series.start({**START, "world_size": 4, "precision": "bf16"})
    decisions: list[tuple[float, str]] = []
    snapshots = []
    for scrape in range(SCRAPES):
        now = start + scrape * SCRAPE_S
        goes_on = story(series, scrape, now, decisions)
        if goes_on is None:
            break
        snapshots.append(Snapshot(run, trial, now, series.values))
    return Story(tuple(snapshots), tuple(decisions))


def _decide(
    series: TrialSeries,
    decisions: list[tuple[float, str]],
    verdict: Verdict,
    now: float,
    **more: Any,
) -> None:
    series.decision(decision(verdict, **more), now)
    decisions.append((now, verdict.value))


def _advance(series: TrialSeries, scrape: int, now: float) -> int:
    step = (scrape + 1) * STEPS
    series.step(step, TOTAL, now)
    series.steps({"count": STEPS, "images": 64.0 * STEPS, "seconds": 0.4, "data_wait_s": 0.1})
    if scrape % 20 == 10:
        series.checkpoint(step, now)
    return step


def _good(series: TrialSeries, scrape: int, now: float, decisions: list[Any]) -> bool:
    """Learns; SDM comes on in the middle."""
    step = _advance(series, scrape, now)
    fraction = max(0.3, 1.0 - scrape / 100)
    is_on = scrape >= SCRAPES // 2
    sdm = {
        "sdm": 1.6,
        "sdm_chance": 2.0,
        "sdm_rows": 60.0,
        "sdm_positives": 3.0,
        "sdm_scheduled": 0.1,
        "sdm_weight": 0.1,
        "sdm_scheduled_steps": 100,
        "sdm_gradient_share": 0.2,
        "memory_rows": 384,
        "memory_age": 6,
    }
    report = healthy(
        step,
        ce=fraction * LN_C,
        ce_fraction=fraction,
        total_steps=TOTAL,
        top1=1.0 - fraction,
        **(sdm if is_on else {}),
    )
    series.health(report)
    if scrape == 8:
        _decide(series, decisions, Verdict.GO, now, best=fraction, head_limit=21.0)
    if scrape == SCRAPES // 2:
        _decide(series, decisions, Verdict.RAISE, now, best=fraction)
        series.restart()
        series.sink_failures({"mlflow": 3})
        series.checkpoint_fault("failed")
    return True


def _stuck(series: TrialSeries, scrape: int, now: float, decisions: list[Any]) -> bool | None:
    """Stays at chance, is stopped, lingers for two scrapes and is gone."""
    if scrape > STUCK_SCRAPES + 2:
        return None
    if scrape < STUCK_SCRAPES:
        step = _advance(series, scrape, now)
        series.health(healthy(step, ce=LN_C, ce_fraction=1.0, total_steps=TOTAL))
    if scrape == STUCK_SCRAPES:
        _decide(series, decisions, Verdict.NO_GO, now, cause="head_lr_too_small")
        series.stopped(scrape * STEPS)
    return True


def _broken(series: TrialSeries, scrape: int, now: float, decisions: list[Any]) -> bool | None:
    if scrape > STUCK_SCRAPES + 2:
        return None
    if scrape < STUCK_SCRAPES:
        series.health(healthy(_advance(series, scrape, now), total_steps=TOTAL))
    if scrape == STUCK_SCRAPES:
        series.error("non_finite", now)
    return True
