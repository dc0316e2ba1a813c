"""Moments in words, and round moments for an axis. Times are Unix seconds."""

from dataclasses import dataclass
from datetime import datetime, tzinfo

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR for n in (1, 2, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 14, 28, 56, 112, 364)),
)
_SIZES = ((4, ""), (6, "middle"), (9, "fine"))
"""Words such as 14:05 that fit below a chart on a phone and below wider ones, with their class."""


@dataclass(frozen=True, slots=True)
class TimeTick:
    """A round moment. size: class of the charts that have room for its words."""

    time: float
    words: str
    size: str


def time_ticks(start: float, end: float, zone: tzinfo) -> tuple[TimeTick, ...]:
    """Round moments of `zone` from `start` to `end`, in time; wide charts have room for more."""
    ticks: dict[float, TimeTick] = {}
    coarser = 0
    for most, size in _SIZES:
        fitting = (s for s in _STEPS if coarser % s == 0 and _fits(start, end, s, zone, most))
        coarser = next(fitting, coarser or _STEPS[-1])
        for at in _moments(start, end, coarser, zone):
            ticks.setdefault(at, TimeTick(at, _words(at, coarser, zone), size))
    return tuple(ticks[at] for at in sorted(ticks))


def moment(time: float, zone: tzinfo) -> str:
    """21 Nov 2026 14:05:30."""
    return f"{_local(time, zone):%d %b %Y %H:%M:%S}"


def time_of_day(time: float, zone: tzinfo) -> str:
    """14:05:30."""
    return f"{_local(time, zone):%H:%M:%S}"


def zone_words(time: float, zone: tzinfo) -> str:
    """The zone's distance from Greenwich at that time: UTC, UTC+02:00."""
    offset = f"{_local(time, zone):%z}"
    return "UTC" if offset in ("", "+0000", "-0000") else f"UTC{offset[:3]}:{offset[3:5]}"


def _fits(start: float, end: float, step: int, zone: tzinfo, most: int) -> bool:
    is_long = step < _MINUTE or step >= _DAY
    return (end - start) / step < 100 and len(_moments(start, end, step, zone)) <= most - is_long


def _moments(start: float, end: float, step: int, zone: tzinfo) -> list[float]:
    """Multiples of `step` on the clock of the zone."""
    offset = _local(start, zone).utcoffset()
    shift = offset.total_seconds() if offset else 0.0
    first = int(-(-(start + shift) // step))
    last = int((end + shift) // step)
    return [number * step - shift for number in range(first, last + 1)]


def _words(time: float, step: int, zone: tzinfo) -> str:
    local = _local(time, zone)
    if step >= _DAY or (step >= _MINUTE and local.hour == local.minute == 0):
        return f"{local:%d %b}"
    return f"{local:%H:%M}" if step >= _MINUTE else f"{local:%H:%M:%S}"


def _local(time: float, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(time, zone)
