"""The time that a page shows, and where the samples of a run begin and end."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from service.watching.prometheus import Prometheus

_LOOK_S = (5.0, 240.0)
"""Least and largest step of the first look; below Prometheus' lookback of 5 minutes."""
_LOOKS = 5000
"""The first look takes no more steps than these, where the largest step allows it."""
_RECENT_S = 600.0
_USUAL_SCRAPE_S = 15.0


@dataclass(frozen=True, slots=True)
class Span:
    """`count` moments, at least 2, from `start` in Unix seconds, `step` seconds apart.

    scrape: seconds between two samples.
    """

    start: float
    step: float
    count: int
    scrape: float

    @property
    def end(self) -> float:
        return self.start + self.length

    @property
    def length(self) -> float:
        return (self.count - 1) * self.step

    @property
    def times(self) -> tuple[float, ...]:
        return tuple(self.start + place * self.step for place in range(self.count))

    def place(self, time: float) -> float:
        """Where a time lies: 0 at the start, 1 at the end."""
        return (time - self.start) / self.length

    def nearest(self, time: float) -> int:
        """The number of the moment that is nearest; outside of 0 to `count` - 1 there is none."""
        return round((time - self.start) / self.step)


def spanning(first: float, last: float, scrape: float, most: int) -> Span:
    """From the first sample to the last in at most `most` + 1 moments, a scrape apart or more."""
    steps = min(max(round((last - first) / scrape), 1), most)
    step = (last - first) / steps if last > first else scrape
    # Prometheus counts in ms, so the step is cut there; the last sample stays the last moment.
    step = max(int(step * 1000), 1) / 1000
    return Span(last - steps * step, step, steps + 1, scrape)


def find_span(
    server: Prometheus, selector: str, *, since: float, now: float, most: int
) -> Span | None:
    """From the first sample of `selector` after `since` to its last; None without any.

    selector: series that have a sample at every scrape.
    """
    look = min(max((now - since) / _LOOKS, _LOOK_S[0]), _LOOK_S[1])
    seen = f"timestamp({selector})[{round(now - since)}s:{round(look)}s]"
    # The first look is at whole steps, in none of which a young run may have been there.
    newest = f"timestamp({selector})"
    early = server.at(f"min(min_over_time({seen}) or {newest})", now)
    late = server.at(f"max(max_over_time({seen}) or {newest})", now)
    if not early or not late:
        return None
    first, last = early[0].points[0][1], late[0].points[0][1]
    beginning = _samples(server, selector, first, look)
    ending = _samples(server, selector, min(last + look, now), look + _RECENT_S)
    first = min((time for times in beginning for time in times if time >= since), default=first)
    last = max((time for times in ending for time in times), default=last)
    return spanning(first, last, _interval(ending), most)


def _samples(server: Prometheus, selector: str, end: float, length: float) -> list[list[float]]:
    """Times of the raw samples of each series in the `length` seconds up to `end`."""
    found = server.at(f"{selector}[{length:g}s]", end)
    return [[time for time, _ in series.points] for series in found]


def _interval(samples: list[list[float]]) -> float:
    """Seconds between two samples; the usual ones where there are too few to tell."""
    gaps = [late - early for times in samples for early, late in pairwise(times)]
    return max(median(gaps), 0.001) if gaps else _USUAL_SCRAPE_S
