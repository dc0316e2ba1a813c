"""Looks at the sampler's plan: what the batches hold, and what a plainer sampler would give."""

from collections.abc import Iterable, Iterator

import numpy as np

from service.causes import Cause
from service.config import Config
from service.data.index import IdentityIndex
from service.data.layout import FUSED, StepLayout
from service.data.records import Records
from service.data.sampler import PAIRABLE_WARNING, PKPlan, PlanBatch, id_slice
from service.data.shares import fused_members, take_share
from service.doctor.check import Check, Diagnosis, Status, Table, judged
from service.doctor.data import PAIRABLE_LEAST, class_numbers
from service.errors import SamplerError
from service.losses.pairs import Pairs
from service.modality import Modality

SHOWN = 5
"""Batches of the first epoch whose composition is shown."""
DRAWN = 20
"""Batches over which samplers are compared."""
MAX_ROWS = 200_000
"""Rows up to which every batch of an epoch is looked at."""


def diagnose_sampler(config: Config) -> Diagnosis:
    """What the plan of `config` makes of its records.

    Raises:
        DataError: there are no records.
    """
    records = Records.open(config.data.records, "train")
    subject = f"sampler of {config.run.name} on {config.data.records}"
    labels = class_numbers(records.class_index, records.num_classes)
    broken = [check for check in labels if check.status is Status.FAIL]
    if broken:
        return Diagnosis(subject, tuple(broken))
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    try:
        plan = PKPlan(index, config.sampler, config.run.seed)
        plan.check_world(config.cluster.num_workers)
    except SamplerError as error:
        wanted = "a plan that the people can fill"
        return Diagnosis(subject, (Check("plan", Status.FAIL, str(error), wanted),))
    batches = [plan.batch(1, step) for step in range(min(SHOWN, plan.steps_per_epoch))]
    seed = config.run.seed
    checks = [
        Check(
            "plan",
            Status.OK,
            f"P={plan.ids_per_batch}, K={config.sampler.rows_per_id}, "
            f"{plan.steps_per_epoch} steps an epoch, {plan.stats.inflation:.2f}x the least",
        ),
        recommended(index),
        distinct(batches, plan.ids_per_batch),
        paired(batches, records, plan.stats.soft_ids),
        ranks_together(batches, records, seed, config.cluster.num_workers),
        length(plan),
        *whole_epoch(plan, records),
    ]
    unpaired, comparison = compare(plan, index, records, config)
    checks.append(unpaired)
    tables = (_people_table(index), _batch_table(batches, records), comparison)
    return Diagnosis(subject, tuple(checks), tables, (plan.stats.text(),))


def recommended(index: IdentityIndex) -> Check:
    """The share of people who can pair, and what to do about the others."""
    share = float(index.pairable.mean())
    soft = share > PAIRABLE_LEAST
    return judged(
        "people who can pair",
        share > PAIRABLE_WARNING,
        f"{share:.1%} of {index.num_classes}",
        f"more than {PAIRABLE_WARNING:.0%}",
        "sampler.on_unpairable=replace leaves the others out, soft draws some of them unpaired"
        if soft
        else "too few for any sampler: add the missing modalities and ingest again",
        cause=Cause.NOT_PAIRING,
        otherwise=Status.WARN if soft else Status.FAIL,
    )


def distinct(batches: Iterable[PlanBatch], ids_per_batch: int) -> Check:
    """No person and no row comes twice in a batch, and each batch has P people."""
    wrong = [
        f"step {step}: {len(b.class_index)} ids, {len(set(b.class_index.tolist()))} of them "
        f"distinct; {len(b.rows)} rows, {len(set(b.rows.tolist()))} distinct"
        for step, b in enumerate(batches)
        if len(b.class_index) != ids_per_batch
        or len(set(b.class_index.tolist())) != ids_per_batch
        or len(set(b.rows.tolist())) != len(b.rows)
    ]
    return judged(
        "people and rows of a batch",
        not wrong,
        wrong[0] if wrong else f"{ids_per_batch} different people, all rows different",
        f"{ids_per_batch} different people and no row twice",
        "this is a fault of the program: report it with the config",
    )


