"""Which process of a run is killed when: drawn from a seed, and nothing else."""

import itertools
import random
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Victim(StrEnum):
    """FROZEN: a rank that stands still (SIGSTOP), as one does whose machine or network hangs.
    BARRIER: what ranks meet at to report, which Ray Train runs beside its controller. HELPER: one
    of the other actors that it has for itself. NODE: one of the processes of Ray's node, which ends
    with each of them. HEAD: the process that knows what the cluster holds."""

    RANK = "rank"
    FROZEN = "rank, frozen"
    EXPORTER = "exporter"
    CONTROL = "control plane"
    CONTROLLER = "controller"
    DRIVER = "driver"
    BARRIER = "barrier"
    HELPER = "Ray's helper"
    NODE = "raylet, agent"
    HEAD = "gcs_server"

    @property
    def processes(self) -> tuple[str, ...]:
        """What command lines of such processes say; that of the driver depends on how it was
        started."""
        return {
            Victim.RANK: ("ray::RayTrainWorker",),
            Victim.FROZEN: ("ray::RayTrainWorker",),
            Victim.EXPORTER: ("ray::Exporter",),
            Victim.CONTROL: ("ray::ControlState",),
            Victim.CONTROLLER: ("ray::TrainController",),
            Victim.BARRIER: ("ray::SynchronizationActor",),
            Victim.HELPER: HELPERS,
            Victim.NODE: ("/raylet/raylet", *AGENTS),
            Victim.HEAD: ("/gcs/gcs_server",),
        }[self]

    @property
    def signal(self) -> signal.Signals:
        return signal.SIGSTOP if self is Victim.FROZEN else signal.SIGKILL

    @property
    def ends_attempt(self) -> bool:
        """Whether training has to start again without it."""
        return self not in (Victim.EXPORTER, Victim.CONTROL, Victim.HELPER)

    @property
    def ends_command(self) -> bool:
        """Whether the command has to be started again without it."""
        return self is Victim.DRIVER or self in DAEMONS


HELPERS = (
    "ray::DatasetManager",
    "ray::PlacementGroupCleaner",
    "ray::PreemptionWatcher",
    "ray::_AutoscalingCoordinatorActor",
)
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
DAEMONS = (Victim.NODE, Victim.HEAD)
"""Without them there is no cluster of one machine."""


class Moment(StrEnum):
    """STEP: at a step. CHECKPOINT: at a step whose state is being written. START: some seconds
    after the last kill or the run's start. END: after the last step, while the run is evaluated,
    and closed."""

    STEP = "a step"
    CHECKPOINT = "a checkpoint"
    START = "start-up"
    END = "the end"


SHARES = {
    Victim.RANK: 5,
    Victim.DRIVER: 5,
    Victim.CONTROLLER: 3,
    Victim.CONTROL: 3,
    Victim.EXPORTER: 2,
    Victim.FROZEN: 2,
    Victim.BARRIER: 2,
    Victim.HELPER: 3,
    Victim.NODE: 2,
    Victim.HEAD: 1,
}
STAYING_SHARES = {victim: share for victim, share in SHARES.items() if victim not in DAEMONS}
"""On a cluster that stays when the run's command goes."""
MOMENTS = {Moment.STEP: 5, Moment.CHECKPOINT: 2, Moment.START: 2}
DELAYS_S = {Moment.STEP: 0.1, Moment.CHECKPOINT: 0.06, Moment.START: 10.0, Moment.END: 2.0}
"""The longest delay after a moment has come."""


@dataclass(frozen=True, slots=True)
class Kill:
    """step: the one that the moment waits for, 0 of START. which: of several such processes, as a
    share. delay_s: seconds after the moment has come."""

    victim: Victim
    moment: Moment
    step: int
    which: float
    delay_s: float


def draw(
    seed: int,
    number: int,
    *,
    total: int,
    checkpoint_every: int,
    shares: Mapping[Victim, int] = SHARES,
) -> list[Kill]:
    """`number` kills of one run of `total` steps, in the order of its steps, each in a stretch of
    its own; the last one often waits for the end.

    shares: how often a victim comes up in a deck; a new deck begins when one is used up.
    """
    rng = random.Random(seed)
    victims = itertools.islice(_decks(rng, shares), number)
    kills = []
    for i, victim in enumerate(victims):
        weights = MOMENTS | ({Moment.END: sum(MOMENTS.values())} if i == number - 1 else {})
        moment = rng.choices(list(weights), list(weights.values()))[0]
        step = rng.randint(i * total // number + 1, (i + 1) * total // number)
        if moment is Moment.CHECKPOINT:
            step = max(step // checkpoint_every, 1) * checkpoint_every
        step = {Moment.START: 0, Moment.END: total}.get(moment, step)
        delay_s = rng.uniform(0.0, DELAYS_S[moment])
        kills.append(Kill(victim, moment, step, which=rng.random(), delay_s=delay_s))
    return kills


def _decks(rng: random.Random, shares: Mapping[Victim, int]) -> Iterator[Victim]:
    while True:
        deck = [victim for victim, times in shares.items() for _ in range(times)]
        rng.shuffle(deck)
        yield from deck
