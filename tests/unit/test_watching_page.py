"""The page as a whole: well-formed, nothing from outside, and names from outside stay text."""

import base64
import hashlib
import json
import math
import random
import re
import tomllib
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.causes import WORDS
from service.telemetry.panels.fleet import FLEET_VIEW
from service.telemetry.panels.panel import PREFIX, RUN, Panel, Target, metrics_in
from service.telemetry.panels.run import RUN_VIEW
from service.watching.asking import Answers, Question, moments, question
from service.watching.frame import Frame
from service.watching.marks import decisions
from service.watching.markup import clean, code_words, element, markup
from service.watching.page import About, draw
from service.watching.panels import card
from service.watching.prometheus import Series
from service.watching.span import Span
from tests.pages import Card, Element, cards, found, invented, main_of, tags, text

EVIL = "</script><img src=x onerror=alert(1)>"
ODD = '试验 "3" \\ a & \' ]]> \x00 \x1b'
LAST = "\U0010ffff"
"""A name behind which no other is sorted."""
SPAN = Span(1_700_000_000.0, 15.0, 40, 15.0)
ABOUT = About("a", "Prometheus 2.42.0 at http://127.0.0.1:9090", SPAN.end + 20, 0.0)


def drawn(*trials: str, answers: Answers | None = None, about: About = ABOUT) -> str:
    known = invented(RUN_VIEW, SPAN, trials) if answers is None else answers
    marks = decisions(RUN_VIEW, known, SPAN)
    return draw(RUN_VIEW, known, Frame(SPAN, UTC, trials, marks), about)


PAGE = drawn("one", "two")


def test_every_row_and_panel_of_the_view_is_there_in_its_order():
    main = main_of(PAGE)
    assert [text(h) for h in main.iter("h2")] == [row.title for row in RUN_VIEW.rows]
    shown = [Card(article).title for article in main.iter("article")]
    assert shown == [panel.title for panel in RUN_VIEW.panels]
    assert [a.get("href") for a in main.iter("a")] == [
        f"#row{n}" for n in range(len(RUN_VIEW.rows))
    ]
    assert [s.get("id") for s in main.iter("section")] == [
        f"row{n}" for n in range(len(RUN_VIEW.rows))
    ]


def test_a_panel_is_as_wide_as_the_view_says():
    for article, panel in zip(main_of(PAGE).iter("article"), RUN_VIEW.panels, strict=True):
        assert f"w{panel.width}" in article.get("class", "").split()


def test_a_panel_with_answers_has_a_picture_or_a_table_of_them():
    for article, panel in zip(main_of(PAGE).iter("article"), RUN_VIEW.panels, strict=True):
        drawn_parts = [*found(article, "svg", "plot"), *article.iter("table")]
        assert drawn_parts, panel.title
        assert not Card(article).is_empty


def test_every_chart_tells_its_title_to_who_cannot_see_it():
    for article in main_of(PAGE).iter("article"):
        for svg in found(article, "svg", "plot"):
            assert svg.get("role") == "img"
            assert (svg.get("aria-label") or "").startswith(Card(article).title)


def test_what_a_panel_means_is_a_click_away():
    for article, panel in zip(main_of(PAGE).iter("article"), RUN_VIEW.panels, strict=True):
        (meaning,) = found(article, "details", "meaning")
        said = text(meaning)
        assert " ".join(panel.text.replace("`", "").split()) in said
        assert all(PREFIX + name in said for name in panel.metrics)
        assert all(WORDS[cause][0] in said for cause in panel.causes)


def test_a_panel_without_data_says_so_and_what_it_asked_for():
    nothing: Answers = dict.fromkeys(invented(RUN_VIEW, SPAN, ()), ())
    page = drawn("one", answers=nothing)
    for article, panel in zip(main_of(page).iter("article"), RUN_VIEW.panels, strict=True):
        (empty,) = found(article, "p", "empty")
        assert text(empty).startswith("No data")
        for target in panel.targets:
            if not target.is_bound:
                assert all(PREFIX + name in text(empty) for name in metrics_in(target.expr))