def paired(batches: Iterable[PlanBatch], records: Records, soft_ids: int) -> Check:
    """Every person of a batch shows VIS and something else, and every row is that person's."""
    batches = list(batches)
    lonely = sum(
        0 if _pairs(records.modality[rows]) else 1 for b in batches for _, rows in _people(b)
    )
    foreign = sum(
        int((records.class_index[rows] != person).sum())
        for b in batches
        for person, rows in _people(b)
    )
    number = sum(len(b.class_index) for b in batches)
    told = f"{number - lonely} of {number} people show VIS and another modality"
    return judged(
        "people of a batch pair",
        not lonely and not foreign,
        told + (f"; {foreign} rows are another person's" if foreign else ""),
        "all of them, each with own rows",
        cause=Cause.NOT_PAIRING,
        otherwise=Status.WARN if soft_ids and not foreign else Status.FAIL,
    )


def ranks_together(
    batches: Iterable[PlanBatch], records: Records, seed: int, num_workers: int
) -> Check:
    """The shares of all ranks are the global batch, each row once, at every world size."""
    batches = list(batches)
    smallest = min(len(b.class_index) for b in batches)
    worlds = [w for w in sorted({1, 2, 3, num_workers}) if w <= smallest]
    wrong = [
        f"step {step} with {world} ranks"
        for world in worlds
        for step, b in enumerate(batches)
        if not np.array_equal(
            np.sort(_shared_out(b, records, (seed, 1, step), world)), np.sort(b.rows)
        )
    ]
    return judged(
        "ranks share a batch",
        not wrong,
        f"not whole at {wrong[0]}"
        if wrong
        else f"whole and without overlap with {', '.join(map(str, worlds))} ranks",
        "each row on exactly one rank",
        "this is a fault of the program: report it with the config",
    )


def length(plan: PKPlan) -> Check:
    """The epoch ends where it says it ends."""
    last = plan.steps_per_epoch - 1
    try:
        plan.batch(1, last)
        plan.batch(1, last + 1)
        told, good = f"step {last + 2} is still a batch", False
    except IndexError:
        told, good = f"{last + 1} steps, and no more", True
    return judged(
        "length of an epoch",
        good,
        told,
        f"{last + 1} steps",
        "this is a fault of the program: report it with the config",
    )


def whole_epoch(plan: PKPlan, records: Records) -> list[Check]:
    """Every row of every person that is drawn is seen in an epoch; nothing for large data."""
    if records.num_rows > MAX_ROWS:
        return []
    seen = np.zeros(records.num_rows, np.int64)
    for step in range(plan.steps_per_epoch):
        seen[plan.batch(1, step).rows] += 1
    usable, got = plan.stats.usable_rows, int((seen > 0).sum())
    most = int(seen.max())
    return [
        judged(
            "rows seen in an epoch",
            got == usable,
            f"{got} of {usable} usable rows, the most often seen {most} times; "
            f"{plan.stats.unusable_rows} rows belong to people who are not drawn",
            f"all {usable}",
            "this is a fault of the program: report it with the config",
        )
    ]


