"""Writes what docker/compose.yaml needs of tested files: `python -m deploy.compose`, or
`make manifests`.

Scrape and data source are those of this folder, with the services' names instead of loopback.
"""

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "docker/watch"
SCRAPE = Path(__file__).parent / "prometheus/prometheus.yml"
SOURCE = Path(__file__).parent / "grafana/provisioning/datasources/crossreid.yml"

_MADE = "# Made by make manifests from {source}; change that.\n"
_EXPORTER = "head:9109"
_ALERTMANAGER = "alertmanager:9093"
_PROMETHEUS = "http://prometheus:9090"


def files() -> dict[str, str]:
    """File name in docker/watch to content."""
    return {
        "prometheus.yml": _text(prometheus(_read(SCRAPE)), "deploy/prometheus/prometheus.yml"),
        "datasource.yml": _text(
            datasource(_read(SOURCE)), "deploy/grafana/provisioning/datasources/crossreid.yml"
        ),
    }


def prometheus(config: dict[str, Any]) -> dict[str, Any]:
    """`config`, scraping the exporter of the head and alerting by its neighbour."""
    (job,) = config["scrape_configs"]
    limits = {key: value for key, value in job.items() if not key.endswith("sd_configs")}
    scrape = {**limits, "static_configs": [{"targets": [_EXPORTER]}]}
    alerting = {"alertmanagers": [{"static_configs": [{"targets": [_ALERTMANAGER]}]}]}
    return {**config, "alerting": alerting, "scrape_configs": [scrape]}


def datasource(config: dict[str, Any]) -> dict[str, Any]:
    """`config`, reading the Prometheus beside it."""
    (source,) = config["datasources"]
    return {**config, "datasources": [{**source, "url": _PROMETHEUS}]}


def _text(content: dict[str, Any], source: str) -> str:
    return _MADE.format(source=source) + yaml.safe_dump(content, sort_keys=False)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def main() -> None:
    """Writes both files to their places."""
    for name, content in files().items():
        (FOLDER / name).write_text(content, "utf-8")


if __name__ == "__main__":
    main()
