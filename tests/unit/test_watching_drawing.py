"""Charts of the page: lines where their numbers are, breaks where there are none, names apart."""

import math
from dataclasses import replace
from datetime import UTC
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.telemetry.panels.panel import VERDICT_WORDS, Panel, Target, View
from service.watching.asking import Question
from service.watching.canvas import FINE, WIDTH
from service.watching.charts import chart
from service.watching.curves import Curve, curves, runs, stacked, stretches
from service.watching.frame import Frame
from service.watching.legends import tokens
from service.watching.limits import spread
from service.watching.marks import Mark, captions, decisions
from service.watching.plots import HEIGHT, area_paths, dots_path, line_path, plot
from service.watching.prometheus import Series
from service.watching.scales import Linear
from service.watching.span import Span, spanning
from service.watching.timelines import timeline
from tests.pages import Element, found, lines_of, text

SPAN = Span(1000.0, 10.0, 11, 10.0)
FRAME = Frame(SPAN, UTC, ("one", "two"), ())
UNIT = Linear(0.0, 1.0)
PANEL = Panel(
    title="A panel",
    kind="lines",
    unit="none",
    text="",
    targets=(Target("a", "{{trial}}"), Target("b", "limit", True, "red")),
)

value = st.one_of(
    st.none(),
    st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf, -math.inf]),
    st.floats(0.0, 1.0),
)
values = st.lists(value, min_size=2, max_size=40).map(tuple)


def curve(*numbers: float | None, name: str = "one", **more: object) -> Curve:
    return replace(Curve(name, name, "", numbers, "c0"), **more)


def series(trial: str, *numbers: float, **labels: str) -> Series:
    points = tuple(zip(SPAN.times, numbers, strict=False))
    return Series({"trial": trial, **labels}, points)


def where(place: int, number: float, count: int) -> tuple[float, float]:
    """Where a number belongs on a canvas whose axis goes from 0 to 1."""
    return place * WIDTH / (count - 1), (1 - number) * HEIGHT * FINE


@given(values)
@example((0.0, 0.0, 0.0, 1.0))
@example((0.25, None, 0.5, 0.5, math.nan, 1.0, 1.0))
def test_a_line_goes_through_every_number_and_through_nothing_else(
    numbers: tuple[float | None, ...],
):
    drawn = lines_of(line_path(numbers, UNIT))
    dots = lines_of(dots_path(numbers, UNIT).replace("h0", ""))
    expected: list[list[tuple[float, float]]] = []
    for place, number in enumerate(numbers):
        if number is None or not math.isfinite(number):
            expected.append([])
            continue
        expected = expected or [[]]
        expected[-1].append(where(place, number, len(numbers)))
    pieces = [piece for piece in expected if piece]
    assert len(dots) == sum(len(piece) == 1 for piece in pieces)
    for line, piece in zip(drawn, (p for p in pieces if len(p) > 1), strict=True):
        assert line[0] == pytest.approx(piece[0], abs=1)
        assert line[-1] == pytest.approx(piece[-1], abs=1)
        for x, y in piece:
            assert height_at(line, round(x)) == pytest.approx(y, abs=1)
    for dot, piece in zip(dots, (p for p in pieces if len(p) == 1), strict=True):
        assert dot == [pytest.approx(piece[0], abs=1)]


def height_at(line: list[tuple[float, float]], x: float) -> float:
    """Where a line is at `x`, between its points too."""
    for (left, top), (right, bottom) in pairwise(line):
        if left <= x <= right:
            return top if right == left else top + (bottom - top) * (x - left) / (right - left)
    raise AssertionError(f"{x} is not on the line")


def test_a_lone_number_is_a_dot_and_not_a_line():
    numbers = (None, 0.5, None)
    assert line_path(numbers, UNIT) == ""
    assert dots_path(numbers, UNIT) == f"M{WIDTH // 2} {HEIGHT * FINE // 2}h0"


