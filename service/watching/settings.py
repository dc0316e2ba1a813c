"""The settings of Prometheus and Alertmanager while one machine is watched, from the deployed ones.

Limits, routes and inhibition are those of `deploy/`; here stands only what differs when a person
looks at a terminal.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from service.errors import WatchError

JOB = "crossreid"
_WAIT = {"group_wait": "2s", "group_interval": "5s"}
"""A person waits at the terminal: alerts are told at once, not gathered for minutes."""
_PACE = ("scrape_interval", "scrape_timeout")
"""Left to the global settings; Prometheus shortens its 10 s of patience to the interval itself."""
_WEBHOOK = "--webhook"


def prometheus_yaml(
    deployed: Mapping[str, Any],
    *,
    every_s: int,
    targets: Sequence[str],
    target_files: Path,
    rules: Sequence[Path],
    alertmanager: str | None,
) -> str:
    """`prometheus.yml` for watching.

    every_s: seconds between two scrapes, and between two looks at the rules. targets: HOST:PORT of
    exporters. target_files: the folder in which every driver writes where its exporter is (*.json,
    in the format of file_sd). alertmanager: HOST:PORT, or None without one.

    Raises:
        WatchError: the deployed settings have no job `crossreid`, or a path cannot be told.
    """
    every = f"{every_s}s"
    job = _job(deployed)
    replaced = (*_PACE, *(key for key in job if key.endswith("_configs")))
    limits = {key: value for key, value in job.items() if key not in replaced}
    static = [{"targets": list(targets)}]
    files = {"files": [f"{_literal(target_files)}/*.json"], "refresh_interval": every}
    settings: dict[str, Any] = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [_literal(path) for path in rules],
        "scrape_configs": [{**limits, "static_configs": static, "file_sd_configs": [files]}],
    }
    if alertmanager is not None:
        address = {"static_configs": [{"targets": [alertmanager]}]}
        settings["alerting"] = {"alertmanagers": [address]}
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def alertmanager_yaml(
    deployed: Mapping[str, Any], *, listener: str, webhook: str | None = None
) -> str:
    """`alertmanager.yml` for watching: the deployed routes, with every receiver at `listener`.

    listener: URL of the terminal's own listener. webhook: a URL that also gets every alert but the
    Watchdog, each once.

    Raises:
        WatchError: the deployed settings have no route or no receivers.
    """
    for key in ("route", "receivers"):
        if key not in deployed:
            raise WatchError(f"deploy/alertmanager/alertmanager.yml has no {key}")
    route = {**_prompt(deployed["route"]), **_WAIT}
    receivers = [_receiver(receiver["name"], listener) for receiver in deployed["receivers"]]
    if webhook is not None:
        # The deployed routes tell some alerts to two receivers; this one stands before them all.
        first = {"receiver": _WEBHOOK, "matchers": ["signal != watchdog"], "continue": True}
        route["routes"] = [first, *route.get("routes", [])]
        receivers.append(_receiver(_WEBHOOK, webhook))
    kept = ("inhibit_rules", "time_intervals", "mute_time_intervals")
    settings = {
        "route": route,
        **{key: deployed[key] for key in kept if key in deployed},
        "receivers": receivers,
    }
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _job(deployed: Mapping[str, Any]) -> dict[str, Any]:
    for job in deployed.get("scrape_configs", []):
        if job.get("job_name") == JOB:
            return job
    raise WatchError(f"deploy/prometheus/prometheus.yml has no scrape with job_name: {JOB}")


def _prompt(route: Mapping[str, Any]) -> dict[str, Any]:
    """The route and those below it without waits of their own."""
    kept = {key: value for key, value in route.items() if key not in _WAIT}
    if "routes" in kept:
        kept["routes"] = [_prompt(below) for below in kept["routes"]]
    return kept


def _receiver(name: str, url: str) -> dict[str, Any]:
    return {"name": name, "webhook_configs": [{"url": url, "send_resolved": True}]}


def _literal(path: Path) -> str:
    """The path as a pattern that matches only itself.

    Raises:
        WatchError: the path has a `*`, which Prometheus takes in no other sense.
    """
    if "*" in str(path):
        raise WatchError(f"Prometheus cannot read {path}: its name has a *; use another folder")
    return "".join(f"\\{sign}" if sign in "[?\\" else sign for sign in str(path))
