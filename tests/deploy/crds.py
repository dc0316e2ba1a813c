"""The CRDs of KubeRay and of prometheus-operator, made strict."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.deploy.kustomize import Json

FOLDER = Path("tests/schemas")
GROUPS = ("ray.io", "monitoring.coreos.com")


def is_custom(found: Json) -> bool:
    return found["apiVersion"].partition("/")[0] in GROUPS


def complaints(found: Json) -> list[str]:
    """What the CRD refuses about a custom resource, fields that it does not name among it."""
    checker = _checkers().get((found["apiVersion"], found["kind"]))
    if checker is None:
        return [f"unknown kind {found['apiVersion']} {found['kind']}"]
    errors = checker.iter_errors(found)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]


@cache
def _checkers() -> dict[tuple[str, str], Draft202012Validator]:
    """A checker by apiVersion and kind; versions that are to go are left out."""
    made = {}
    for path in sorted(FOLDER.glob("*/*.yaml.gz")):
        spec = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            if version["served"] and not version.get("deprecated"):
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                made[key] = Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
    return made


def strict(node: Any) -> Any:
    """The schema, with keys that it does not name refused, as `kubectl --validate=strict` does.

    Metadata is checked by Kubernetes itself, and its schema in a CRD is empty.
    """
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        if not is_open:
            made["additionalProperties"] = False
    return made
