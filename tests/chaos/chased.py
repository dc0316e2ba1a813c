"""One run, chased: its processes are killed as drawn, and started again as a person would."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from service.training.journal import Event
from tests.chaos.command import Command
from tests.chaos.kills import DAEMONS, Kill, Moment, Victim
from tests.chaos.staying import SHARED, Staying
from tests.chaos.tail import Tail

STALL_S = 400.0
"""Seconds without a new line in the journal after which a run counts as dead: one that hangs before
it trains is cleared away after half of that."""
LOST_S = 60.0
"""Seconds in which a command notices that its cluster is lost, and ends."""
LOOK_S = 0.01
_HEAD_S = "10"
"""Ray waits a minute for a lost head, in which so small a run would come to its end."""


class Dead(Exception):
    """A run did not go on."""


@dataclass(frozen=True, slots=True)
class Struck:
    """A kill that was carried out at Unix time `at`, in an attempt (0 before the first). back_s:
    seconds to the next step, None when none came before the next kill. redone: steps that were made
    again."""

    kill: Kill
    at: float
    attempt: int
    back_s: float | None = None
    redone: int = 0


class Chased:
    """A run of the config in `file`, in `storage`, under the name `run_id`.

    ray: where its clusters keep their files. logs: where its commands say what they do. cluster:
    the one that they use; without it each starts its own.
    """

    def __init__(
        self,
        file: Path,
        storage: Path,
        run_id: str,
        ray: Path,
        logs: Path,
        cluster: Staying | None = None,
    ) -> None:
        self.folder = storage / run_id
        self.cluster = cluster
        self.commands: list[Command] = []
        self.struck: list[Struck] = []
        self.amiss: list[str] = []
        self._file, self._run_id, self._ray, self._logs = str(file), run_id, ray, logs
        self._tail = Tail(self.folder)
        self._lost = 0
        self._past: set[int] = set()
        self._start()

    def play(self, kills: list[Kill], on_kill: Callable[[Struck], None]) -> None:
        """Carries out the kills that come before the run's end, and waits for that.

        Raises:
            Dead: the run did not go on after one of them, or ended otherwise than well.
        """
        for kill in kills:
            struck = self._strike(kill) if self._comes(kill) else None
            if struck is None:
                break
            self.struck.append(struck)
            on_kill(struck)
        self._until(lambda: False)

    @property
    def driver_died_last(self) -> bool:
        """Whether the run was found to have ended when a killed driver was to be replaced."""
        return any("has ended: GO" in command.errors for command in self.commands)

    @property
    def was_evaluated(self) -> bool:
        """Whether the run's evaluation was made by a command of its own."""
        return any(command.name.startswith("evaluate-") for command in self.commands)

    def close(self) -> None:
        """Ends whatever is left of it."""
        for command in self.commands:
            command.end()

    # -- waiting ---------------------------------------------------------------------------------

    def _comes(self, kill: Kill) -> bool:
        """Whether the kill's moment comes before the run ends. Workers that were not killed
        themselves may go on for a while: the steps of a lost attempt are no moment."""

        def is_there() -> bool:
            return self._tail.attempt > self._lost and self._tail.step >= kill.step

        if kill.moment is not Moment.START and not self._until(is_there):
            return False
        until = time.monotonic() + kill.delay_s
        return self._until(lambda: time.monotonic() >= until)

    def _until(self, is_so: Callable[[], bool]) -> bool:
        """Waits until it is so; False when the run has ended before.

        Raises:
            Dead: the command ended otherwise, or nothing happens any more.
        """
        heard = time.monotonic()
        while not is_so():
            if self._tail.read():
                heard = time.monotonic()
            if self._is_over():
                return False
            if time.monotonic() - heard > STALL_S:
                raise Dead(
                    f"no line in the journal for {STALL_S:g} s, after step {self._tail.step}"
                )
            time.sleep(LOOK_S)
        return True

    def _is_over(self) -> bool:
        """Whether the run has ended; a command that was killed after the verdict finds it so, and
        may have to be followed by the evaluation that it did not come to."""
        command = self.commands[-1]
        code = command.exit_code
        if code is None:
            return False
        if code and "its evaluation is missing" in command.errors:
            self._command("evaluate", str(self.folder))
            return False
        if code and f"run {self._run_id} has ended: GO" not in command.errors:
            raise Dead(f"{command.name} ended with exit code {code}: {command.errors[-1500:]}")
        return True

    # -- acting ----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Starts the run, or continues it where there is one already."""
        # On a cluster that stays they live on for a while, or, of no use to anybody, for ever.
        self._past = set(self.cluster.actors(*SHARED)) if self.cluster else set()
        is_begun = (self.folder / "config.yaml").exists()
        words = ("--resume", self._run_id) if is_begun else ("--run-id", self._run_id)
        self._command("train", self._file, *words)

    def _command(self, *words: str) -> None:
        variables = {"RAY_gcs_rpc_server_reconnect_timeout_s": _HEAD_S}
        variables = self.cluster.variables if self.cluster else variables
        self.commands.append(Command(self._logs, self._ray, *words, variables=variables))

    def _strike(self, kill: Kill) -> Struck | None:
        """Kills; None when the run ends before it has such a process."""
        pids: list[int] = []

        def are_there() -> bool:
            pids[:] = self._victims(kill.victim)
            return bool(pids)

        if not self._until(are_there):
            return None
        self._tail.read()
        at = time.time()
        with suppress(ProcessLookupError):
            os.kill(pids[int(kill.which * len(pids))], kill.victim.signal)
        if kill.victim.ends_command:
            self._again(kill.victim)
        struck = Struck(kill, at, self._tail.attempt)
        if kill.victim.ends_attempt:
            self._lost = struck.attempt
        return struck

    def _again(self, lost: Victim) -> None:
        """Starts the command anew once it has ended, unless it came to the run's end without what
        it lost."""
        command, until = self.commands[-1], time.monotonic() + LOST_S
        while command.exit_code is None and time.monotonic() < until:
            self._tail.read()
            time.sleep(LOOK_S)
        if lost in DAEMONS:
            self.amiss += [f"without its {lost} {words}" for words in _end_amiss(command)]
        command.kill()
        if command.exit_code:
            self._start()

    def _victims(self, victim: Victim) -> list[int]:
        if victim is Victim.DRIVER:
            return [self.commands[-1].pid]
        found = [self._pids(name) for name in victim.processes]
        if victim is Victim.HELPER:
            # Those of a lost controller are of no use to anybody.
            found = [pids[-1:] for pids in found]
        return [pid for pids in found for pid in pids]

    def _pids(self, name: str) -> list[int]:
        """Processes of the last command, oldest first."""
        pids = self.cluster.pids(name) if self.cluster else self.commands[-1].pids(name)
        return [pid for pid in pids if pid not in self._past]