def test_a_level_part_has_only_its_ends():
    assert len(lines_of(line_path((0.5,) * 100, UNIT))[0]) == 2


def test_the_canvas_is_filled_from_the_first_moment_to_the_last():
    (line,) = lines_of(line_path((0.0, 0.3, 1.0), UNIT))
    assert line[0] == (0, HEIGHT * FINE)
    assert line[-1] == (WIDTH, 0)


def test_gaps_and_odd_numbers_break_a_line():
    assert stretches((1.0, None, 2.0, math.nan, 3.0, 4.0, math.inf)) == [(0, 1), (2, 3), (4, 6)]


def test_curves_are_put_on_one_another_within_a_trial():
    pairs = [("one", (1.0, 2.0, None)), ("two", (5.0, 5.0, 5.0)), ("one", (0.5, math.nan, 1.0))]
    shown = [curve(*numbers, name=trial) for trial, numbers in pairs]
    assert stacked(shown) == [(1.0, 2.0, None), (5.0, 5.0, 5.0), (1.5, 2.0, 1.0)]


def test_an_area_lies_between_its_edge_and_the_one_below():
    lower, upper = area_paths([(0.25, 0.25), (0.5, 1.0)], UNIT)
    bottom, quarter = HEIGHT * FINE, round(0.75 * HEIGHT * FINE)
    assert lower == f"M0 {quarter} {WIDTH} {quarter} {WIDTH} {bottom} 0 {bottom}z"
    assert upper == f"M0 {bottom // 2} {WIDTH} 0 {WIDTH} {quarter} 0 {quarter}z"


@given(
    st.lists(st.floats(-50, 200), min_size=1, max_size=8),
    st.floats(1, 30),
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_names_are_spread_apart_and_no_other_way_is_nearer(
    wanted: list[float], gap: float, other: list[float]
):
    low, high = 0.0, 150.0
    places = spread(wanted, gap, low, high)
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    in_order = [places[n] for n in order]
    assert all(low - 1e-6 <= place <= high + 1e-6 for place in places)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(in_order))
    # Any other way to place them: gaps as asked for, the rest of the room dealt out anyhow.
    room = high - low - gap * (len(wanted) - 1)
    cuts = sorted(other[: len(wanted)])
    rival = [low + room * cut + gap * n for n, cut in enumerate(cuts)]
    ideal = [wanted[n] for n in order]
    assert cost(in_order, ideal) <= cost(rival, ideal) + 1e-6


def cost(places: list[float], ideal: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(places, ideal, strict=True))


def test_names_that_do_not_touch_stay_where_they_want_to_be():
    assert spread([100.0, 10.0, 50.0], 13.0, 0.0, 150.0) == [100.0, 10.0, 50.0]


@given(st.lists(st.sampled_from(["a", "b", "-", "in force"]), min_size=1, max_size=60))
def test_the_scripts_words_are_packed_without_loss(said: list[str]):
    unpacked = [
        word
        for token in tokens(said).split("|")
        for word, _, count in [token.partition("*")]
        for _ in range(int(count or 1))
    ]
    assert unpacked == said


def test_runs_are_found():
    assert runs(["a", "a", "b", "a"]) == [(0, 2), (2, 3), (3, 4)]
    assert runs([]) == []


@given(st.floats(1e9, 2e9), st.floats(0.0, 1e6), st.floats(0.5, 600.0), st.integers(1, 400))
def test_a_span_goes_from_the_first_sample_to_the_last_in_equal_steps(
    first: float, length: float, scrape: float, most: int
):
    span = spanning(first, first + length, scrape, most)
    assert span.end == pytest.approx(first + length, abs=1e-3)
    assert 2 <= span.count <= most + 1
    assert len(span.times) == span.count
    if length >= scrape:
        assert 0 <= span.start - first <= 0.001 * span.count + 1e-5
        assert span.step >= min(scrape / 2, length)
    assert span.place(span.times[0]) == pytest.approx(0)
    assert span.place(span.times[-1]) == pytest.approx(1, abs=1e-4)
    assert [span.nearest(at) for at in span.times] == list(range(span.count))


