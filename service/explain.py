"""Finds the page on a cause and lays it out as text."""

import difflib
import textwrap
from dataclasses import asdict
from typing import Any

from service.causes import WORDS, Cause
from service.errors import ConfigError
from service.pages import PAGES

_WIDTH = 96


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


def page(cause: Cause) -> str:
    """The page as text."""
    words, remedy = WORDS[cause]
    found = PAGES[cause]
    steps = "\n".join(_wrapped(step, f"  {i}. ") for i, step in enumerate(found.do, start=1))
    return "\n".join(
        (
            f"{cause}: {words}",
            "",
            "How it looks",
            _wrapped(found.looks),
            "",
            "Why",
            _wrapped(found.why),
            "",
            "What to do",
            steps,
            _wrapped(f"In short: {remedy}."),
            "",
            "Where it has been seen",
            _wrapped(found.seen),
            "",
        )
    )


def listing() -> str:
    """Every cause with its words, one line each."""
    wide = max(len(cause) for cause in PAGES)
    return "".join(f"{cause:<{wide}}  {WORDS[cause][0]}\n" for cause in PAGES)


def to_dict(cause: Cause) -> dict[str, Any]:
    """The page as JSON-able values."""
    words, remedy = WORDS[cause]
    return {"cause": str(cause), "words": words, "remedy": remedy, **asdict(PAGES[cause])}


def _wrapped(text: str, lead: str = "  ") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_on_hyphens=False,
        break_long_words=False,
    )
