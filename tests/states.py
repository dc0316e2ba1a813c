"""What two runs must have in common bit for bit: train states and numbers, but for the clock's."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from service.health import StepSample
from service.training.checkpoint import Identity, State, load
from service.training.journal import Event, read_journal
from service.training.store import FolderStore, folder_name

CLOCKS = ("images_per_second", "data_wait_share", "throughput_ratio")
"""Health lines that say how fast a run was."""
_MOMENTS = (*CLOCKS, "seconds", "data_wait_s", "time", "attempt")


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders of complete checkpoints in `run_dir`, oldest first."""
    return [run_dir / folder_name(step) for step in FolderStore(run_dir).steps()]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint_"))


def read_checkpoint(folder: Path, *, made_with: Identity | None = None) -> State:
    """The state in one of `checkpoints`."""
    return load(FolderStore(folder.parent), step_of(folder), made_with=made_with)


def lines(folder: Path, *names: str, after: int = 0) -> list[Event]:
    """The last journal line of each kind and step past `after`, without clocks, in order."""

    def plain(value: Any) -> Any:
        is_dict = isinstance(value, dict)
        return {k: plain(v) for k, v in value.items() if k not in _MOMENTS} if is_dict else value

    told = [e for e in read_journal(folder) if e["event"] in names and e["step"] > after]
    last = {(e["step"], e["event"]): plain(e) for e in told}
    return [last[key] for key in sorted(last)]


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