def answers(*found: Series, limit: float | None = None) -> dict[Question, tuple[Series, ...]]:
    bound = () if limit is None else (Series({}, tuple((at, limit) for at in SPAN.times)),)
    return {Question("a", False): found, Question("b", False): bound}


def test_a_trial_keeps_its_colour_whichever_trials_a_panel_shows():
    trials = ("one", "two", "three")
    all_three = curves(PANEL, answers(*(series(t, 1.0) for t in trials)), SPAN, trials)
    only_two = curves(PANEL, answers(series("two", 1.0), series("three", 1.0)), SPAN, trials)
    paints = {c.trial: c.paint for c in all_three}
    assert len(set(paints.values())) == 3
    assert all(paints[c.trial] == c.paint for c in only_two)


def test_of_two_variants_the_first_is_broad_so_that_equal_lines_are_both_seen():
    panel = replace(PANEL, targets=(Target("a", "asked {{trial}}"), Target("b", "got {{trial}}")))
    found = {
        Question("a", False): (series("one", 1.0), series("two", 1.0)),
        Question("b", False): (series("one", 1.0), series("two", 1.0)),
    }
    paints = [c.paint for c in curves(panel, found, SPAN, ("one", "two"))]
    assert paints == ["c0 broad", "c1 broad", "c0", "c1"]


def test_the_only_trial_is_not_named_where_a_curve_has_another_name():
    panel = replace(PANEL, targets=(Target("a", "{{kind}} {{trial}}"), Target("b", "{{trial}}")))
    found = {
        Question("a", False): (series("main", 1.0, kind="text"),),
        Question("b", False): (series("main", 1.0),),
    }
    assert [c.name for c in curves(panel, found, SPAN, ("main",))] == ["text", "main"]


def limits(*numbers: float) -> Element:
    """A chart in which each of several trials has a limit of its own."""
    trials = tuple(f"t_{n}" for n in range(len(numbers)))
    panel = replace(PANEL, targets=(Target("a", "{{trial}}"), Target("b", "limit {{trial}}", True)))
    lines = tuple(series(t, *[n] * SPAN.count) for t, n in zip(trials, numbers, strict=True))
    known = {Question("a", False): lines, Question("b", False): lines}
    return chart(panel, plot(panel, curves(panel, known, SPAN, trials)), FRAME)


def test_limits_of_several_trials_have_their_trials_colours():
    figure = limits(0.25, 0.5)
    names = [(e.get("class", "").split()[-1], text(e)) for e in found(figure, "text", "limit")]
    assert names == [("c0", "limit"), ("c0", "0.250"), ("c1", "limit"), ("c1", "0.500")]
    assert found(figure, "path", "bound", "c1")


def test_limits_that_are_equal_are_named_once_and_for_nobody():
    names = found(limits(0.5, 0.5, 0.5), "text", "limit")
    assert [text(name) for name in names] == ["limit", "0.500"]
    assert all("k-gray" in name.get("class", "") for name in names)


def test_more_limits_than_have_room_are_named_once():
    names = found(limits(*(n / 100 for n in range(1, 40))), "text", "limit")
    assert [text(name) for name in names] == ["limit", "0.390"]


def test_series_of_the_same_name_are_both_drawn():
    shown = curves(PANEL, answers(series("one", 1.0), series("one", 2.0)), SPAN, ("one",))
    assert [c.values[0] for c in shown] == [1.0, 2.0]
    figure = chart(PANEL, plot(PANEL, shown), FRAME)
    assert len(found(figure, "path", "dots")) == 2


