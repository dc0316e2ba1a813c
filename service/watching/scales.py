"""Axes: where a value lies, and which values are worth a tick."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

LARGEST = 1e300
"""Beyond it a value counts as infinite, so that differences stay finite."""
_PAD = 0.04
"""Part of the axis that stays free above and below the data."""
_SMALLEST = 1e-9
"""Of a symlog axis: below it a value is drawn as if linear."""
_FLAT = 1e-9
"""Part of a value; data that differs by less is one number."""
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


class Scale(Protocol):
    """From a value to its place on an axis, 0 at the low end and 1 at the high, and back."""

    def place(self, value: float) -> float: ...

    def value(self, place: float) -> float: ...

    def ticks(self, most: int, factor: float, *, whole: bool = False) -> "Ticks":
        """Values on the axis that are round when shown times `factor`, at most `most` + 1.

        whole: numbers without decimals, unless the axis is shorter than 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ticks:
    """Values, rising. gap: between two of them, 0 where they rise tenfold."""

    values: tuple[float, ...]
    gap: float


@dataclass(frozen=True, slots=True)
class Linear:
    low: float
    high: float

    def place(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        return self.low + place * (self.high - self.low)

    def ticks(self, most: int, factor: float, *, whole: bool = False) -> Ticks:
        low, high = self.low * factor, self.high * factor
        gap = _nice_gap(high - low, most)
        if whole and high - low >= 1:
            gap = float(math.ceil(gap))
        first, last = math.ceil(low / gap - 1e-6), math.floor(high / gap + 1e-6)
        values = (n * gap / factor for n in range(first, last + 1))
        return Ticks(tuple(values), gap / factor)


@dataclass(frozen=True, slots=True)
class Symlog:
    """Tenfold steps on both sides of zero; linear between -`least` and `least`, > 0."""

    low: float
    high: float
    least: float

    def place(self, value: float) -> float:
        low, high = self._bent(self.low), self._bent(self.high)
        return (self._bent(value) - low) / (high - low)

    def value(self, place: float) -> float:
        low, high = self._bent(self.low), self._bent(self.high)
        bent = low + place * (high - low)
        size = abs(bent)
        return math.copysign(self.least * (size if size <= 1 else 10.0 ** (size - 1)), bent)

    def ticks(self, most: int, factor: float, *, whole: bool = False) -> Ticks:
        """Powers of ten, with some between them where they are few, thinned where they are many."""
        found = [self._round_numbers(digits) for digits in ((1, 2, 5), (1, 3), (1,))]
        if len(found[0]) < 2:
            return Linear(self.low, self.high).ticks(most, factor, whole=whole)
        values = next((some for some in found if len(some) <= most + 1), found[-1])
        return Ticks(_thinned(values, most + 1), 0.0)

    def _bent(self, value: float) -> float:
        size = abs(value) / self.least
        return math.copysign(size if size <= 1 else 1 + math.log10(size), value)

    def _round_numbers(self, digits: tuple[int, ...]) -> list[float]:
        # With zero on the axis, what is smaller than `least` lies close to it.
        lowest = round(math.log10(self.least)) - (self.low > 0 or self.high < 0)
        highest = math.ceil(math.log10(max(abs(self.low), abs(self.high), self.least))) + 1
        sizes = [d * 10.0**power for power in range(lowest, highest) for d in digits]
        found = [-size for size in reversed(sizes)] + [0.0] + sizes
        return [value for value in found if self.low <= value <= self.high]


def scale_of(
    values: Iterable[float],
    *,
    lowest: float | None = None,
    highest: float | None = None,
    is_symlog: bool = False,
) -> Scale:
    """An axis on which all finite `values` lie, and `lowest` and `highest` too.

    lowest, highest: ends that hold where the data does not go beyond; on a symlog axis they do
    not count, since it has no use for empty powers of ten.
    """
    found = [value for value in values if abs(value) <= LARGEST]
    if is_symlog:
        return _symlog(found)
    low, high = _ends(found, lowest, highest)
    room = _PAD * (high - low)
    is_low_end = lowest is not None and low == lowest
    is_high_end = highest is not None and high == highest
    return Linear(low if is_low_end else low - room, high if is_high_end else high + room)


def _ends(found: list[float], lowest: float | None, highest: float | None) -> tuple[float, float]:
    """Low and high end, apart."""
    fixed = [end for end in (lowest, highest) if end is not None]
    low, high = min(found + fixed, default=0.0), max(found + fixed, default=1.0)
    if high - low > _FLAT * max(abs(low), abs(high)):
        return low, high
    room = abs(low) / 10 or 1.0
    return (
        low if lowest is not None and low == lowest else low - room,
        high if highest is not None and high == highest and low != lowest else high + room,
    )


def _symlog(found: list[float]) -> Scale:
    sizes = [abs(value) for value in found if value]
    if not sizes:
        return Linear(0.0, 1.0)
    least = max(10.0 ** math.floor(math.log10(min(sizes))), _SMALLEST)
    low, high = min(found), max(found)
    if high - low <= _FLAT * max(abs(low), abs(high)):
        low, high = sorted((low / 2, low * 2))
    tight = Symlog(low, high, least)
    return Symlog(tight.value(-_PAD), tight.value(1 + _PAD), least)


def _nice_gap(length: float, most: int) -> float:
    """The smallest round gap of which at most `most` fit into the length."""
    power = 10.0 ** math.floor(math.log10(length / most))
    return next(nice * power for nice in _NICE if nice * power >= length / most * (1 - 1e-9))


def _thinned(values: list[float], most: int) -> tuple[float, ...]:
    """Every n-th from the top, and zero, which people look for."""
    every = math.ceil(len(values) / most)
    kept = set(values[::-1][::every]) | ({0.0} & set(values))
    return tuple(sorted(kept))
