"""The plan's guarantees, against brute force, over many small data sets and settings."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.config import SamplerConfig
from service.data.index import IdentityIndex
from service.data.sampler import PKPlan, id_slice
from service.errors import SamplerError


def not_empty(row):
    return row if any(row) else (0, 0, 2, 0, 0)


@st.composite
def datasets(draw: st.DrawFn):
    """Shuffled columns of up to nine ids with up to seven rows of each modality."""
    rows = st.sampled_from([0, 1, 1, 2, 3, 5, 7])
    counts = draw(
        st.lists(st.tuples(rows, rows, rows, rows, rows).map(not_empty), min_size=2, max_size=9)
    )
    pairs = [(c, m) for c, row in enumerate(counts) for m, n in enumerate(row) for _ in range(n)]
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(pairs))
    table = np.array(pairs, np.int32)[order]
    return table[:, 0], table[:, 1].astype(np.int8), counts


@st.composite
def sampler_configs(draw: st.DrawFn):
    rows_per_id = draw(st.integers(2, 7))
    return SamplerConfig(
        ids_per_batch=draw(st.sampled_from([1, 2, 2, 3, 3, 4, 6])),
        rows_per_id=rows_per_id,
        vis_per_id=draw(st.integers(1, rows_per_id - 1)),
        mix=draw(st.sampled_from(["natural", "balanced"])),
        on_few_rows=draw(st.sampled_from(["ragged", "ragged", "exclude", "error"])),
        on_unpairable=draw(
            st.sampled_from(["replace", "replace", "soft", "soft", "lower_p", "error"])
        ),
        soft_share=draw(st.sampled_from([0.2, 0.3, 0.5, 1.0])),
    )


def pairable(row) -> bool:
    return row[0] > 0 and sum(row[1:]) > 0


def admitted(counts, config):
    """Classes that may be drawn, or None when the policies refuse the data."""
    drawn = list(range(len(counts)))
    if config.on_unpairable != "soft":
        drawn = [c for c in drawn if pairable(counts[c])]
        if config.on_unpairable == "error" and len(drawn) < len(counts):
            return None
    few = [c for c in drawn if sum(counts[c]) < config.rows_per_id]
    if few and config.on_few_rows == "error":
        return None
    return [c for c in drawn if config.on_few_rows == "ragged" or c not in few]


def batch_shape(counts, config):
    """(P, soft ids allowed in a batch), or None when the admitted ids cannot fill a batch."""
    drawn = admitted(counts, config)
    if drawn is None:
        return None
    paired = sum(pairable(counts[c]) for c in drawn)
    wanted = config.ids_per_batch
    if config.on_unpairable == "lower_p":
        return (min(wanted, paired), 0) if paired else None
    soft = int(Fraction(str(config.soft_share)) * wanted) if len(drawn) > paired else 0
    if (len(drawn) > paired and not soft) or not paired:
        return None
    return (wanted, soft) if paired >= wanted - soft and len(drawn) >= wanted else None


def chunks_needed(row, config):
    """Batches that an id must be in until each of its rows was seen, by exact rates."""
    limit, num_vis, num_other = config.rows_per_id, row[0], sum(row[1:])
    vis = min(config.vis_per_id, num_vis)
    other = min(limit - vis, num_other)
    vis = min(limit - other, num_vis)
    needed = ceil(Fraction(num_vis, vis)) if num_vis else 0
    if config.mix == "natural":
        return max(needed, ceil(Fraction(num_other, other)) if num_other else 0)
    level = max(t for t in range(limit + 1) if sum(min(n, t) for n in row[1:]) <= other)
    above = [n for n in row[1:] if n > level]
    spare = other - sum(min(n, level) for n in row[1:])
    if above and spare:
        rate = level + Fraction(spare, len(above))
        needed = max(needed, *(ceil(n / rate) for n in above))
    elif above:
        needed = max(needed, *(ceil(Fraction(n, level)) for n in above))
    return max(needed, 1)


@dataclass(frozen=True)
class Case:
    """A data set and settings that can be sampled, with what brute force says about them."""

    classes: np.ndarray
    modality: np.ndarray
    counts: list[tuple[int, ...]]
    config: SamplerConfig
    drawn: list[int]
    num_ids: int
    num_soft: int

    @property
    def index(self) -> IdentityIndex:
        return IdentityIndex.build(self.classes, self.modality, len(self.counts))

    def plan(self, seed=0) -> PKPlan:
        return PKPlan(self.index, self.config, seed)


@st.composite
def cases(draw: st.DrawFn):
    classes, modality, counts = draw(datasets())
    config = draw(sampler_configs())
    drawn, shape = admitted(counts, config), batch_shape(counts, config)
    assume(drawn is not None and shape is not None)
    return Case(classes, modality, counts, config, drawn, *shape)


@given(datasets(), sampler_configs())
def test_a_plan_is_refused_exactly_when_the_ids_cannot_fill_it(data, config):
    classes, modality, counts = data
    index = IdentityIndex.build(classes, modality, len(counts))
    shape = batch_shape(counts, config)
    if shape is not None:
        assert PKPlan(index, config, 0).ids_per_batch == shape[0]
        return
    with pytest.raises(SamplerError):
        PKPlan(index, config, 0)


@settings(max_examples=300)
@given(cases(), st.integers(0, 2**40), st.integers(1, 10**6))
def test_every_batch_keeps_every_guarantee(case, seed, epoch):
    plan, seen = case.plan(seed), Counter()
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(epoch, step)
        ids = batch.class_index.tolist()
        assert len(ids) == len(set(ids)) == case.num_ids
        assert set(ids) <= set(case.drawn)
        assert len(set(batch.rows.tolist())) == len(batch.rows) == batch.starts[-1]
        assert sum(not pairable(case.counts[c]) for c in ids) <= case.num_soft
        for i, c in enumerate(ids):
            rows = batch.rows[batch.starts[i] : batch.starts[i + 1]]
            assert (case.classes[rows] == c).all()
            check_rows_of_one_id(case.modality[rows].tolist(), case.counts[c], case.config)
        seen.update(batch.rows.tolist())
    assert sorted(seen) == np.flatnonzero(np.isin(case.classes, case.drawn)).tolist()


def check_rows_of_one_id(found, row, config):
    assert len(found) == min(config.rows_per_id, sum(row))
    assert [m == 0 for m in found] == sorted((m == 0 for m in found), reverse=True)
    num = [found.count(m) for m in range(5)]
    if pairable(row):
        assert num[0] >= min(config.vis_per_id, row[0]) >= 1
        assert sum(num[1:]) >= 1
    if config.mix == "balanced":
        most = max(num[1:])
        assert all(n >= most - 1 or n == have for n, have in zip(num[1:], row[1:], strict=True))


@given(cases())
def test_an_epoch_is_as_short_as_coverage_and_distinct_ids_allow(case):
    needed = {c: chunks_needed(case.counts[c], case.config) for c in case.drawn}
    soft_chunks = sum(n for c, n in needed.items() if not pairable(case.counts[c]))
    least = max(
        ceil(Fraction(sum(needed.values()), case.num_ids)),
        max(needed.values()),
        ceil(Fraction(soft_chunks, case.num_soft)) if case.num_soft else 0,
    )
    plan = case.plan()
    assert plan.steps_per_epoch == least
    given_out = Counter(c for s in range(least) for c in plan.batch(1, s).class_index.tolist())
    assert all(needed[c] <= given_out[c] <= least for c in case.drawn)


@given(cases())
def test_the_stats_count_what_brute_force_counts(case):
    plan, limit = case.plan(), case.config.rows_per_id
    stats = plan.stats
    sizes = {c: sum(case.counts[c]) for c in case.drawn}
    assert stats.num_ids == len(case.counts)
    assert stats.pairable_ids == sum(pairable(row) for row in case.counts)
    assert stats.soft_ids == sum(not pairable(case.counts[c]) for c in case.drawn)
    assert stats.ragged_ids == sum(n < limit for n in sizes.values())
    assert stats.usable_rows == sum(sizes.values())
    assert stats.usable_rows + stats.unusable_rows == len(case.classes)
    rows = [len(plan.batch(1, s).rows) for s in range(plan.steps_per_epoch)]
    if not stats.ragged_ids:
        assert sum(rows) == stats.rows_per_epoch
        assert stats.inflation == pytest.approx(sum(rows) / stats.usable_rows)
    assert abs(sum(rows) - stats.rows_per_epoch) <= case.num_ids * limit
    assert (stats.warning is None) == (stats.pairable_ids >= 0.8 * len(case.counts))


@given(cases())
def test_no_batch_holds_more_vis_rows_than_announced(case):
    plan = case.plan()
    cells = [(epoch, step) for epoch in (1, 2) for step in range(plan.steps_per_epoch)]
    found = [int((case.modality[plan.batch(*cell).rows] == 0).sum()) for cell in cells]
    assert max(found) <= plan.max_vis_rows
    if len(case.drawn) == case.num_ids:
        assert min(found) == plan.max_vis_rows


@given(cases(), st.integers(1, 6))
def test_the_slices_of_any_world_are_the_batch_of_a_world_of_one(case, world):
    plan = case.plan()
    if world > plan.ids_per_batch:
        with pytest.raises(SamplerError, match=f"{world} workers share P={plan.ids_per_batch}"):
            plan.check_world(world)
        return
    plan.check_world(world)
    ids = plan.batch(2, 0).class_index.tolist()
    shares = [ids[id_slice(len(ids), rank, world)] for rank in range(world)]
    assert [c for share in shares for c in share] == ids
    assert {len(s) for s in shares} <= {len(ids) // world, -(-len(ids) // world)}


@given(cases(), st.data())
def test_any_step_can_be_asked_for_in_any_order_on_any_plan(case, choice):
    plan, resumed = case.plan(11), case.plan(11)
    cells = [(epoch, step) for epoch in (1, 2, 3) for step in range(plan.steps_per_epoch)]
    in_order = {cell: plan.batch(*cell) for cell in cells}
    for cell in choice.draw(st.lists(st.sampled_from(cells), max_size=8)):
        one, two = in_order[cell], resumed.batch(*cell)
        assert np.array_equal(one.rows, two.rows)
        assert np.array_equal(one.starts, two.starts)
        assert np.array_equal(one.class_index, two.class_index)
