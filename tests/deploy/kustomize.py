"""What `kubectl apply -k` would send, for the part of kustomize that deploy/kuberay uses.

test_kustomize.py holds it against the real one.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

FOLDER = Path("deploy/kuberay")
RUNNABLE = ("cluster", "copy", "first", "ingest", "ingest-s3", "job", "job-s3")
"""Those with an image, which a person applies from a folder that names it."""
VARIANTS = ("base", *RUNNABLE, "monitoring")
"""The folders that a person applies."""
_KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "components", "patches", "labels",
}  # fmt: skip
_OF_NO_NAMESPACE = ("Namespace", "PriorityClass")


def rendered(variant: str) -> list[Json]:
    """The objects of one variant, for the caller to change."""
    return copy.deepcopy(_rendered(variant))


def every_object() -> list[tuple[str, Json]]:
    """Variant and object, of all variants."""
    return [(variant, found) for variant in VARIANTS for found in rendered(variant)]


def of_kind(objects: list[Json], kind: str) -> list[Json]:
    return [found for found in objects if found["kind"] == kind]


def named(found: Json) -> str:
    """An object as tests name it."""
    return f"{found['kind']}-{found['metadata']['name']}"


@cache
def _rendered(variant: str) -> list[Json]:
    return _built(FOLDER / variant, [])


def _built(folder: Path, objects: list[Json]) -> list[Json]:
    """`objects`, and those of `folder`, after what `folder` does to them."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert said.keys() <= _KNOWN, f"{folder}: {said.keys() - _KNOWN} is not rendered here"
    objects = copy.deepcopy(objects)
    for name in said.get("resources", ()):
        path = folder / name
        objects += _built(path, []) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for name in said.get("components", ()):
        objects = _built(folder / name, objects)
    for found in objects:
        for change in said.get("patches", ()):
            if change["target"] == {"kind": found["kind"]}:
                _patch(found, _operations(folder, change))
        for label in said.get("labels", ()):
            found["metadata"].setdefault("labels", {}).update(label["pairs"])
        if said.get("namespace") and found["kind"] not in _OF_NO_NAMESPACE:
            found["metadata"]["namespace"] = said["namespace"]
    return objects


def _operations(folder: Path, change: Json) -> list[Json]:
    text = change["patch"] if "patch" in change else (folder / change["path"]).read_text()
    return yaml.safe_load(text)


def _patch(found: Json, operations: list[Json]) -> None:
    """JSON patches that add, replace or remove a key of a mapping."""
    for operation in operations:
        *way, last = operation["path"].split("/")[1:]
        place: Any = found
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        assert isinstance(place, dict), operation
        assert (last in place) == (operation["op"] != "add"), operation
        if operation["op"] == "remove":
            del place[last]
        else:
            place[last] = copy.deepcopy(operation["value"])