def test_limits_alone_are_no_data():
    panel = next(p for p in RUN_VIEW.panels if p.title == "Cross-entropy over ln C")
    answers: dict[Question, tuple[Series, ...]] = {}
    for target in panel.targets:
        line = Series({}, tuple((at, 0.5) for at in SPAN.times))
        answers[question(panel, target)] = (line,) if target.is_bound else ()
    made = card(panel, answers, Frame(SPAN, UTC, (), ()), run="a", now=SPAN.end)
    assert Card(made).is_empty


@pytest.mark.parametrize("name", [EVIL, ODD, "a\"onmouseover='b", "&lt;b&gt;", "{{trial}}", "`"])
def test_names_from_outside_stay_text(name: str):
    about = replace(ABOUT, run=name, source=name)
    page = drawn(name, LAST, about=about)
    main = main_of(page)
    shown = " ".join(clean(name).split())
    assert text(next(main.iter("h1"))) == shown
    assert shown in {text(span) for span in found(main, "span", "trial")}
    assert json.loads(main.get("data-marks") or "")[0][1].startswith("GO ")
    plain = [(tag, sorted(a)) for tag, a in tags(drawn("one", LAST, about=about))]
    assert [(tag, sorted(a)) for tag, a in tags(page)] == plain


@settings(max_examples=50)
@given(st.text(max_size=30))
@example(EVIL)
@example("\ud800")
@example("\ufffe\x0b")
def test_any_text_can_be_put_into_markup_and_read_back(some: str):
    made = element("p", some, element("b", some), some, title=some)
    read = main_of(f"<main>{markup(made)}</main>")[0]
    kept = clean(some)
    # An XML parser gives a line feed for what a line may end with; all else comes back as it was.
    expected = re.sub("\r\n?", "\n", kept)
    assert re.sub("\r\n?", "\n", read.find("b").text or "") == expected  # type: ignore[union-attr]
    assert (read.get("title") or "").split() == kept.split()
    assert len(kept) == len(some)


