"""The run that hosts are held against: the same config on this machine alone, without Ray."""

from pathlib import Path

from service.config import Config
from service.decisions import Directive
from service.distributed import Distributed
from service.launch import launch
from service.training.journal import Event, read_journal
from service.training.loop import train
from service.training.ports import Ports


def train_alone(config: Config, world: int, folder: Path, steps: int | None = None) -> list[Event]:
    """The journal of the run in `folder`, which has its checkpoint too; stopped after `steps`."""
    folder.mkdir()
    launch(_trained, world, config, str(folder), steps)
    return read_journal(folder)


def _trained(world: Distributed, config: Config, folder: str, steps: int | None) -> None:
    made = 0

    def poll(applied: int) -> Directive | None:
        nonlocal made
        made += 1
        return Directive.to_stop(applied + 1, "enough") if made - 1 == steps else None

    train(config, Path(folder), world, Ports(poll=poll))