def drawn(*found_series: Series, limit: float | None = None, panel: Panel = PANEL) -> Element:
    shown = curves(panel, answers(*found_series, limit=limit), SPAN, FRAME.trials)
    return chart(panel, plot(panel, shown), FRAME)


def test_a_limit_is_dashed_across_the_chart_and_named_where_it_ends():
    figure = drawn(series("one", 0.0, 1.0), limit=0.5)
    (path,) = found(figure, "path", "bound", "line")
    (line,) = lines_of(path.get("d", ""))
    (leader,) = found(figure, "path", "leader")
    assert [x for x, _ in line] == [0, WIDTH]
    assert line[0][1] == line[-1][1]
    assert leader.get("d", "").startswith(f"M1 {line[0][1] / FINE:.1f}L")
    assert [text(name) for name in found(figure, "text", "limit")] == ["limit", "0.500"]
    assert found(figure, "text", "limit", "k-red")


def test_ticks_stand_where_the_line_has_their_values():
    figure = drawn(series("one", *(n / 10 for n in range(11))), limit=0.0)
    (path,) = found(figure, "path", "line", "c0")
    (line,) = lines_of(path.get("d", ""))
    top = float(found(figure, "svg", "canvas")[0].get("y", ""))
    for tick in found(figure, "text", "value"):
        y = (float(tick.get("y", "")) - 4 - top) * FINE
        assert height_at(line, float(tick.text or "") * WIDTH) == pytest.approx(y, abs=2)


def test_nan_and_infinite_values_are_marked_with_their_words():
    figure = drawn(series("one", 0.0, math.nan, math.nan, 1.0, math.inf, -math.inf, 0.0))
    (path,) = found(figure, "path", "odd")
    assert {text(word) for word in found(figure, "text", "odd")} == {"NaN", "+Inf", "-Inf"}
    step, bottom = WIDTH // 10, HEIGHT * FINE
    assert path.get("d") == (
        f"M{step} {bottom}H{2 * step}M{4 * step} 0H{4 * step}M{5 * step} {bottom}H{5 * step}"
    )
    assert not found(figure, "path", "line")
    assert found(figure, "path", "dots")[0].get("d", "").count("M") == 3


def test_a_curve_of_nothing_but_nan_is_still_a_chart():
    figure = drawn(series("one", math.nan, math.nan))
    assert not found(figure, "path", "line")
    assert text(found(figure, "b", "value")[0]) == "NaN"


def test_who_cannot_see_a_chart_is_told_its_title_last_values_and_limits():
    figure = drawn(series("one", 0.0, 0.25), series("two", 0.75), limit=0.5)
    (svg,) = found(figure, "svg", "plot")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == (
        "A panel. Last values: one 0.250, two 0.750. Limits: limit 0.500."
    )


def mark_view() -> View:
    return View("", "", "", (), (Target("marks"),))


def marks_of(*told: tuple[str, str, float]) -> tuple[Mark, ...]:
    found_series: dict[tuple[str, str], list[float]] = {}
    for trial, verdict, at in told:
        found_series.setdefault((trial, verdict), []).append(at)
    given_answers = {
        Question("marks", False): tuple(
            Series(
                {"trial": trial, "decision": verdict},
                tuple((at, at * 1000) for at in times),
            )
            for (trial, verdict), times in found_series.items()
        )
    }
    return decisions(mark_view(), given_answers, SPAN)


def test_a_verdict_that_is_said_again_has_one_mark_and_each_turn_has_its_own():
    found_marks = marks_of(
        ("one", "WAIT", 1000.0),
        ("one", "GO", 1010.0),
        ("one", "GO", 1020.0),
        ("one", "RAISE", 1030.0),
        ("one", "RAISE", 1040.0),
        ("one", "GO", 1050.0),
        ("two", "GO", 1020.0),
    )
    assert [(m.trial, m.verdict, m.time, m.is_turn) for m in found_marks] == [
        ("one", "WAIT", 1000.0, False),
        ("one", "GO", 1010.0, True),
        ("two", "GO", 1020.0, True),
        ("one", "RAISE", 1030.0, True),
        ("one", "RAISE", 1040.0, True),
        ("one", "GO", 1050.0, False),
    ]


