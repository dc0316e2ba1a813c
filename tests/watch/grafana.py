"""What Grafana does with a dashboard's JSON before it asks Prometheus."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.watch.prometheus import Prometheus, Series


@dataclass(frozen=True, slots=True)
class Span:
    """The time shown, in Unix seconds, and the scrape interval in seconds."""

    start: float
    end: float
    scrape: float

    @property
    def variables(self) -> dict[str, str]:
        """Grafana's own, which follow from the time."""
        rate = 4 * self.scrape
        return {"__range": f"{self.end - self.start:g}s", "__rate_interval": f"{rate:g}s"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One query of a panel. place: panel title and letter."""

    place: str
    expr: str
    is_instant: bool


def panels_of(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries_of(dashboard: Mapping[str, Any]) -> Iterator[Asked]:
    """Every query of panels and annotations."""
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            place = f"{panel['id']} {panel['title']} {target['refId']}"
            yield Asked(place, target["expr"], target["instant"])
    for mark in dashboard["annotations"]["list"]:
        yield Asked(mark["name"], mark["target"]["expr"], False)


def filled(text: str, variables: Mapping[str, str]) -> str:
    """`text` with every variable replaced; KeyError names an unknown one."""
    return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: variables[m[1] or m[2]], text)


def ask(server: Prometheus, asked: Asked, chosen: Mapping[str, str], span: Span) -> list[Series]:
    expr = filled(asked.expr, {**chosen, **span.variables})
    if asked.is_instant:
        return server.at(expr, span.end)
    return server.between(expr, span.start, span.end, span.scrape)


def empty(
    server: Prometheus, dashboard: Mapping[str, Any], chosen: Mapping[str, str], span: Span
) -> list[str]:
    """Places of the queries that give no data."""
    return [q.place for q in queries_of(dashboard) if not ask(server, q, chosen, span)]


def offered(
    server: Prometheus, variable: Mapping[str, Any], chosen: Mapping[str, str], span: Span
) -> list[str]:
    """The values among which a query variable lets people choose."""
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
    assert match, variable["query"]
    selector = filled(match[1], {**chosen, **span.variables})
    return server.label_values(match[2], selector, span.start, span.end)