def _end_amiss(command: Command) -> Iterator[str]:
    """What is wrong with how a command ended that lost its cluster."""
    if command.exit_code is None:
        yield f"{command.name} goes on for {LOST_S:g} s"
    if "Traceback" in command.errors:
        yield f"{command.name} shows a traceback: {command.errors[-1500:]}"


def measured(kills: list[Struck], journal: list[Event]) -> list[Struck]:
    """The kills with what the journal says of them."""
    ats = [kill.at for kill in kills] + [float("inf")]
    return [_measured(kill, until, journal) for kill, until in zip(kills, ats[1:], strict=True)]


def _measured(kill: Struck, until: float, journal: list[Event]) -> Struck:
    """until: Unix time of the next kill, before which the run may not have come to a step.

    What start-up still takes is not the price of a process that training can do without.
    """
    if kill.kill.moment is Moment.START and not kill.kill.victim.ends_attempt:
        return kill

    def is_after(event: Event) -> bool:
        if kill.kill.victim.ends_attempt:
            return event["attempt"] > kill.attempt
        return event["time"] > kill.at

    steps = [e for e in journal if e["event"] == "steps"]
    coming = next((e for e in steps if is_after(e)), None)
    if coming is None or coming["time"] > until:
        return kill
    before = [e["step"] for e in steps if e["attempt"] == kill.attempt]
    redone = max(before, default=0) - coming["step"] + 1 if kill.kill.victim.ends_attempt else 0
    return replace(kill, back_s=coming["time"] - kill.at, redone=max(redone, 0))
