"""Finds what looks like a secret in a file's text."""

import re

_NAMED = re.compile(
    r"(?i)(?:token|password|secret|access_key|secret_key)(?:_id)?[\"']?\s*[:=]\s*"
    r"(?![\"']?(?:/run/secrets/|\./|token\b|crossreid-))[\"']?(?:[\w+/-]{8,}|\S*[0-9]\S{5,})"
)
_RANDOM = re.compile(r"\b(?:[0-9a-f]{32,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{20,})\b")


def secrets(text: str) -> list[str]:
    """Literals that stand where a token, a password or a key would."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [
        found.group()
        for line in lines
        for seen in (_NAMED, _RANDOM)
        for found in seen.finditer(line)
    ]