def test_marks_outside_of_the_span_are_left_out():
    assert [m.time for m in marks_of(("one", "GO", 900.0), ("one", "NO_GO", 1050.0))] == [1050.0]


def test_of_words_that_would_touch_the_most_urgent_stays():
    near = [Mark(1050.0, "GO", "one"), Mark(1051.0, "NO_GO", "two"), Mark(1000.0, "GO", "two")]
    assert [word.verdict for word in captions(near, SPAN)] == ["GO", "NO_GO"]


@given(
    st.lists(
        st.tuples(st.floats(1000, 1100), st.sampled_from([w.text for w in VERDICT_WORDS])),
        max_size=30,
    )
)
def test_no_two_words_touch_on_any_chart_that_shows_them(told: list[tuple[float, str]]):
    chosen = captions([Mark(at, verdict, "one") for at, verdict in told], SPAN)
    for width, shown in ((215, [""]), (265, ["", " middle"]), (440, ["", " middle", " fine"])):
        visible = [word for word in chosen if word.size in shown]
        for left, right in pairwise(visible):
            letters = (len(left.verdict) + len(right.verdict)) / 2
            assert (right.place - left.place) * width >= 7 * letters


def test_an_upright_line_stands_at_the_time_of_its_decision():
    frame = replace(FRAME, marks=(Mark(1025.0, "NO_GO", "one"), Mark(1050.0, "HOLD", "one", False)))
    shown = curves(PANEL, answers(series("one", 0.0, 1.0)), SPAN, FRAME.trials)
    figure = chart(PANEL, plot(PANEL, shown), frame)
    paths = {p.get("class"): p.get("d") for p in found(figure, "path", "mark")}
    assert paths["mark k-red"] == f"M{WIDTH // 4} 0v{HEIGHT * FINE}"
    assert paths["mark k-yellow"] == f"M{WIDTH // 2} 0v{HEIGHT * FINE // 20}"
    (word,) = found(figure, "text", "word")
    assert (text(word), word.get("x")) == ("NO_GO", "25.00%")


STATES = replace(PANEL, kind="states", words=VERDICT_WORDS, targets=(Target("a", "{{trial}}"),))


def test_a_timeline_has_a_bar_for_as_long_as_a_state_lasts_and_none_in_a_gap():
    states = {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0, 7: 6.0}
    points = tuple((SPAN.times[place], state) for place, state in states.items())
    shown = curves(
        STATES, {Question("a", False): (Series({"trial": "one"}, points),)}, SPAN, ("one", "two")
    )
    figure = timeline(STATES, shown, FRAME)
    bars = [
        (text(bar), float(bar.get("x", "0%")[:-1]), float(bar.get("width", "0%")[:-1]))
        for bar in found(figure, "rect", "bar")
    ]
    assert bars == [
        ("WAIT", 0.0, pytest.approx(25.0)),
        ("GO", pytest.approx(25.0), pytest.approx(20.0)),
        ("NO_GO", pytest.approx(65.0), pytest.approx(10.0)),
    ]
    assert "one NO_GO" in text(figure)
    assert found(figure, "rect", "k-red")


def test_a_state_that_lasted_a_moment_is_wide_enough_to_be_seen():
    span = Span(0.0, 1.0, 5000, 1.0)
    numbers = tuple((at, 1.0 if at == 4999 else 0.0) for at in span.times)
    shown = curves(
        STATES, {Question("a", False): (Series({"trial": "one"}, numbers),)}, span, ("one",)
    )
    last = found(timeline(STATES, shown, replace(FRAME, span=span)), "rect", "bar")[-1]
    assert float(last.get("width", "0%")[:-1]) >= 0.5
