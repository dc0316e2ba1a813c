"""Time inside chosen calls of a real run, for benchmarks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from service.config import Config
from service.data.ingest import ingest
from service.data.synthetic import SynthSettings, synthesize
from service.settings import load_config
from service.training.loop import Trainer


@dataclass(slots=True)
class Clock:
    """Seconds and number of calls of one wrapped call; cpu_s: of the thread that calls."""

    cpu_s: float = 0.0
    wall_s: float = 0.0
    calls: int = 0

    def add(self, since: tuple[float, float]) -> None:
        cpu, wall = now()
        self.cpu_s, self.wall_s = self.cpu_s + cpu - since[0], self.wall_s + wall - since[1]
        self.calls += 1


def now() -> tuple[float, float]:
    return time.thread_time(), time.perf_counter()


@contextmanager
def timed(calls: Sequence[tuple[Any, str]], clocks: dict[str, Clock]) -> Iterator[None]:
    """While it is open, every call's time goes to its clock."""
    with ExitStack() as open_patches:
        for owner, name in calls:
            clock = clocks[call_name(owner, name)] = Clock()
            changed = measured(getattr(owner, name), clock)
            open_patches.enter_context(patch.object(owner, name, changed))
        yield


def call_name(owner: Any, name: str) -> str:
    return f"{owner.__name__.rsplit('.', 1)[-1]}.{name}"


def measured(real: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        begin = now()
        try:
            return real(*args, **named)
        finally:
            clock.add(begin)

    return call


def demo_config(folder: Path, steps: int) -> Config:
    """configs/demo.yaml on the data of `make demo`; it trains `steps` steps."""
    synthesize(folder / "orbench", SynthSettings())
    ingest(folder / "orbench", str(folder / "records"), image_size=(96, 48))
    overrides = [
        f"data.records={folder / 'records'}",
        f"train.max_steps={steps}",
        "eval.after_training=false",
    ]
    return load_config(str(Path(__file__).parents[2] / "configs" / "demo.yaml"), overrides)


def run_folder(folder: Path, name: str) -> Path:
    path = folder / f"run-{name}"
    path.mkdir()
    return path


def run_timed(trainer: Trainer, clocks: dict[str, Clock], *, warm_up: int, steps: int) -> Clock:
    """The time of the steps after the warm-up, whose calls are forgotten."""
    real, began, whole = trainer._step, now(), Clock()

    def step(*given: Any) -> None:
        nonlocal began
        if trainer.progress.step == warm_up:
            for clock in clocks.values():
                clock.cpu_s, clock.wall_s, clock.calls = 0.0, 0.0, 0
            began = now()
        real(*given)
        if trainer.progress.step == warm_up + steps:
            whole.add(began)

    trainer._step = step
    try:
        trainer.run()
        return whole
    finally:
        trainer.close()
