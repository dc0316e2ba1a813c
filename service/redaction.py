"""Text without secrets: for whatever is printed, logged, journaled or sent away."""

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

_SECRET_NAME = re.compile(r"PASS|PWD|TOKEN|SECRET|KEY", re.IGNORECASE)
_FOLDER_NAMES = ("PWD", "OLDPWD")
_PLACES = ("_PATH", "_FILE", "_DIR")
"""How the names of variables end that say where a secret lies."""
_LOGIN = re.compile(r"""(?<=://)[^\s'"]+(?=@)""")


def redacted(text: str, environ: Mapping[str, str] | None = None) -> str:
    """`text` without the values of secret environment variables and without logins in URLs.

    A secret may hold slashes, so a login is all between `://` and the last @ of the word.
    """
    values = os.environ if environ is None else environ
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        if _is_secret(name) and len(value) >= 6:
            text = text.replace(value, f"<{name}>")
    return _LOGIN.sub("<login>", text)


def _is_secret(name: str) -> bool:
    is_place = name in _FOLDER_NAMES or name.upper().endswith(_PLACES)
    return _SECRET_NAME.search(name) is not None and not is_place


def shown_url(url: str) -> str:
    """`url` as a message may show it: without its login and its query, which may be a signature."""
    return redacted(url.partition("?")[0])


def has_password(url: str) -> bool:
    """Whether `url` carries a password, which may hold slashes; a user, a container, a port, or an
    @ in the path is none."""
    login = _LOGIN.search(url)
    if login is None:
        return False
    user, sign, secret = login[0].partition(":")
    is_host = "/" in user or user.startswith("[") or secret.partition("/")[0].isdecimal()
    return bool(sign) and not is_host


def told_of(error: Exception, url: str) -> str:
    """What `error` says, without the secrets of `url`, which a client may have taken apart."""
    text = str(error).replace(url, shown_url(url))
    for secret in _secrets(url):
        text = text.replace(secret, "<login>")
    return redacted(text)


def _secrets(url: str) -> list[str]:
    """The login, password and query of `url`, also decoded, the longest first."""
    address, _, query = url.partition("?")
    login = "".join(_LOGIN.findall(address))
    found = {login, login.partition(":")[2], query}
    found |= {unquote(secret) for secret in found}
    return sorted(filter(None, found), key=len, reverse=True)
