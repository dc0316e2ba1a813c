"""Numbers as people read them: a panel's unit, and as many digits as say something."""

import math
from dataclasses import dataclass

_DIGITS = 3
_TIMES = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
_BYTES = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0))


@dataclass(frozen=True, slots=True)
class Measure:
    """How the numbers of one panel are shown: value times `factor`, then `unit`.

    decimals: behind the point, None for as many as needed. is_sci: always as 1.5e-3.
    """

    factor: float = 1.0
    unit: str = ""
    decimals: int | None = None
    is_sci: bool = False

    def number(self, value: float) -> str:
        """The number without its unit."""
        if not math.isfinite(value):
            return odd_number(value)
        shown = value * self.factor
        return sci(shown) if self.is_sci else number(shown, self.decimals)

    def text(self, value: float) -> str:
        """The number with its unit."""
        return f"{self.number(value)} {self.unit}" if self.unit else self.number(value)

    def tick(self, value: float, gap: float) -> str:
        """A short number for an axis whose ticks lie `gap` apart; 0 for a logarithmic one."""
        shown = value * self.factor
        return sci(shown) if self.is_sci else short(shown, abs(gap * self.factor))


def measure(unit: str, decimals: int | None, largest: float) -> Measure:
    """The measure of a panel.

    unit: Grafana's id, or text that is put behind the number. largest: the largest number without
    its sign, which decides between s, min and h, and between KiB and MiB.
    """
    match unit:
        case "none":
            return Measure(decimals=decimals)
        case "sci":
            return Measure(is_sci=True)
        case "percentunit":
            return Measure(100.0, "%", decimals)
        case "s":
            return _sized(_TIMES, largest, 1.0, decimals)
        case "h":
            return _sized(_TIMES[1:], largest * 3600.0, 3600.0, decimals)
        case "bytes":
            return _sized(_BYTES, largest, 1.0, decimals)
        case _:
            return Measure(unit=unit, decimals=decimals)


def number(value: float, decimals: int | None = None) -> str:
    """A finite number in some three digits, or with that many decimals.

    One that would be shown as 0 and is not, or that is very long, is written as 1.5e-7.
    """
    size = abs(value)
    if size == 0:
        return "0"
    if decimals is not None and round(size, decimals) > 0 and size < 1e12:
        return f"{value:,.{decimals}f}"
    if decimals is not None or not 1e-4 <= size < 1e7:
        return sci(value)
    behind = max(_DIGITS - 1 - math.floor(math.log10(size)), 0)
    return f"{value:,.{0 if value == round(value) else behind}f}"


def sci(value: float) -> str:
    """A finite number as 1.5e-3."""
    if value == 0:
        return "0"
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{_trimmed(digits)}e{int(power)}"


def short(value: float, gap: float) -> str:
    """A finite number for an axis: its neighbours are `gap` away, or ten times as large for 0."""
    unit = gap or abs(value)
    if value == 0:
        return "0"
    if not 1e-4 < unit < 1e9:
        return sci(value)
    for letter, many in (("M", 1e6), ("k", 1e3)):
        if unit >= many and (gap or unit >= 10 * many):
            return f"{_trimmed(f'{value / many:,.3f}')}{letter}"
    return _trimmed(f"{value:,.{_decimals(unit)}f}") if not gap else f"{value:,.{_decimals(gap)}f}"


def odd_number(value: float) -> str:
    """NaN and the infinite ones."""
    if math.isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


def _decimals(gap: float) -> int:
    """The fewest with which a gap is written exactly, up to 6."""
    for decimals in range(6):
        scaled = gap * 10**decimals
        if scaled > 0.5 and math.isclose(scaled, round(scaled), rel_tol=1e-6):
            return decimals
    return 6


def _sized(
    sizes: tuple[tuple[str, float], ...], largest: float, base: float, decimals: int | None
) -> Measure:
    """In the first size of which the largest value has two; in seconds if it is 0."""
    unit, size = next(
        ((unit, size) for unit, size in sizes if largest >= 2 * size),
        sizes[-1] if largest else next((u, s) for u, s in sizes if s == base),
    )
    return Measure(base / size, unit, decimals)


def _trimmed(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
