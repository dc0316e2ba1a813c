"""Grafana Labs' types check dashboards: JSON becomes TypeScript, and tsc says what is wrong."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "schema"
INSTALL = "npm install --no-package-lock --prefix tests/watch/schema"
"""What makes the check possible."""


def lacks() -> str:
    """What the check needs and this machine has not; empty when it can run."""
    if shutil.which("node") is None:
        return "node"
    has = (SCHEMA / "node_modules/@grafana/schema/package.json").exists()
    return "" if has else f"@grafana/schema ({INSTALL})"


def complaints(dashboards: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, list[str]]:
    """What tsc has against each dashboard; `folder` is an empty one to work in."""
    for name in ("types.ts", "tsconfig.json"):
        shutil.copy(SCHEMA / name, folder)
    (folder / "node_modules").symlink_to(SCHEMA / "node_modules")
    for name, dashboard in dashboards.items():
        (folder / f"{name}.ts").write_text("\n".join(_statements(dashboard)) + "\n")
    tsc = [folder / "node_modules/typescript/bin/tsc", "-p", folder, "--pretty", "false"]
    done = subprocess.run(["node", *tsc], capture_output=True, text=True, timeout=120, check=False)
    found: dict[str, list[str]] = {name: [] for name in dashboards}
    for line in done.stdout.splitlines():
        if match := re.match(r"(?:.*/)?([\w-]+)\.ts\(\d+,\d+\): (error .*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def _statements(dashboard: dict[str, Any]) -> Iterator[str]:
    """One constant a part, since tsc finds surplus keys only where a literal meets its type."""
    yield "import type * as t from './types';"
    frame = {key: value for key, value in dashboard.items() if key != "panels"}
    yield f"export const frame: t.Frame = {json.dumps(frame)};"
    for panel in dashboard["panels"]:
        yield from _panel(panel) if panel["type"] != "row" else [_const(panel["id"], "Row", panel)]


def _panel(panel: dict[str, Any]) -> Iterator[str]:
    number, kind = panel["id"], json.dumps(panel["type"])
    apart = ("fieldConfig", "options", "targets")
    yield _const(number, f"Panel<{kind}>", {k: v for k, v in panel.items() if k not in apart})
    yield _const(f"{number}_options", f"Options<{kind}>", panel["options"])
    defaults = panel["fieldConfig"]["defaults"]
    yield _const(
        f"{number}_defaults", "Defaults", {k: v for k, v in defaults.items() if k != "custom"}
    )
    yield _const(f"{number}_custom", f"Custom<{kind}>", defaults.get("custom", {}))
    for place, target in enumerate(panel["targets"]):
        yield _const(f"{number}_query_{place}", "Query", target)
    for place, override in enumerate(panel["fieldConfig"]["overrides"]):
        properties = {entry["id"]: entry["value"] for entry in override["properties"]}
        yield _const(f"{number}_match_{place}", "Matcher", override["matcher"])
        yield _const(f"{number}_override_{place}", f"Override<{kind}>", properties)


def _const(name: object, type_name: str, value: object) -> str:
    return f"export const p{name}: t.{type_name} = {json.dumps(value)};"
