"""Keeps passwords out of what is written down and shown: run folders, and the words of jobs."""

from collections.abc import Iterable, Mapping
from typing import Any

from service.errors import ConfigError
from service.redaction import has_password, shown_url


def refuse_passwords(values: Mapping[str, Any]) -> None:
    """values: settings by name, nested as in a config.

    Raises:
        ConfigError: the first that is, or holds, a URL with a password.
    """
    for name, value in _texts(values):
        if has_password(value):
            raise ConfigError(
                f"{name}={shown_url(value)} has a password, which would stand in the run's folder "
                "and in the words of its job; leave it out, and give the store's client its "
                "credentials by its own variables or file"
            )


def _texts(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)