def test_backticks_hold_code():
    made = element("p", *code_words("set `a.b` or `c`; done"))
    assert [text(code) for code in made.iter("code")] == ["a.b", "c"]
    assert text(made) == "set a.b or c; done"


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    found_tags = tags(PAGE)
    assert {tag for tag, _ in found_tags} & {"img", "link", "iframe", "object", "base"} == set()
    assert [a for tag, a in found_tags if tag == "script"] == [{}]
    assert [a for tag, a in found_tags if tag == "style"] == [{}]
    loads = {"src", "xlink:href", "data", "action", "srcset", "style", "onload", "onclick"}
    assert all(loads.isdisjoint(attributes) for _, attributes in found_tags)
    assert all((a.get("href") or "#").startswith("#") for _, a in found_tags)
    assert "url(" not in PAGE
    assert "@import" not in PAGE


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else():
    policy = next(a for tag, a in tags(PAGE) if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(None, 1) for rule in (policy["content"] or "").split("; "))
    assert rules["default-src"] == "'none'"
    for kind in ("style", "script"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", PAGE, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert "refresh" not in PAGE[: PAGE.index("<style>")]


def test_the_style_and_the_script_are_installed_with_the_package():
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    kept = settings["package-data"]["service.watching"]
    files = [f for f in Path("service/watching").iterdir() if f.is_file() and f.suffix != ".py"]
    assert sorted(file.name for file in files) == ["page.css", "page.js"]
    assert all(any(file.match(pattern) for pattern in kept) for file in files)


def test_the_script_has_a_word_for_every_moment():
    main = main_of(PAGE)
    assert len((main.get("data-times") or "").split("|")) == SPAN.count
    packed = [e.get("data-v") or "" for e in main.iter() if e.get("data-v") is not None]
    assert packed
    for words in packed:
        counts = (token.partition("*")[2] for token in words.split("|"))
        assert sum(int(count or 1) for count in counts) == SPAN.count


def test_the_page_says_when_what_and_from_where():
    main = main_of(PAGE)
    assert "14 Nov 2023 22:13:20 to 22:23:05 UTC" in text(main)
    assert "drawn 14 Nov 2023 22:23:25" in text(main)
    assert "Prometheus 2.42.0 at http://127.0.0.1:9090" in text(next(main.iter("footer")))
    assert "loads itself again" not in text(main)


def test_a_page_that_is_drawn_again_says_so_and_tells_the_script():
    main = main_of(drawn("one", about=replace(ABOUT, every_s=15.0)))
    assert main.get("data-every") == "15"
    assert "It loads itself again every 15 s." in text(next(main.iter("footer")))


def test_the_fleet_view_can_be_drawn_as_well():
    answers = invented(FLEET_VIEW, SPAN, ("one", "two"))
    page = draw(FLEET_VIEW, answers, Frame(SPAN, UTC, ("one", "two"), ()), ABOUT)
    assert all(not shown.is_empty for shown in cards(page).values())
    assert found(main_of(page), "ul", "big")


def test_eight_trials_of_noise_stay_below_two_megabytes():
    noise = random.Random(1)
    trials = tuple(f"train_fn_a1b2c_0000{n}_lr=0.00{n}" for n in range(8))
    span = replace(SPAN, count=moments(len(trials)) + 1)
    known = {
        one: tuple(
            Series(
                series.labels, tuple((at, value * noise.random()) for at, value in series.points)
            )
            for series in of_one
        )
        for one, of_one in invented(RUN_VIEW, span, trials).items()
    }
    page = draw(RUN_VIEW, known, Frame(span, UTC, trials, ()), ABOUT)
    assert len(page.encode()) < 2e6


TABLE = Panel(
    title="A table",
    kind="table",
    unit="none",
    text="",
    targets=(
        Target(f"max by (run, trial, cause) (reid_train_running{{{RUN}}})"),
        Target("one", "share", unit="percentunit", decimals=1),
        Target("two", "when", unit="dateTimeFromNow"),
    ),
)


def table(*answers: tuple[Series, ...]) -> list[dict[str, str]]:
    known = {question(TABLE, t): a for t, a in zip(TABLE.targets, answers, strict=True)}
    made: Element = card(TABLE, known, Frame(SPAN, UTC, (), ()), run="a", now=SPAN.start + 75)
    return Card(made).rows


def at_end(value: float, **labels: str) -> Series:
    return Series(labels, ((SPAN.end, value),))


def test_a_table_has_one_row_a_set_of_labels_and_a_dash_where_nothing_is_known():
    rows = table(
        (
            at_end(1, run="a", trial="t_10", cause="x", job="j", instance="i"),
            at_end(1, run="a", trial="t_2", cause="none"),
        ),
        (at_end(0.5, trial="t_2"), at_end(math.nan, trial="t_10"), at_end(1.0, trial="new")),
        (at_end(SPAN.start * 1000, trial="t_10"),),
    )
    assert rows == [
        {"trial": "new", "cause": "-", "share": "100.0 %", "when": "-"},
        {"trial": "t_2", "cause": "-", "share": "50.0 %", "when": "-"},
        {"trial": "t_10", "cause": "x", "share": "NaN %", "when": "1m15s ago"},
    ]


def test_a_run_that_is_not_the_pages_own_is_named():
    rows = table((at_end(1, run="b", trial="t", cause="x"),), (), ())
    assert rows == [{"run": "b", "trial": "t", "cause": "x", "share": "-", "when": "-"}]


def test_what_holds_for_several_rows_is_in_each_of_them():
    rows = table(
        (at_end(1, trial="t", cause="x"), at_end(1, trial="t", cause="y")),
        (at_end(0.25, trial="t"),),
        (),
    )
    assert [row["share"] for row in rows] == ["25.0 %", "25.0 %"]
