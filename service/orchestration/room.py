"""Whether a run fits into the cluster: machine by machine, since each worker lies on one."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray

from service.config import ClusterConfig
from service.errors import ClusterError

Machine = Mapping[str, float]
"""What a machine has, or a worker wants, by kind."""

_TELL_S = 5.0
_SLACK = 1e-6
"""Shares of a CPU or GPU are sums of decimal fractions."""


def worker_resources(config: ClusterConfig) -> dict[str, float]:
    """What one worker asks of its machine."""
    asked = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return {kind: each for kind, each in asked.items() if each}


def room(machines: Iterable[Machine], worker: Machine) -> int:
    """How many workers fit; each lies on one machine."""
    return sum(_fitting(machine, worker) for machine in machines)


def _fitting(machine: Machine, worker: Machine) -> int:
    fits = [_times_in(kind, machine.get(kind, 0.0), each) for kind, each in worker.items()]
    return min(fits)


def _times_in(kind: str, has: float, each: float) -> int:
    if kind == "GPU" and each < 1:
        # A share of a GPU lies on one GPU.
        return math.floor(has + _SLACK) * math.floor(1 / each + _SLACK)
    return math.floor(has / each + _SLACK)


def machines_now() -> list[Machine]:
    """What each live machine of the cluster has, whether or not somebody uses it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require(
    config: ClusterConfig, trials: int = 1, say: Callable[[str], None] = lambda line: None
) -> None:
    """Refuses a run that this cluster can not hold; `trials` run at the same time.

    With `cluster.wait_s` it asks the autoscaler for machines and waits that long for them, telling
    every few seconds what is there. With `cluster.min_workers` room for those is enough.

    Raises:
        ClusterError: saying what was found, what is needed and what to try.
    """
    needed, worker = config.fewest_workers * trials, worker_resources(config)
    machines = machines_now()
    if room(machines, worker) < needed and config.wait_s:
        machines = _awaited(needed, worker, config.wait_s, say)
    if room(machines, worker) < needed:
        raise ClusterError(refusal(config, machines, trials))


def _awaited(
    needed: int, worker: dict[str, float], wait_s: float, say: Callable[[str], None]
) -> list[Machine]:
    """The machines once they hold `needed` workers, or those that came within `wait_s`."""
    # Not at the top: it starts a session of its own where there is none.
    from ray.autoscaler.sdk import request_resources

    began, told_at = time.monotonic(), -math.inf
    try:
        while room(machines := machines_now(), worker) < needed:
            # Again at every look: a cluster has one such request, and another run's replaces it.
            request_resources(bundles=[worker] * needed)
            now = time.monotonic()
            if now - began >= wait_s:
                break
            if now - told_at >= _TELL_S:
                told_at = now
                say(progress_words(machines, worker, needed, now - began, wait_s))
            time.sleep(min(1.0, wait_s))
        return machines
    finally:
        # The request stands until it is taken back, and would keep machines for nobody.
        request_resources(bundles=[])


def progress_words(
    machines: Sequence[Machine], worker: Machine, needed: int, waited_s: float, wait_s: float
) -> str:
    """What is there and what lacks, for a person who waits."""
    found = room(machines, worker)
    return (
        f"waiting for machines: room for {found} of {needed} workers with {_listed(worker)} each "
        f"on {_many(len(machines), 'machine')}; {waited_s:.0f} of {wait_s:g} s"
    )


def refusal(config: ClusterConfig, machines: Sequence[Machine], trials: int) -> str:
    """Why the run does not fit, and what would."""
    waited = f" after cluster.wait_s={config.wait_s:g} s" if config.wait_s else ""
    for kind, each in worker_resources(config).items():
        needed = each * config.fewest_workers * trials
        has = sum(machine.get(kind, 0.0) for machine in machines)
        if needed > has + _SLACK:
            return (
                f"the run needs {needed:g} {kind}s ({_times(config, trials)} x {each:g}), but the "
                f"cluster has {has:g}{waited}; try {_remedy(config, machines, trials)}"
            )
    worker = worker_resources(config)
    return (
        f"the run needs room for {_times(config, trials)} with {_listed(worker)} each on one "
        f"machine, but the cluster's machines hold {room(machines, worker)}{waited}: "
        f"{_shapes(machines, worker)}; try {_remedy(config, machines, trials)}"
    )


def _times(config: ClusterConfig, trials: int) -> str:
    workers = _many(config.fewest_workers, "worker")
    return workers if trials == 1 else f"{trials} trials x {workers}"


def _remedy(config: ClusterConfig, machines: Sequence[Machine], trials: int) -> str:
    """What the cluster holds instead."""
    fitting = room(machines, worker_resources(config))
    if fitting < 1:
        return "a larger machine, or fewer cpus_per_worker and gpus_per_worker under cluster:"
    together = fitting // config.fewest_workers
    if together:
        return f"tune.max_concurrent={together} or fewer workers a trial"
    alone = " and tune.max_concurrent=1" if trials > 1 else ""
    setting = "num_workers" if config.min_workers is None else "min_workers"
    return f"cluster.{setting}={fitting}{alone}"


def _shapes(machines: Sequence[Machine], worker: Machine) -> str:
    """The machines' shapes, as far as the worker asks for them, with how many there are of each."""
    told = [_listed({kind: machine.get(kind, 0.0) for kind in worker}) for machine in machines]
    return ", ".join(f"{told.count(shape)} x ({shape})" for shape in sorted(set(told))) or "none"


def _listed(resources: Machine) -> str:
    return ", ".join(f"{amount:g} {kind}s" for kind, amount in resources.items())


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
