"""Runs that are chased, held against one that was left alone."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.orchestration.summary import read_summary
from service.training.journal import read_journal
from tests.chaos.chased import Chased, Dead, Struck, measured
from tests.chaos.command import Command
from tests.chaos.kills import Kill, Victim
from tests.chaos.staying import staying
from tests.chaos.trace import differences, read_trace, summary_differences
from tests.small import make_records, small_config
from tests.states import checkpoints, read_checkpoint, same, without_clock

CHECKPOINT_EVERY = 10
WORLD = 2
SETTINGS = (
    f"cluster.num_workers={WORLD}",
    "cluster.max_failures=1000",
    "cluster.collective_timeout_s=10",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "log.every=1",
    "eval.after_training=true",
    "telemetry.enabled=true",
    "telemetry.port=0",
    "telemetry.linger_s=1",
    # The trace has another clock, which must decide nothing.
    "policy.max_data_wait=1.0",
    "policy.min_throughput=0.0",
)
LOCKS = {".writer.lock", ".writer"}
"""Who may write to a run, and who did last: they stay when several ranks trained it."""
DRIVERS = {"ray", "ray/.validate_storage_marker"}
"""What a driver clears away; nobody does when it is killed after the run's end. Its announcement to
Prometheus goes with the next run."""
_TORCHRUN = ("-m", "torch.distributed.run", f"--nproc-per-node={WORLD}")
_METRICS = re.compile(r"metrics at (http://\S+)")


class Campaign:
    """A folder with a config, the run of it that was left alone, and those that are chased.

    ray: where their clusters keep their files. total: steps of a run. The first run is torchrun's,
    without Ray.
    """

    def __init__(self, folder: Path, ray: Path, total: int) -> None:
        self.total = total
        self._ray, self._logs, self._storage = ray, folder / "logs", folder / "runs"
        self._logs.mkdir()
        self._file = folder / "config.yaml"
        overrides = [*SETTINGS, f"train.max_steps={total}", f"run.storage={self._storage}"]
        self._file.write_text(small_config(make_records(folder), overrides).to_yaml())
        self._trace = self._left_alone()
        self._journal = read_trace(self._trace)
        self._state = final_state(self._trace)

    def chase(
        self,
        run_id: str,
        kills: list[Kill],
        on_kill: Callable[[Struck], None] = lambda kill: None,
        *,
        stays: bool = False,
    ) -> tuple[list[Struck], list[str]]:
        """The kills that came in time, and what the run did otherwise than the one left alone.

        stays: whether its commands use one cluster that stays, and not each its own.
        """
        with staying(self._logs, self._ray) if stays else nullcontext() as cluster:
            run = Chased(self._file, self._storage, run_id, self._ray, self._logs, cluster)
            try:
                run.play(kills, on_kill)
                wrong = [*self._unlike(run), *self._wrong_end(run), *_left(run)]
            except Dead as error:
                wrong = [f"the run died: {error}", *self._unlike(run)]
            finally:
                run.close()
        return measured(run.struck, read_journal(run.folder)), run.amiss + wrong

    def _left_alone(self) -> Path:
        words = ("train", str(self._file), "--no-ray", "--run-id", "trace")
        command = Command(self._logs, self._ray, *words, launcher=_TORCHRUN)
        try:
            assert command.wait() == 0, command.errors
        finally:
            command.end()
        return self._storage / "trace"

    def _unlike(self, run: Chased) -> Iterator[str]:
        journal = read_journal(run.folder)
        return differences(self._journal, journal, self.total, evaluated=run.was_evaluated)

    def _wrong_end(self, run: Chased) -> Iterator[str]:
        found = final_state(run.folder)
        names = [name for name in self._state if not same(self._state[name], found.get(name))]
        if names:
            yield f"the final checkpoint differs in {', '.join(names)}"
        expected, summary = (read_summary(folder) or {} for folder in (self._trace, run.folder))
        yield from summary_differences(expected, summary)
        due, there = files(self._trace) - LOCKS, files(run.folder) - LOCKS
        if run.driver_died_last:
            there -= DRIVERS
        if there != due:
            odd, gone = sorted(there - due), sorted(due - there)
            yield f"the run's folder has {odd}, which do not belong there, and lacks {gone}"
        strays = [path.name for path in self._storage.glob(".*")]
        if strays:
            yield f"beside the run's folder there are {strays}"
        announced = [path.name for path in (self._storage / "exporters").iterdir()]
        if announced and not run.driver_died_last:
            yield f"after its end the run is still announced to Prometheus: {announced}"


def final_state(folder: Path) -> Any:
    return without_clock(read_checkpoint(checkpoints(folder)[-1]))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _left(run: Chased) -> Iterator[str]:
    """What of the run outlives it: processes, and an exporter that still answers."""
    for command in run.commands:
        left = command.left()
        if left:
            yield f"after {command.name} there are still processes: {left}"
    if run.cluster:
        ends_controller = (Victim.CONTROLLER, Victim.DRIVER)
        yield from run.cluster.left(sum(s.kill.victim in ends_controller for s in run.struck))
    # A cluster's exporter outlives a killed driver for a while, but not the cluster.
    for url in {url for command in run.commands for url in _METRICS.findall(command.errors)}:
        place = urlsplit(url)
        with suppress(OSError):
            socket.create_connection((place.hostname, place.port), timeout=1).close()
            yield f"somebody still serves at {url}"
