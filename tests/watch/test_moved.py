"""A run that is resumed at another address: what its new exporter says is what is shown."""

import time
from collections.abc import Iterator

import pytest

from service.telemetry.lines import PREFIX
from service.telemetry.panels.panel import curve, latest
from tests.alerting import needs
from tests.watch.grafana import Span, filled
from tests.watch.prometheus import Prometheus, backfill, selector, serving

pytestmark = needs("prometheus", "promtool")

LENGTH_S = 1800
SCRAPE_S = 15
WHERE = 'run="$run"'
OLD = {"running": 1.0, "global_step": 900.0, "cross_entropy_nats": 5.0, "device_hours_used": 0.5}
NEW = {"running": 0.0, "global_step": 700.0, "cross_entropy_nats": 2.0, "device_hours_used": 0.2}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Span]]:
    """Half of the time at one address, where its driver died, then at another, where it ended."""
    folder = tmp_path_factory.mktemp("moved")
    start = int(time.time()) - LENGTH_S - 60
    half = start + LENGTH_S // 2
    lines = [
        *told("old:1", OLD, range(start, half - 400, SCRAPE_S)),
        *told("new:1", NEW, range(half, start + LENGTH_S, SCRAPE_S)),
    ]
    backfill(folder, [], sorted(lines))
    with serving(folder) as server:
        yield server, Span(start, start + LENGTH_S, SCRAPE_S)


def told(instance: str, values: dict[str, float], times: range) -> Iterator[str]:
    labels = {"run": "moved", "trial": "main", "instance": instance}
    for name, value in values.items():
        more = {"device": "cpu"} if name == "device_hours_used" else {}
        for at in times:
            yield f"{selector(PREFIX + name, labels | more)} {value} {at}"
    for at in times:
        yield f"{selector(PREFIX + 'heartbeat_timestamp_seconds', labels)} {at} {at}"


def answer(seen: tuple[Prometheus, Span], expr: str) -> float:
    server, span = seen
    ((_, pairs),) = server.at(filled(expr, {"run": "moved", **span.variables}), span.end)
    return pairs[0][1]


@pytest.mark.parametrize("name", ["running", "global_step", "cross_entropy_nats"])
def test_the_newest_value_counts_and_not_the_largest(seen: tuple[Prometheus, Span], name: str):
    assert answer(seen, latest(name, WHERE)) == NEW[name]


def test_a_sum_takes_what_every_driver_used(seen: tuple[Prometheus, Span]):
    assert answer(seen, latest("device_hours_used", WHERE, take="sum")) == pytest.approx(0.7)


def test_its_curve_is_one(seen: tuple[Prometheus, Span]):
    server, span = seen
    expr = filled(curve("global_step", WHERE).expr, {"run": "moved"})
    ((_, pairs),) = server.between(expr, span.start, span.end, span.scrape)
    assert {value for _, value in pairs} == {900.0, 700.0}
