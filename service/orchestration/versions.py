"""Whether a cluster has the Ray, Python and torch that a run was submitted with.

A job asks before it imports anything that other versions could break at, so this module keeps to
the standard library, and to syntax that older Pythons read too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

VARIABLE = "CROSSREID_SUBMITTED_WITH"
"""What the submitter wants found, as JSON: {"versions": {...}, "image": ..., "any": ...}."""
REFUSED = "refused: "
"""How the line begins by which a job says that it ended before it changed anything."""
_MISSING = "none"
_HEAD = "the cluster's head"
_USER_ERROR = 2


def versions() -> dict[str, str]:
    """This process's own: Python without its patch number, torch without its build."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": _installed("ray"),
        "torch": _installed("torch").partition("+")[0],
    }


def wanted(image: str, *, any_versions: bool) -> dict[str, str]:
    """The environment by which a job hears of its submitter's versions.

    image: the one that holds them. any_versions: others are told of and taken.
    """
    told = {"versions": versions(), "image": image, "any": any_versions}
    return {VARIABLE: json.dumps(told)}


def misfit(
    found: dict[str, str],
    image: str,
    expected: dict[str, str] | None = None,
    where: str = _HEAD,
) -> str:
    """What differs and what to do; empty when nothing does, or `found` does not name it.

    image: the one that fits. expected: None is this process's own. where: what has `found`.
    """
    expected = expected or versions()
    other = [name for name in expected if found.get(name, expected[name]) != expected[name]]
    if not other:
        return ""
    differing = "; ".join(f"{name} {found[name]}, expected {expected[name]}" for name in other)
    return (
        f"{where} has {differing}, as on the machine that submits; run the cluster "
        f"on the image {image} (docker/Dockerfile, see deploy/README.md), or install the cluster's "
        "versions where you submit"
    )


def unfit(where: str) -> str:
    """What this process, called `where`, has else than its job was submitted with, and what to do;
    empty when nothing differs, nobody told what to expect, or --any-versions takes it."""
    told = json.loads(os.environ.get(VARIABLE) or "null")
    if told is None or told["any"]:
        return ""
    return misfit(versions(), told["image"], told["versions"], where)


def check_versions() -> None:
    """Ends a job that was submitted with other versions than it finds here, with exit code 2.

    A job that nobody told what to expect goes on.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return
    told = json.loads(text)
    found = misfit(versions(), told["image"], told["versions"])
    if not found:
        return
    if not told["any"]:
        remedy = "or go on all the same with --any-versions"
        sys.stderr.write(f"{REFUSED}ClusterError: {found}; {remedy}\n")
        sys.exit(_USER_ERROR)
    sys.stderr.write(f"going on with other versions, as --any-versions says: {found}\n")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _MISSING
