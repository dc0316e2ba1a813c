"""Directives and warnings from outside, errors from inside: agreed on by all before each step."""

import time
from collections.abc import Callable
from dataclasses import replace

from service.decisions import Action, Directive
from service.distributed import Distributed
from service.errors import CrossReidError
from service.training.journal import Event
from service.training.parts import raise_together
from service.training.ports import Ports
from service.training.state import Progress


class Steering:
    """The directives that wait, the one that stopped the run, and whether rank 0 halted it.

    poll: rank 0 asks it with the highest number it knows of, applied or waiting: so a directive
    that is lined up for a later step is not taken again. leaving, leaving_every_s: as in `Ports`.
    emit: writes the journal. act: carries one action out, with the reason for it. now: seconds of a
    clock that never jumps.
    """

    def __init__(
        self,
        world: Distributed,
        ports: Ports,
        emit: Callable[[Event], None],
        act: Callable[[Action, Progress, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world = world
        self._ports = ports
        self._emit = emit
        self._act = act
        self._now = now
        self._asked_at = now()
        self._leaving = ""
        self._waiting: list[Directive] = []
        self.stopped: Directive | None = None
        self.halted = False

    def replay(self, journal: list[Event], after_step: int) -> None:
        """Lines up the directives that were applied after `after_step`, for the same steps.

        A directive keeps the step of its first application through any number of attempts. A stop
        is not replayed: the run was continued on purpose.
        """
        first: dict[int, Directive] = {}
        for event in journal:
            if event["event"] == "directive" and not event["directive"]["stop"]:
                directive = Directive.from_dict(event["directive"])
                applied = replace(directive, apply_at_step=event["step"] + 1)
                first.setdefault(directive.number, applied)
        self._waiting = [d for d in first.values() if d.apply_at_step > after_step]

    def before_step(
        self, progress: Progress, error: CrossReidError | None, *, halt: bool = False
    ) -> str:
        """One small message: has any rank an error, has rank 0 a directive, is it time to ask for
        machines that leave? Every rank calls it. halt: this rank cannot go on, though its train
        state is whole.

        Returns the machines that will be taken away, when that is news; empty otherwise.

        Raises:
            CrossReidError: on all ranks, the one that some rank passed.
        """
        known = max([progress.directive, *(d.number for d in self._waiting)])
        rank0 = self._world.rank == 0
        directive = self._ports.poll(known) if rank0 and error is None else None
        number = directive.number if directive else 0
        ask = rank0 and self._now() - self._asked_at >= self._ports.leaving_every_s
        failed, newest, asked, halted = self._world.agree([error is not None, number, ask, halt])
        self.halted = bool(halted)
        if failed:
            raise_together(self._world, error)
        if newest > known:
            shared = self._world.broadcast_object(directive.to_dict() if directive else None)
            if shared is not None:
                self._waiting.append(Directive.from_dict(shared))
        self._obey(progress)
        return self._ask() if asked else ""

    def _ask(self) -> str:
        """Asks who leaves, on all ranks together; rank 0's answer counts, once."""
        self._asked_at = self._now()
        found = self._world.broadcast_object(self._ports.leaving())
        is_new, self._leaving = found != self._leaving, found
        return found if is_new else ""

    def _obey(self, progress: Progress) -> None:
        """Applies what is due before the next step, in order of number: a directive that waits for
        a later step holds back those after it, but never a stop."""
        stop = next((d for d in self._waiting if d.stop), None)
        while self._waiting and stop is None:
            directive = min(self._waiting, key=lambda d: d.number)
            if directive.apply_at_step > progress.step + 1:
                return
            self._waiting.remove(directive)
            if directive.number > progress.directive:
                self._apply(directive, progress)
        if stop is not None:
            self._waiting, self.stopped = [], stop
            self._apply(stop, progress)

    def _apply(self, directive: Directive, progress: Progress) -> None:
        progress.directive = directive.number
        if directive.state is not None:
            progress.policy = directive.state
        for action in directive.actions:
            self._act(action, progress, directive.reason)
        self._emit({"event": "directive", "step": progress.step, "directive": directive.to_dict()})
