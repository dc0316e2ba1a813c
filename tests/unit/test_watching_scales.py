"""Axes and clocks of the page: round ticks, places that can be read back, numbers without lies."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from service.watching.clock import moment, time_ticks, zone_words
from service.watching.scales import LARGEST, Linear, Symlog, scale_of
from service.watching.units import Measure, measure, number, odd_number, sci, short

sizes = st.floats(1e-12, 1e12)
"""Of numbers that are measured; smaller ones are drawn as 0."""
numbers = st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size))
many = st.lists(numbers, min_size=1, max_size=20)
factors = st.sampled_from([1.0, 100.0, 1e3, 1 / 60, 1 / 3600])


def is_round(gap: float) -> bool:
    """1, 2, 2.5 or 5 times a power of ten."""
    digits = gap / 10.0 ** math.floor(math.log10(gap) + 1e-9)
    return any(math.isclose(digits, nice, rel_tol=1e-6) for nice in (1, 2, 2.5, 5, 10))


@given(many, factors, st.booleans())
@example([0.0, 0.1 + 0.2], 1.0, False)
@example([-1e12, 1e12], 100.0, False)
def test_ticks_lie_on_the_axis_and_rise_by_one_round_gap(
    values: list[float], factor: float, whole: bool
):
    scale = scale_of(values)
    ticks = scale.ticks(5, factor, whole=whole)
    assert len(ticks.values) <= 6
    assert ticks.values
    assert is_round(ticks.gap * factor) or (whole and (ticks.gap * factor).is_integer())
    for value in ticks.values:
        assert -1e-6 <= scale.place(value) <= 1 + 1e-6
        shown = value * factor / (ticks.gap * factor)
        assert math.isclose(shown, round(shown), rel_tol=1e-6, abs_tol=1e-6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_ticks_of_counts_are_whole_numbers(values: list[int]):
    scale = scale_of(map(float, values), lowest=0.0)
    for value in scale.ticks(5, 1.0, whole=True).values:
        assert value == pytest.approx(round(value))


@given(many, st.booleans())
def test_every_value_has_a_place_and_the_place_has_that_value(values: list[float], is_symlog: bool):
    scale = scale_of(values, is_symlog=is_symlog)
    largest = max(map(abs, values))
    smallest = min((abs(value) for value in values if value), default=1.0)
    for value in values:
        place = scale.place(value)
        assert -1e-9 <= place <= 1 + 1e-9
        # Below its smallest power of ten a symlog axis is linear: there an error is absolute.
        assert scale.value(place) == pytest.approx(
            value, rel=1e-6, abs=1e-9 * smallest if is_symlog else 1e-6 * largest
        )


@given(st.lists(numbers, min_size=2, max_size=20, unique=True))
def test_a_symlog_axis_rises_with_its_values(values: list[float]):
    scale = scale_of(values, is_symlog=True)
    assume(isinstance(scale, Symlog))
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)


@given(st.floats(1e-6, 1e6), st.integers(1, 8))
def test_on_a_symlog_axis_tenfold_steps_are_equally_long(least: float, powers: int):
    scale = Symlog(0.0, least * 10.0**powers, least)
    places = [scale.place(least * 10.0**power) for power in range(powers + 1)]
    gaps = [after - before for before, after in zip([0.0, *places], places, strict=False)]
    assert gaps == pytest.approx([1 / (powers + 1)] * (powers + 1))


@pytest.mark.parametrize("highest", [1e2, 1e3, 1e4, 1e5])
def test_zero_has_a_tick_on_a_symlog_axis_also_where_ticks_are_thinned(highest: float):
    scale = scale_of([0.0, 1e-8, highest], is_symlog=True)
    ticks = scale.ticks(5, 1.0).values
    assert 0.0 in ticks
    assert len(ticks) <= 7


def test_a_symlog_axis_has_powers_of_ten_and_more_only_where_there_is_room():
    assert scale_of([1e-6, 1.0], is_symlog=True).ticks(5, 1.0).values == pytest.approx(
        (1e-6, 1e-4, 1e-2, 1.0)
    )
    assert scale_of([1.1, 38.0], is_symlog=True).ticks(5, 1.0).values == pytest.approx(
        (1, 2, 5, 10, 20)
    )


@pytest.mark.parametrize("is_symlog", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.0],
        [5.0, 5.0],
        [-3.0],
        [1.0, 1.0 + 1e-15],
        [math.inf, 1.0],
        [-math.inf],
        [1e299, -1e299],
    ],
)
def test_an_axis_of_odd_data_has_a_length_and_a_tick(values: list[float], is_symlog: bool):
    scale = scale_of(values, is_symlog=is_symlog)
    assert scale.value(1.0) > scale.value(0.0)
    assert scale.ticks(5, 1.0).values
    assert all(0 <= scale.place(value) <= 1 for value in values if abs(value) <= LARGEST)


def test_the_ends_of_an_axis_hold_unless_the_data_goes_beyond():
    assert scale_of([0.2, 0.4], lowest=0.0, highest=1.0) == Linear(0.0, 1.0)
    beyond = scale_of([-0.5, 2.0], lowest=0.0, highest=1.0)
    assert beyond.value(0.0) < -0.5
    assert beyond.value(1.0) > 2.0
    assert scale_of([0.0, 0.0], lowest=0.0) == Linear(0.0, pytest.approx(1.04))
    flat = scale_of([1.0], highest=1.0)
    assert flat.value(1.0) == pytest.approx(1.0)
    assert flat.value(0.0) < 1.0


zones = st.integers(-12 * 4, 14 * 4).map(lambda n: timezone(timedelta(minutes=15 * n)))


@given(st.floats(1e9, 2e9), st.floats(2.0, 4e7), zones)
def test_the_clock_ticks_at_round_local_times_inside_the_span(
    start: float, length: float, zone: timezone
):
    ticks = time_ticks(start, start + length, zone)
    times = [tick.time for tick in ticks]
    assert times == sorted(set(times))
    assert all(start <= at <= start + length for at in times)
    for most, named in ((4, [""]), (6, ["", "middle"]), (9, ["", "middle", "fine"])):
        assert len([tick for tick in ticks if tick.size in named]) <= most
    for tick in ticks:
        local = datetime.fromtimestamp(tick.time, zone)
        assert local.microsecond == 0
        shown = {
            local.strftime(form) for form in ("%H:%M:%S", "%H:%M", "%d %b") if shows(form, local)
        }
        assert tick.words in shown


def shows(form: str, local: datetime) -> bool:
    """Whether a form tells the whole truth about a moment."""
    if form == "%d %b":
        return (local.hour, local.minute, local.second) == (0, 0, 0)
    return form == "%H:%M:%S" or local.second == 0


def test_a_span_of_minutes_and_one_of_days_have_words_of_their_kind():
    start = datetime(2026, 11, 21, 14, 0, 5, tzinfo=UTC).timestamp()
    minutes = [t.words for t in time_ticks(start, start + 180, UTC) if not t.size]
    days = [t.words for t in time_ticks(start, start + 3 * 86400, UTC) if not t.size]
    assert minutes == ["14:01", "14:02", "14:03"]
    assert days == ["22 Nov", "23 Nov", "24 Nov"]


def test_moments_are_told_in_the_zone_and_the_zone_is_named():
    zone = timezone(timedelta(hours=5, minutes=30))
    at = datetime(2026, 11, 21, 18, 45, 0, tzinfo=UTC).timestamp()
    assert moment(at, zone) == "22 Nov 2026 00:15:00"
    assert zone_words(at, zone) == "UTC+05:30"
    assert zone_words(at, UTC) == "UTC"


@given(numbers, st.one_of(st.none(), st.integers(0, 5)))
@example(0.5, 0)
def test_a_shown_number_is_the_number_to_its_last_digit(value: float, decimals: int | None):
    shown = number(value, decimals)
    read = float(shown.replace(",", ""))
    rounding = 0.5 * 10.0**-decimals if decimals is not None else 0.0
    assert abs(read - value) <= max(rounding, 0.006 * abs(value)) * (1 + 1e-9)
    assert (read == 0) == (value == 0)


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (0.4123, None, "0.412"),
        (12.345, None, "12.3"),
        (16.0, None, "16"),
        (20000.0, 0, "20,000"),
        (0.000004, 5, "4e-6"),
        (-0.00013, 5, "-0.00013"),
        (-0.0, 2, "0"),
        (3.4e38, 2, "3.4e38"),
    ],
)
def test_numbers_have_as_many_digits_as_say_something(
    value: float, decimals: int | None, shown: str
):
    assert number(value, decimals) == shown


def test_scientific_numbers_are_short():
    assert [sci(value) for value in (1e-2, 3.16e-3, -2.5e10, 0.0)] == [
        "1e-2",
        "3.16e-3",
        "-2.5e10",
        "0",
    ]


@pytest.mark.parametrize(
    ("unit", "largest", "value", "shown"),
    [
        ("none", 1.0, 0.5, "0.500"),
        ("nats", 6.0, 5.99, "5.99 nats"),
        ("percentunit", 1.0, 0.123, "12.3 %"),
        ("sci", 1.0, 1e-2, "1e-2"),
        ("s", 5400.0, 5400.0, "90 min"),
        ("s", 100.0, 12.3, "12.3 s"),
        ("s", 0.4, 0.343, "343 ms"),
        ("s", 1e6, 86400.0, "1 d"),
        ("s", 0.0, 0.0, "0 s"),
        ("h", 20.0, 19.5, "19.5 h"),
        ("h", 300.0, 300.0, "300 h"),
        ("h", 0.05, 0.05, "3 min"),
        ("h", 0.0, 0.0, "0 h"),
        ("bytes", 3e9, 3 * 2.0**30, "3 GiB"),
        ("x", 40.0, 15.0, "15 x"),
    ],
)
def test_a_unit_is_shown_in_the_size_that_fits(unit: str, largest: float, value: float, shown: str):
    assert measure(unit, None, largest).text(value) == shown


def test_what_is_no_number_is_named():
    assert [odd_number(value) for value in (math.nan, math.inf, -math.inf)] == [
        "NaN",
        "+Inf",
        "-Inf",
    ]
    assert Measure(unit="nats").text(math.nan) == "NaN nats"


@given(st.integers(-4, 8), st.sampled_from([1, 2, 2.5, 5]), st.integers(-20, 20))
def test_a_tick_is_written_exactly(power: int, digits: float, count: int):
    gap = digits * 10.0**power
    shown = short(count * gap, gap)
    factor = {"k": 1e3, "M": 1e6}.get(shown[-1], 1.0)
    assert float(shown.rstrip("kM").replace(",", "")) * factor == pytest.approx(count * gap)
    assert len(shown) <= 8
