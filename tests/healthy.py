"""Healthy runs of many kinds, of which none may be ended, paused or rolled back."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Healthy:
    """A plain run that learns. people: synthetic ones, of whom two thirds are for training."""

    name: str
    people: int
    seed: int
    overrides: tuple[str, ...]


SIZES = (
    (24, 4, 5),
    (24, 8, 5),
    (36, 8, 4),
    (36, 16, 3),
    (72, 16, 5),
)
"""People, P, K; two thirds of the people are trained on."""

SDM = ("ce", "kl", "off", "ce")
HEADS = ("3e-3", "[{epoch: 1, lr: 1e-2}, {epoch: 2, lr: 3e-3}]")


def _kinds() -> Iterator[Healthy]:
    """Twenty runs: five sizes by four forms of SDM, the other settings taken in turn."""
    for i, ((people, ids, rows), form) in enumerate(product(SIZES, SDM)):
        seed, memory, head = i % 5, i % 3 != 2, HEADS[(i // 2) % 2]
        smoothing, precision = (0.1, 0.0)[i % 2], "bf16" if i % 4 == 3 else "fp32"
        yield Healthy(
            f"{people * 2 // 3} people, P={ids} K={rows}, SDM {form}, "
            f"memory {'on' if memory else 'off'}, head {'falls' if '[' in head else head}, "
            f"smoothing {smoothing}, {precision}",
            people,
            seed,
            (
                f"run.seed={seed}",
                f"sampler.ids_per_batch={ids}",
                f"sampler.rows_per_id={rows}",
                "loss.sdm.enabled=false" if form == "off" else f"loss.sdm.form={form}",
                f"loss.memory.enabled={str(memory).lower()}",
                f"optim.head_lr={head}",
                f"loss.label_smoothing={smoothing}",
                f"train.precision={precision}",
                "train.max_steps=300",
                "policy.final_look=120",
            ),
        )


HEALTHY = tuple(_kinds())
