"""Finds what looks like a secret in a file's text."""

import re

_NAMED = re.compile(
    r"(?i)(?:token|password|secret|access_key|secret_key)(?:_id)?[\"']?\s*[:=]\s*"
    r"(?![\"']?(?:/run/secrets/|\./|token\b|crossreid-))[\"']?(?:[\w+/-]{8,}|\S*[0-9]\S{5,})"
)
_VARIABLE = re.compile(
    r"(?i)\bname[\"']?:\s*[\"']?\w*(?:token|password|secret|key)\w*[\"']?\s*[,\n]\s*"
    r"[\"']?value[\"']?:\s*[\"']?(?!/run/secrets/)[^\s\"'}]+"
)
"""A variable of a container, whose value stands on the same line or the next."""
_RANDOM = re.compile(r"\b(?:[0-9a-f]{32,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{20,})\b")


def secrets(text: str) -> list[str]:
    """Literals that stand where a token, a password or a key would."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    by_line = [seen.finditer(line) for line in lines for seen in (_NAMED, _RANDOM)]
    found = [*by_line, _VARIABLE.finditer("\n".join(lines))]
    return [one.group() for each in found for one in each]
