"""The run view as one HTML file: no server, no network, readable without a script."""

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path

import service
from service.errors import WatchError
from service.telemetry.panels.panel import View
from service.telemetry.panels.run import RUN_VIEW
from service.training.files import write_text
from service.watching.asking import Answers, ask, choose, questions, span_of
from service.watching.clock import time_of_day
from service.watching.frame import Frame
from service.watching.head import head, summary
from service.watching.marks import decisions
from service.watching.markup import Element, clean, element, markup
from service.watching.panels import card
from service.watching.prometheus import Prometheus
from service.watching.standing import QUESTIONS, standings

_MOST_HOURS = 24 * 365
_FILES = resources.files("service.watching")


@dataclass(frozen=True, slots=True)
class About:
    """What a page is of. source: whom it asked. drawn_at: Unix seconds. every_s: seconds until a
    browser loads the file again, 0 for never."""

    run: str
    source: str
    drawn_at: float
    every_s: float


def write_page(
    url: str, file: Path, *, run: str | None, trial: str | None, hours: float, every_s: float
) -> str:
    """Writes the run view into `file`, all of it or nothing; gives the run's name.

    url: of a Prometheus. run: None takes the one with the newest step. trial: None shows all.
    hours: how far to look back, above 0, at most a year; the page begins at the run's first
    sample in that time.
    every_s: seconds after which a browser loads the file again, 0 for never.

    Raises:
        WatchError: Prometheus cannot be asked, knows no such run or trial in that time, or the
            file cannot be written.
    """
    if not 0 < hours <= _MOST_HOURS:
        raise WatchError(
            f"found hours={hours:g}; expected how many hours to look back, above 0 and at most "
            f"{_MOST_HOURS}"
        )
    server, now = Prometheus(url), time.time()
    choice = choose(server, run, trial, hours=hours, now=now)
    span = span_of(server, choice, hours=hours, now=now)
    answers = ask(server, [*questions(RUN_VIEW), *QUESTIONS], choice, span)
    zone = datetime.fromtimestamp(now).astimezone().tzinfo
    assert zone is not None
    frame = Frame(span, zone, choice.trials, decisions(RUN_VIEW, answers, span))
    source = f"Prometheus {server.version()} at {url}"
    text = draw(RUN_VIEW, answers, frame, About(choice.run, source, now, every_s))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise WatchError(
            f"cannot write the page to {file}: {error.strerror or error}; name a file in a folder "
            "that can be written"
        ) from error
    return choice.run


def draw(view: View, answers: Answers, frame: Frame, about: About) -> str:
    """The page as text.

    answers: to all `questions` of the view and of `standing.QUESTIONS`.
    """
    trials = standings(answers, frame.trials, about.drawn_at)
    main = element(
        "main",
        head(about.run, trials, frame, about.drawn_at),
        _contents(view),
        *_rows(view, answers, frame, about),
        _foot(about),
        data_times="|".join(time_of_day(at, frame.zone) for at in frame.span.times),
        data_marks=json.dumps(_turns(frame)),
        data_every=about.every_s,
    )
    return _document(f"{about.run}: {summary(trials)} · crossreid", main)


def _turns(frame: Frame) -> list[tuple[int, str]]:
    """The moments at which a run changed, and how, for the script."""
    turns = (mark for mark in frame.marks if mark.is_turn)
    return [(frame.span.nearest(mark.time), f"{mark.verdict} {mark.trial}") for mark in turns]


def _rows(view: View, answers: Answers, frame: Frame, about: About) -> list[Element]:
    return [
        element(
            "section",
            element("h2", row.title),
            element(
                "div",
                *(
                    card(panel, answers, frame, run=about.run, now=about.drawn_at)
                    for panel in row.panels
                ),
                class_="grid",
            ),
            id=f"row{number}",
        )
        for number, row in enumerate(view.rows)
    ]


def _contents(view: View) -> Element:
    links = (element("a", row.title, href=f"#row{number}") for number, row in enumerate(view.rows))
    return element("nav", *links, aria_label="Rows of the page")


def _foot(about: About) -> Element:
    again = f" It loads itself again every {about.every_s:g} s." if about.every_s > 0 else ""
    return element(
        "footer",
        f"Made by crossreid {service.__version__} (",
        element("code", "crossreid watch --page"),
        f") from {about.source}. Dashed lines are the limits of the run's own config, upright "
        f"lines its decisions. Where there was no sample there is no line.{again}",
    )


def _document(title: str, main: Element) -> str:
    """The whole file. It may load nothing, and runs only the script that is part of it."""
    style, script = (_FILES.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src {_hashed(style)}; script-src {_hashed(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(clean(title))}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n{markup(main)}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _hashed(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