def compare(
    plan: PKPlan, index: IdentityIndex, records: Records, config: Config
) -> tuple[Check, Table]:
    """Rows without a positive under this plan, and under two plainer samplers of the same size."""
    rng = np.random.default_rng(config.run.seed)
    steps = np.linspace(0, plan.steps_per_epoch - 1, DRAWN).astype(int)
    ours = [plan.batch(1, int(step)).rows for step in steps]
    sizes = [len(rows) for rows in ours]
    by_class = np.split(index.order, np.cumsum(index.counts.sum(axis=1))[:-1])
    k = config.sampler.rows_per_id
    plain = [_some_people(by_class, plan.ids_per_batch, k, rng) for _ in steps]
    anyhow = [rng.choice(records.num_rows, min(n, records.num_rows), replace=False) for n in sizes]
    samplers = {
        "this plan": ours,
        "P people, any K rows": plain,
        "rows at random": anyhow,
    }
    shares = {name: unpaired_share(drawn, records) for name, drawn in samplers.items()}
    bound = 1.0 - config.policy.coverage
    check = judged(
        "rows without a positive",
        shares["this plan"] <= bound,
        f"{shares['this plan']:.1%}, against {shares['rows at random']:.1%} at random",
        f"{bound:.0%} or less, as policy.coverage says",
        cause=Cause.NOT_PAIRING,
    )
    rows = tuple((name, f"{share:.1%}") for name, share in shares.items())
    title = f"Samplers compared over {DRAWN} batches"
    return check, Table(title, ("sampler", "rows without a positive"), rows)


def unpaired_share(batches: Iterable[np.ndarray], records: Records) -> float:
    """The share of rows without a row of the same person on the other side, as the loss counts."""
    found = [Pairs.of(_layout(rows, records), np.empty(0, np.int64)) for rows in batches]
    return sum(p.unpaired for p in found) / max(sum(p.single for p in found), 1)


def _layout(rows: np.ndarray, records: Records) -> StepLayout:
    kind = records.modality[rows].astype(np.int8)
    return StepLayout(records.class_index[rows].astype(np.int64), kind, (len(rows),), 0)


def _some_people(
    by_class: list[np.ndarray], num_ids: int, rows_per_id: int, rng: np.random.Generator
) -> np.ndarray:
    """K rows of each of P people, drawn without looking at modalities."""
    ids = rng.choice(len(by_class), min(num_ids, len(by_class)), replace=False)
    picked = [
        rng.choice(by_class[i], min(rows_per_id, len(by_class[i])), replace=False) for i in ids
    ]
    return np.concatenate(picked)


def _shared_out(
    b: PlanBatch, records: Records, key: tuple[int, int, int], world: int
) -> np.ndarray:
    """The rows of all ranks' shares, one after another."""
    modality, num_ids = records.modality[b.rows], len(b.class_index)
    person = np.repeat(np.arange(num_ids), np.diff(b.starts))
    members = fused_members(modality, person, b.class_index, key)
    shares = [
        take_share(b.rows, modality, b.starts, b.class_index, members, id_slice(num_ids, r, world))
        for r in range(world)
    ]
    return np.concatenate([share.row[share.kind != FUSED] for share in shares])


def _people(b: PlanBatch) -> Iterator[tuple[int, np.ndarray]]:
    """Each person of a batch with their rows."""
    for i, person in enumerate(b.class_index.tolist()):
        yield person, b.rows[b.starts[i] : b.starts[i + 1]]


def _pairs(modality: np.ndarray) -> bool:
    return bool((modality == Modality.VIS).any() and (modality != Modality.VIS).any())


def _people_table(index: IdentityIndex) -> Table:
    """Rows of a person by modality."""
    rows = tuple(
        (
            m.label,
            *(f"{f(index.counts[:, m]):g}" for f in (np.min, np.median, np.max)),
            str(int((index.counts[:, m] == 0).sum())),
        )
        for m in Modality
    )
    return Table(
        "Rows of a person", ("modality", "least", "median", "most", "people without"), rows
    )


def _batch_table(batches: Iterable[PlanBatch], records: Records) -> Table:
    rows = []
    for step, b in enumerate(batches):
        counts = np.bincount(records.modality[b.rows], minlength=len(Modality)).tolist()
        lonely = sum(not _pairs(records.modality[r]) for _, r in _people(b))
        cells = (step + 1, len(b.class_index), len(b.rows), *counts, lonely)
        rows.append(tuple(str(cell) for cell in cells))
    columns = ("step", "people", "rows", *(m.label for m in Modality), "unpaired people")
    return Table(f"First {len(rows)} batches", columns, tuple(rows))
