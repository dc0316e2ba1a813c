"""Grafana's variables in a query, replaced by what they stand for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PLACE = re.compile(r'(?P<regex>[=!]~")?\$(?P<name>\w+)')
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_IN_STRINGS = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Filling:
    """What the variables stand for. names: of labels, None for any value that is not empty.
    lengths: of time, in seconds."""

    names: Mapping[str, str | None]
    lengths: Mapping[str, float]

    def fill(self, query: str) -> str:
        """The query without variables.

        A name behind `=~` or `!~` is escaped as a regular expression, and every name as part of a
        string in double quotes.

        Raises:
            KeyError: the query has another variable.
            ValueError: any name is asked for where one is needed.
        """
        return _PLACE.sub(self._one, query)

    def _one(self, place: re.Match[str]) -> str:
        name, before = place["name"], place["regex"] or ""
        if name in self.lengths:
            return f"{before}{round(self.lengths[name] * 1000)}ms"
        value = self.names[name]
        if before:
            return before + (".+" if value is None else quoted(pattern(value)))
        if value is None:
            raise ValueError(f"${name} stands for any name, in a place for one: {place.string}")
        return quoted(value)


def quoted(text: str) -> str:
    """`text` as it stands in a PromQL string, between double quotes."""
    return text.translate(_IN_STRINGS)


def pattern(text: str) -> str:
    """A regular expression (RE2) that matches `text` and nothing else."""
    return _SPECIAL.sub(r"\\\g<0>", text)
