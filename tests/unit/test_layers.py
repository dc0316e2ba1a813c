"""The import contract names every module, so that none is free to import what it likes."""

import tomllib
from pathlib import Path


def test_every_module_of_the_service_has_a_place_in_the_layers():
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in settings["contracts"] if c["type"] == "layers")
    placed = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    files = [path for path in sorted(Path("service").rglob("*.py")) if path.name != "__init__.py"]
    above = {
        path: {".".join(p.parts) for p in (path.with_suffix(""), *path.parents)} for path in files
    }
    assert [str(path) for path in files if not above[path] & placed] == []
