"""Asking a Prometheus over HTTP. Answers are plain values; times are Unix seconds."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import WatchError
from service.telemetry.logs import redacted

OLDEST = "2.26"
"""The first version with `last_over_time`."""

_LONGEST = 200
"""Characters of a foreign answer that an error repeats."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: (time, value) pairs in time; an instant query gives one pair."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server, by its address as a browser shows it. timeout_s: of one question, > 0.

    Every question raises WatchError when nothing answers, when what answers is not a Prometheus,
    or when it refuses the query; the last with its own words.
    """

    url: str
    timeout_s: float = 15.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            is_known = parts.scheme in ("http", "https") and bool(parts.hostname)
            is_bare = parts.port != 0 and not (parts.username or parts.query or parts.fragment)
        except ValueError:
            is_known = is_bare = False
        if not (is_known and is_bare):
            raise WatchError(
                f"found {redacted(self.url)!r} as the address of a Prometheus; expected "
                "http://HOST:PORT or https://HOST/PATH, without a login and without a query"
            )

    def at(self, expr: str, when: float) -> tuple[Series, ...]:
        """The series of an instant query; a range selector gives its raw samples."""
        return self._series("query", expr, time=when)

    def between(self, expr: str, start: float, end: float, step: float) -> tuple[Series, ...]:
        """The series of a range query, at `start`, then every `step` seconds up to `end`."""
        return self._series("query_range", expr, start=start, end=end, step=step)

    def label_values(self, label: str, selector: str) -> tuple[str, ...]:
        """The values of a label that the matching series have ever had, sorted."""
        path = f"label/{urllib.parse.quote(label)}/values"
        found = self._data(path, {"match[]": selector})
        if not isinstance(found, list):
            raise self._stranger(json.dumps(found))
        return tuple(sorted(map(str, found)))

    def version(self) -> str:
        """Its version, such as 2.42.0; empty where it does not tell."""
        found = self._data("status/buildinfo", {})
        return str(found.get("version", "")) if isinstance(found, dict) else ""

    def _series(self, path: str, expr: str, **times: float) -> tuple[Series, ...]:
        shown = {name: f"{time:.3f}" for name, time in times.items()}
        data = self._data(path, {"query": expr, **shown})
        try:
            return tuple(_series(found) for found in data["result"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._stranger(json.dumps(data)) from error

    def _data(self, path: str, args: Mapping[str, str]) -> Any:
        status, text = self._text(path, args)
        try:
            answer = json.loads(text)
            is_answered = answer["status"] == "success"
            said = answer["data"] if is_answered else answer["error"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._stranger(f"HTTP {status}, {text}") from error
        if not is_answered:
            raise self._refusal(str(said), args.get("query", path))
        return said

    def _text(self, path: str, args: Mapping[str, str]) -> tuple[int, str]:
        """Status and body, also of an answer that tells of an error."""
        query = urllib.parse.urlencode(args, errors="replace")
        url = f"{self.url.rstrip('/')}/api/v1/{path}?{query}"
        try:
            with _opener(url).open(url, timeout=self.timeout_s) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise WatchError(
                f"no Prometheus answers at {self.url}: {_reason(error, self.timeout_s)}; is it "
                "running, and is that its address? `crossreid watch` starts one"
            ) from error

    def _stranger(self, found: str) -> WatchError:
        return WatchError(
            f"what answers at {self.url} is not a Prometheus: found {_short(found)}; expected its "
            "HTTP API below /api/v1; is that the address of its first page?"
        )

    def _refusal(self, said: str, query: str) -> WatchError:
        if "unknown function" in said:
            return WatchError(
                f"the Prometheus at {self.url} is too old: it is version {self.version()} and says "
                f"{said!r}; expected {OLDEST} or newer"
            )
        return WatchError(f"Prometheus at {self.url} refuses a query: {said}; the query: {query}")


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Through the environment's proxy, which does not reach this machine's own loopback."""
    host = urllib.parse.urlsplit(url).hostname or ""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    proxies = urllib.request.ProxyHandler({}) if is_here else urllib.request.ProxyHandler()
    return urllib.request.build_opener(proxies)


def _series(found: Mapping[str, Any]) -> Series:
    pairs = found["values"] if "values" in found else [found["value"]]
    labels = {str(name): str(value) for name, value in found["metric"].items()}
    return Series(labels, tuple((float(time), float(value)) for time, value in pairs))


def _reason(error: Exception, timeout_s: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
