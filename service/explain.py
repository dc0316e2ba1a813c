"""Finds the page on a cause and lays it out as text."""

import difflib
import textwrap
from dataclasses import asdict
from typing import Any

from service.causes import WORDS, Cause
from service.errors import ConfigError
from service.pages import PAGES

_WIDTH = 80
_WIDEST = 96
"""Longer lines are hard to read, however wide the terminal is."""


def find(name: str) -> Cause:
    """The cause that `name` names; case, spaces and dashes do not matter.

    Raises:
        ConfigError: with the causes whose names are near.
    """
    wanted = name.strip().lower().replace(" ", "_").replace("-", "_")
    if wanted in PAGES:
        return Cause(wanted)
    near = difflib.get_close_matches(wanted, [str(cause) for cause in PAGES], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`crossreid explain` lists them all"
    raise ConfigError(f"{name!r} is no known cause; {hint}")


def page(cause: Cause, width: int = _WIDTH) -> str:
    """The page as text, in lines of at most `width` columns."""
    words, remedy = WORDS[cause]
    found = PAGES[cause]
    steps = [_wrapped(step, width, f"  {i}. ") for i, step in enumerate(found.do, start=1)]
    return "\n".join(
        (
            _wrapped(f"{cause}: {words}", width, "", "  "),
            "",
            "How it looks",
            _wrapped(found.looks, width),
            "",
            "Why",
            _wrapped(found.why, width),
            "",
            "What to do",
            *steps,
            _wrapped(f"In short: {remedy}.", width),
            "",
            "Where it has been seen",
            _wrapped(found.seen, width),
            "",
        )
    )


def listing(width: int = _WIDTH) -> str:
    """Every cause with its words, in lines of at most `width` columns."""
    wide = max(len(cause) for cause in PAGES)
    return "".join(f"{_wrapped(WORDS[c][0], width, f'{c:<{wide}}  ')}\n" for c in PAGES)


def to_dict(cause: Cause) -> dict[str, Any]:
    """The page as JSON-able values."""
    words, remedy = WORDS[cause]
    return {"cause": str(cause), "words": words, "remedy": remedy, **asdict(PAGES[cause])}


def _wrapped(text: str, width: int, lead: str = "  ", below: str | None = None) -> str:
    """A paragraph behind `lead`; its other lines stand behind `below`, or under its text."""
    return textwrap.fill(
        text,
        min(width, _WIDEST),
        initial_indent=lead,
        subsequent_indent=" " * len(lead) if below is None else below,
        break_on_hyphens=False,
        break_long_words=False,
    )
