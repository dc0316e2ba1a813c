"""What the terminal says of alerts: one line when one fires, one when it is over, none twice."""

import threading
from collections.abc import Mapping
from typing import Any

WATCHDOG = "Watchdog"
SILENCE_S = 180.0
"""Seconds without the Watchdog after which alerting counts as broken; it comes every minute."""
_LATE_S = 10.0
"""Seconds in which every receiver has heard of a change; they hear at most 5 s apart."""
_KNOWN = 10_000
"""Alerts remembered at most; the oldest are forgotten first."""


class Board:
    """Which alerts were told. Alertmanager repeats them: to several receivers, with every change in
    their group, and again after hours. Times are seconds of a clock that only rises."""

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, tuple[str, str, float]] = {}
        self._watchdog_at = now
        self._is_silent = False

    def hear(self, message: Mapping[str, Any], now: float) -> list[str]:
        """The new lines in a message of Alertmanager's webhook (version 4)."""
        with self._lock:
            return [line for alert in message["alerts"] if (line := self._line(alert, now))]

    def silence(self, now: float, where: str) -> list[str]:
        """One line when the Watchdog has not come for `SILENCE_S`, told once; else none.

        where: what a person should look at.
        """
        with self._lock:
            if self._is_silent or now - self._watchdog_at < SILENCE_S:
                return []
            self._is_silent = True
            return [
                f"{'critical':<8}  {WATCHDOG}  has not come for {SILENCE_S / 60:g} minutes: other "
                f"alerts may not reach you either; look at {where}"
            ]

    def _line(self, alert: Mapping[str, Any], now: float) -> str:
        labels, status = alert["labels"], alert["status"]
        if labels.get("alertname") == WATCHDOG:
            return self._watchdog(now) if status == "firing" else ""
        start, was, at = self._told.get(alert["fingerprint"], ("", "", now))
        # What fires with a start that was told over is another receiver's late copy, or was taken
        # for over by mistake, when Prometheus had stood still.
        is_copy = start == alert["startsAt"] and (was == "firing" or now - at < _LATE_S)
        if is_copy if status == "firing" else was != "firing":
            return ""
        self._remember(alert["fingerprint"], (alert["startsAt"], status, now))
        return firing_line(alert) if status == "firing" else resolved_line(alert)

    def _watchdog(self, now: float) -> str:
        self._watchdog_at = now
        was_silent, self._is_silent = self._is_silent, False
        return f"{'resolved':<8}  {WATCHDOG}  comes again, and so do alerts" if was_silent else ""

    def _remember(self, fingerprint: str, told: tuple[str, str, float]) -> None:
        self._told.pop(fingerprint, None)
        self._told[fingerprint] = told
        if len(self._told) > _KNOWN:
            del self._told[next(iter(self._told))]


def firing_line(alert: Mapping[str, Any]) -> str:
    """`critical  TrainingStalled  <summary>  <where to read on>`."""
    labels, notes = alert["labels"], alert.get("annotations", {})
    parts = (
        f"{labels.get('severity', 'firing'):<8}",
        labels.get("alertname", "an alert without a name"),
        notes.get("summary") or _subject(labels),
        notes.get("runbook_url", ""),
    )
    return "  ".join(part for part in parts if part)


def resolved_line(alert: Mapping[str, Any]) -> str:
    """`resolved  TrainingStalled  <run>/<trial>`."""
    labels = alert["labels"]
    parts = (f"{'resolved':<8}", labels.get("alertname", ""), _subject(labels))
    return "  ".join(part for part in parts if part)


def _subject(labels: Mapping[str, str]) -> str:
    """Whom the alert is about: a trial, else an exporter, else nobody."""
    if "run" in labels:
        return f"{labels['run']}/{labels.get('trial', '')}".rstrip("/")
    return labels.get("instance", "")
