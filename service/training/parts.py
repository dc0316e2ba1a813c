"""The parts of a run on one rank, built from its config, and a batch made ready for the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import torch
from torch import nn

from service.background import Background
from service.config import Config
from service.data.fitting import index_of, open_plan
from service.data.layout import FUSED, Batch
from service.data.loader import Loader
from service.data.records import Records
from service.data.sampler import PKPlan
from service.data.transforms import augment, draw, mask_tokens, normalise
from service.distributed import Distributed
from service.errors import CrossReidError, DataError, FrozenLayerError, SamplerError
from service.evaluation.evaluator import check_test_split
from service.health import Health
from service.losses.memory import CrossBatchMemory
from service.losses.objective import Choice
from service.model.reid import CrossReID, Inputs
from service.training.optim import build_optimizer
from service.training.schedule import Schedule

T = TypeVar("T")

TELL_S = 30.0
"""Seconds after which what all ranks wait for is told of, and again."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run works with; `wrapped` is the model inside DDP, or itself at world 1.

    choice: which classes cross-entropy chooses between, None for all.
    """

    records: Records
    plan: PKPlan
    schedule: Schedule
    loader: Loader
    model: CrossReID
    wrapped: nn.Module
    optimizer: torch.optim.AdamW
    choice: Choice | None
    memory: CrossBatchMemory | None
    health: Health


def build_parts(
    config: Config, world: Distributed, waits: Callable[[float], None] = lambda seconds: None
) -> Parts:
    """Opens the records and builds the rest, the same on every rank.

    waits: hears, every `TELL_S`, for how long records or weights have been on their way, to this
    machine or another.

    What a rank can find wrong alone (a missing file, a broken weight) comes first and is raised on
    all ranks together; collectives come after.

    Raises:
        CrossReidError: on all ranks, when data, config or model do not fit each other.
    """
    records, plan, model = unhurried(world, lambda: _local_parts(config, world), waits)
    _require_same(world, "records", records.fingerprint)
    _require_same(world, "config", config.fingerprint())
    memory = config.loss.memory
    return Parts(
        records=records,
        plan=plan,
        schedule=Schedule.of(config, plan.steps_per_epoch),
        loader=_loader(records, plan, config, world),
        model=model,
        wrapped=world.wrap(model, fixed_order=config.train.deterministic),
        optimizer=build_optimizer(model.parameter_groups(), config.optim),
        choice=Choice.of(plan.drawn, records.num_classes, world.device),
        memory=CrossBatchMemory(memory.steps, plan.max_vis_rows, model.backbone.dim, world.device)
        if memory.enabled
        else None,
        health=Health(len(plan.drawn), config.policy.window),
    )


MIN_DRAWN = 0.2
"""Least share of the people who were drawn that a lower P must still draw: with fewer, pairing has
to be repaired in the data."""


def with_ids(parts: Parts, config: Config, world: Distributed, ids: int, after_step: int) -> Parts:
    """The parts with exactly P = `ids` from the epoch on that begins after `after_step`.

    Identities that cannot pair are not drawn any more.

    Raises:
        SamplerError: the plan cannot have that P, or this world cannot share it.
    """
    change = {"ids_per_batch": ids, "on_unpairable": "replace"}
    sampler = config.sampler.model_copy(update=change)
    plan = PKPlan(index_of(parts.records), sampler, config.run.seed)
    plan.check_world(world.world)
    return replace(
        parts,
        plan=plan,
        schedule=parts.schedule.changed(after_step, plan.steps_per_epoch),
        loader=_loader(parts.records, plan, config, world),
    )


def with_lower_ids(
    parts: Parts, config: Config, world: Distributed, ids: int, after_step: int
) -> Parts:
    """As `with_ids`, with at least one identity a rank and two in all.

    Raises:
        SamplerError: P would not be lower, or most people would not be drawn any more; pairing
            has to be repaired in the data then.
    """
    ids = max(ids, world.world, 2)
    if ids >= parts.plan.ids_per_batch:
        raise SamplerError(f"P={parts.plan.ids_per_batch} cannot be lower with {world.world} ranks")
    lower = with_ids(parts, config, world, ids, after_step)
    now, then = len(lower.plan.drawn), len(parts.plan.drawn)
    if now < MIN_DRAWN * then:
        raise SamplerError(f"a lower P would draw {now} of {then} people only")
    return lower


def together(world: Distributed, call: Callable[[], T]) -> T:
    """What `call` gives on this rank, unless it failed on any: then all ranks raise that error.

    Every rank must call it; `call` itself must not need the other ranks.
    """
    result, error = None, None
    try:
        result = call()
    except CrossReidError as found:
        error = found
    raise_together(world, error)
    return cast(T, result)


def unhurried(
    world: Distributed,
    call: Callable[[], T],
    waits: Callable[[float], None] = lambda seconds: None,
) -> T:
    """As `together`, for what may take longer than the time limit of a collective, or hang: a
    machine that fetches what the others have keeps them waiting, and is not taken for lost.

    `call` runs in another thread. waits: hears the seconds since the start, every `TELL_S`.
    """
    task, waiting, began, told_s = Background(call), 1.0, time.monotonic(), 0.0
    while waiting:
        is_done = task.wait(world.turn_s)
        (waiting,) = world.agree([float(not is_done)])
        waited_s = time.monotonic() - began
        if waiting and waited_s - told_s >= TELL_S:
            told_s = waited_s
            waits(waited_s)
    return together(world, task.result)


def raise_together(world: Distributed, error: CrossReidError | None) -> None:
    """Raises, on every rank, the error of the first rank that has one. Every rank must call it."""
    (failed,) = world.agree([float(error is not None)])
    if failed:
        raise next(e for e in world.gather_objects(error) if e is not None)


def to_inputs(batch: Batch, model: CrossReID, config: Config, device: torch.device) -> Inputs:
    """The batch on the device: augmented, normalised with the backbone's constants, laid out."""
    backbone = model.backbone
    draws = draw(batch, config.run.seed, config.augment)
    images = augment(batch.images.to(device, non_blocking=True), draws, backbone.mean)
    tokens = mask_tokens(batch.tokens.to(device, non_blocking=True), draws)
    single = torch.from_numpy(np.flatnonzero(batch.layout.kind != FUSED))
    return Inputs(
        images=normalise(images, backbone.mean, backbone.std),
        image_counts=batch.image_counts,
        tokens=tokens.long(),
        fused=batch.fused.to(device, non_blocking=True),
        counts=batch.layout.counts,
        single=single.to(device, non_blocking=True),
    )


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every step and rank, so that no generator state has to be saved."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def _local_parts(config: Config, world: Distributed) -> tuple[Records, PKPlan, CrossReID]:
    records, plan = open_plan(config, world.world)
    if config.eval.after_training:
        check_test_split(Records.open(config.data.records, "test"))
    torch.manual_seed(config.run.seed)
    model = CrossReID(config.model, records.num_classes, world.gather_rows).to(world.device)
    _check_frozen(model, config)
    return records, plan, model


def _loader(records: Records, plan: PKPlan, config: Config, world: Distributed) -> Loader:
    return Loader(
        records,
        plan,
        config.run.seed,
        world.rank,
        world.world,
        config.loader,
        pin_memory=world.device.type == "cuda",
    )


def _check_frozen(model: CrossReID, config: Config) -> None:
    """Whatever does not learn must have been asked for by name.

    Raises:
        FrozenLayerError: naming the first parameters that do not learn and were not asked for.
    """
    asked = tuple(f"{name}." for name in config.model.freeze)
    still = [n for n, p in model.named_parameters() if not p.requires_grad]
    wrong = [name for name in still if not name.startswith(asked)]
    if wrong:
        raise FrozenLayerError(
            f"{len(wrong)} parameters do not learn although model.freeze does not name them: "
            f"{', '.join(wrong[:5])}; random ones would stay random for the whole run"
        )


def _require_same(world: Distributed, what: str, fingerprint: str) -> None:
    if not world.same(fingerprint):
        found = world.gather_objects(fingerprint)
        raise DataError(f"the ranks see different {what}: fingerprints {found}")
