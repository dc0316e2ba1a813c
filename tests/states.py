"""What two runs must have in common bit for bit: train states and numbers, but for the clock's."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from service.health import StepSample

CLOCKS = ("images_per_second", "data_wait_share", "throughput_ratio")
"""Health lines that say how fast a run was."""


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through nested containers."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def without(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found for name, found in value.items() if name not in names}


def without_clock(value: Any) -> Any:
    """A state with its wall-clock readings taken out."""
    cut, unlogged = json.loads(json.dumps([value["health"], value["unlogged"]]))
    names = [field.name for field in fields(StepSample)]
    for sample in [*cut["recent"], *unlogged]:
        sample[names.index("seconds")] = sample[names.index("data_wait_s")] = 0.0
    cut["rates"] = []
    policy = value["progress"]["policy"]
    since = without(policy["since"], ("data_wait", "throughput"))
    progress = {**value["progress"], "policy": {**policy, "since": since}}
    report = {**value["report"], **dict.fromkeys(CLOCKS, 0.0)}
    changed = {"health": cut, "report": report, "progress": progress, "unlogged": unlogged}
    return {**value, **changed}
