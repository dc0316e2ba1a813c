"""The head of a page: the run, and where each of its trials stands, in large words."""

from collections import Counter
from collections.abc import Sequence

from service.orchestration.progress import MAIN_TRIAL
from service.telemetry.logs import duration
from service.watching.clock import moment, time_of_day, zone_words
from service.watching.frame import Frame
from service.watching.marks import color
from service.watching.markup import Element, code_words, element
from service.watching.standing import Standing

_ERROR_COLOR = "red"
_STATE_COLORS = {
    "silent": "orange",
    "gone": "orange",
    "training": "green",
    "all steps done": "green",
}
_DAY_S = 86400.0
_MANY = 4
"""Trials that still have large letters."""


def head(run: str, standings: Sequence[Standing], frame: Frame, now: float) -> Element:
    """now: when the page is drawn, in Unix seconds."""
    is_plain = [one.trial for one in standings] == [MAIN_TRIAL]
    return element(
        "header",
        element("p", "crossreid run", class_="over"),
        element("h1", run),
        element("p", *_time(standings, frame, now), class_="when"),
        element(
            "ul",
            *(_trial(one, frame, now, is_plain=is_plain) for one in standings),
            class_="trials" if len(standings) <= _MANY else "trials many",
        ),
    )


def summary(standings: Sequence[Standing]) -> str:
    """All verdicts in a few words, for the title of the page."""
    counts = Counter(one.word for one in standings)
    if len(standings) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _time(standings: Sequence[Standing], frame: Frame, now: float) -> list[Element]:
    span, zone = frame.span, frame.zone
    shown = f"{moment(span.start, zone)} to {time_of_day(span.end, zone)} {zone_words(now, zone)}"
    parts = [
        *([f"{len(standings)} trials: {summary(standings)}"] if len(standings) > 1 else []),
        f"{shown} ({duration(span.length)})",
        f"drawn {moment(now, zone)}",
    ]
    return [element("span", part) for part in parts]


def _trial(one: Standing, frame: Frame, now: float, *, is_plain: bool) -> Element:
    paint = _ERROR_COLOR if one.is_error else color(one.verdict)
    words, remedy = one.words
    big = element("strong", one.word, class_=f"verdict k-{paint}")
    cause = element(
        "p",
        element("b", *code_words(words[:1].upper() + words[1:] + ".")),
        *([" ", *code_words(remedy[:1].upper() + remedy[1:] + ".")] if remedy else []),
        " ",
        element("code", one.cause),
        class_="cause",
    )
    return element(
        "li",
        big,
        None if is_plain else element("span", one.trial, class_="trial"),
        element("span", _state(one), class_=f"state k-{_state_color(one)}"),
        _progress(one, frame, now),
        cause if one.cause else None,
        class_=f"k-{paint}{' alone' if is_plain else ''}",
    )


def _state(one: Standing) -> str:
    if one.state == "gone":
        return "gone without a word: it has died, or is not scraped any more"
    if one.state == "silent" and one.silent_s is not None:
        return f"silent for {duration(one.silent_s)}: it hangs, has died, or is not scraped"
    return one.state


def _state_color(one: Standing) -> str:
    if one.is_error:
        return _ERROR_COLOR
    return _STATE_COLORS.get(one.state, "gray")


def _progress(one: Standing, frame: Frame, now: float) -> Element:
    if not one.total:
        return element("span", class_="progress")
    share = min(one.step / one.total, 1.0)
    left = ""
    if one.eta is not None:
        is_soon = one.eta - now < _DAY_S
        until = (time_of_day if is_soon else moment)(one.eta, frame.zone)
        left = f", ends about {until} (in {duration(max(one.eta - now, 0.0))})"
    bar = element(
        "svg",
        element("rect", class_="all", width="100%", height=6, rx=3),
        element("rect", class_="done", width=f"{100 * share:.1f}%", height=6, rx=3),
        height=6,
        aria_hidden="true",
    )
    words = f"step {one.step:,} of {one.total:,} ({100 * share:.0f} %){left}"
    return element("span", bar, element("span", words), class_="progress")
