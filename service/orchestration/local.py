"""Training without Ray: the same loop in this process, or in each that torchrun started."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from service.config import Config
from service.data.fitting import open_plan
from service.decisions import Directive
from service.orchestration.alone import writing_alone
from service.orchestration.control import News
from service.orchestration.monitor import Monitor
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore
from service.orchestration.runs import Run, interrupted, resume_or_plan, taken
from service.orchestration.sinks import followed
from service.telemetry.sinks.feed import Sinks
from service.training.ending import STOPPED
from service.training.ports import Outcome, Ports

_SHOW_S = 0.5


def train_here(
    config: Config | None,
    *,
    run_id: str | None = None,
    resume: str | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[Run, Outcome]:
    """As `launch_training`, in this process; there is no exporter.

    Under torchrun every rank calls it; rank 0 makes or finds the run, and alone tells of it. An
    interrupt lets the step end, writes a checkpoint and ends as verdict INTERRUPTED; one that comes
    after the last step changes nothing.

    Raises:
        LostRankError: another rank hangs or has ended; torchrun ends all of them then.
        CrossReidError: what is wrong with config, data, run or numbers.
    """
    import torch

    from service.distributed import TIMEOUT_S, Distributed
    from service.training.loop import train
    from service.training.parts import together, unhurried

    world = Distributed.from_environment(
        config.cluster.collective_timeout_s if config else TIMEOUT_S
    )
    first = world.rank == 0
    planned = together(world, lambda: resume_or_plan(config, run_id, resume) if first else None)
    run = cast(Run, world.broadcast_object(planned))
    world = world.limited(run.config.cluster.collective_timeout_s)
    unhurried(world, lambda: open_plan(run.config, world.world))
    with ExitStack() as stack:
        if first:
            together(world, lambda: stack.enter_context(taken(run, new=resume is None)))
        else:
            together(world, lambda: None)
        if run.config.train.threads is not None:
            torch.set_num_threads(run.config.train.threads)
        if first:
            on_progress(Update(trial=MAIN_TRIAL, messages=(f"run {run.run_id} in {run.path}",)))
        sinks = stack.enter_context(followed(run, on_progress, MAIN_TRIAL)) if first else None
        stop = stack.enter_context(_asked_to_stop())
        ports, tell_rest = _ports(run, on_progress, sinks, stop)
        stack.callback(tell_rest)
        stack.enter_context(writing_alone(run.path, world))
        outcome = train(run.config, run.path, world, ports)
    world.close()
    return run, interrupted(run) if stop.is_set() and outcome.verdict == STOPPED else outcome


def _ports(
    run: Run, on_progress: OnProgress, sinks: Sinks | None, stop: threading.Event
) -> tuple[Ports, Callable[[], None]]:
    """The loop's ports, and what tells the events that came after the last step that was shown."""
    monitor = Monitor(run.config, None, on_progress, sinks)
    # Filled by the checkpoints' thread too, while it is emptied.
    events: deque[dict[str, Any]] = deque()
    shown_at = float("-inf")
    values: dict[str, Any] = {}

    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        nonlocal shown_at, values
        now = time.monotonic()
        if now - shown_at < _SHOW_S and step < total:
            return
        shown_at = now
        values = {"step": step, "total": total, "line": line}
        tell()

    def tell() -> None:
        told = tuple(events.popleft() for _ in range(len(events)))
        monitor.hear(News(MAIN_TRIAL, 0, values, told))

    def tell_rest() -> None:
        if events:
            tell()

    def poll(applied: int) -> Directive | None:
        return Directive.to_stop(applied + 1, "interrupted") if stop.is_set() else None

    return Ports(poll=poll, progress=progress, event=events.append), tell_rest


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.signal(number, note) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
