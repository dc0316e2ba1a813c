"""What `deploy/` holds for watching: the scrape, the rules and the routes, as they are deployed."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import service
from service.errors import WatchError

_PROMETHEUS = "prometheus/prometheus.yml"
_ALERTMANAGER = "alertmanager/alertmanager.yml"
_RULES = "prometheus/rules"
_WATCHDOG = re.compile(r"\balert:\s*[\"']?Watchdog\b")


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployed settings, and the rule files to load, absolute.

    has_watchdog: one of the rules is the alert that always fires.
    """

    prometheus: dict[str, Any]
    alertmanager: dict[str, Any]
    rules: tuple[Path, ...]
    has_watchdog: bool


def read_deployment(rules: Path | None) -> Deployment:
    """The deployment beside this package, with the rule files of another folder if one is given.

    rules: a folder of rule files. One in a copy of `deploy` also brings that copy's scrape and
        routes, so that the command works outside a checkout.

    Raises:
        WatchError: there is no deployment, it cannot be read, or the folder has no rule file.
    """
    root = _root(rules)
    folder = root / _RULES if rules is None else rules.absolute()
    files = tuple(
        sorted(path for path in folder.glob("*.y*ml") if path.suffix in (".yml", ".yaml"))
    )
    if not files:
        raise WatchError(
            f"{folder} holds no rule file (*.yml); --rules names a folder of Prometheus' rule files"
        )
    texts = [_text(path) for path in files]
    return Deployment(
        prometheus=_mapping(root / _PROMETHEUS),
        alertmanager=_mapping(root / _ALERTMANAGER),
        rules=files,
        has_watchdog=any(_WATCHDOG.search(text) for text in texts),
    )


def _root(rules: Path | None) -> Path:
    beside = Path(service.__file__).resolve().parents[1] / "deploy"
    roots = [beside] if rules is None else [rules.absolute().parent.parent, beside]
    for root in roots:
        if (root / _PROMETHEUS).is_file() and (root / _ALERTMANAGER).is_file():
            return root
    raise WatchError(
        f"{' and '.join(map(str, roots))} lack {_PROMETHEUS} and {_ALERTMANAGER}, from which the "
        "scrape and the routes are taken; they come with a checkout of this project. Run the "
        f"command there, or name the rules in a copy of its folder deploy: --rules FOLDER, as in "
        f"deploy/{_RULES}"
    )


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise WatchError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise WatchError(f"{path} holds {type(content).__name__}, expected settings (key: value)")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WatchError(f"cannot read {path}: {error}") from error
