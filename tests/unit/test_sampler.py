"""The plan at a realistic size, its fairness, its policies and what it refuses."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest

from service.config import SamplerConfig
from service.data.index import IdentityIndex
from service.data.sampler import PKPlan
from service.errors import SamplerError
from service.modality import Modality


def skewed(num_rows, num_ids, seed=0):
    """Columns as real data has them: gamma-tailed ids, five modalities, some ids VIS only."""
    rng = np.random.default_rng(seed)
    weight = rng.gamma(2.0, 1.0, num_ids)
    drawn = rng.choice(num_ids, num_rows - num_ids, p=weight / weight.sum())
    classes = np.concatenate((np.arange(num_ids), drawn)).astype(np.int32)
    mix = np.array([45, 26, 18, 18, 45]) / 152
    modality = rng.choice(5, num_rows, p=mix).astype(np.int8)
    modality[np.isin(classes, rng.choice(num_ids, num_ids // 20, replace=False))] = 0
    return classes, modality


def even(num_ids, *counts):
    """An index of `num_ids` ids that all have `counts` rows of each modality."""
    pattern = np.repeat(np.arange(5), counts)
    return IdentityIndex.build(
        np.repeat(np.arange(num_ids), len(pattern)), np.tile(pattern, num_ids), num_ids
    )


@pytest.fixture(scope="module")
def columns():
    return skewed(30_000, 400)


@pytest.mark.parametrize(
    ("settings", "most_steps"),
    [
        ({"rows_per_id": 4, "mix": "natural"}, 1.25),
        ({"rows_per_id": 4, "vis_per_id": 2, "mix": "natural"}, 1.5),
        ({"rows_per_id": 5, "mix": "balanced"}, 1.75),
        ({"rows_per_id": 8, "vis_per_id": 3, "mix": "natural"}, 1.2),
    ],
)
def test_a_realistic_epoch_covers_every_usable_row_with_paired_distinct_ids(
    columns, settings, most_steps
):
    classes, modality = columns
    index = IdentityIndex.build(classes, modality, 400)
    config = SamplerConfig(ids_per_batch=16, **settings)
    plan = PKPlan(index, config, 1)
    seen = np.zeros(len(classes), np.int64)
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(1, step)
        assert len(np.unique(batch.class_index)) == 16
        assert len(np.unique(batch.rows)) == len(batch.rows)
        owner = np.repeat(batch.class_index, np.diff(batch.starts))
        assert (classes[batch.rows] == owner).all()
        is_vis = modality[batch.rows] == Modality.VIS
        assert set(owner[is_vis]) == set(owner[~is_vis]) == set(batch.class_index)
        seen[batch.rows] += 1
    usable = index.pairable[classes]
    assert ((seen > 0) == usable).all()
    assert seen.sum() == pytest.approx(plan.stats.rows_per_epoch, abs=16 * 8)
    assert plan.stats.usable_rows == usable.sum()
    assert 1.0 <= plan.stats.inflation <= most_steps


def test_five_of_each_modality_means_one_row_of_each_in_every_chunk():
    plan = PKPlan(even(8, 6, 6, 6, 6, 6), SamplerConfig(ids_per_batch=4, rows_per_id=5), 0)
    modality = np.tile(np.repeat(np.arange(5), 6), 8)
    assert plan.steps_per_epoch == 12
    assert plan.stats.inflation == 1.0
    for step in range(12):
        assert (modality[plan.batch(1, step).rows].reshape(4, 5) == np.arange(5)).all()


def test_a_rotating_place_goes_to_every_modality_equally():
    config = SamplerConfig(ids_per_batch=2, rows_per_id=4, mix="balanced")
    plan = PKPlan(even(2, 8, 8, 8, 8, 8), config, 0)
    modality = np.tile(np.repeat(np.arange(5), 8), 2)
    drawn = [modality[plan.batch(e, s).rows] for e in (1, 2) for s in range(plan.steps_per_epoch)]
    share = np.bincount(np.concatenate(drawn), minlength=5) / len(np.concatenate(drawn))
    assert share[0] == 0.25
    assert share[1:] == pytest.approx(np.full(4, 0.1875), abs=0.01)
    left_out = {frozenset(range(5)) - set(row.tolist()) for d in drawn for row in d.reshape(2, 4)}
    assert len(left_out) == 4


def test_epochs_and_seeds_differ_and_repeat_exactly(columns):
    index = IdentityIndex.build(*columns, 400)

    def epoch(seed, number):
        plan = PKPlan(index, SamplerConfig(), seed)
        return np.concatenate([plan.batch(number, s).rows for s in range(50)])

    base = epoch(0, 1)
    assert np.array_equal(base, epoch(0, 1))
    for other in (epoch(0, 2), epoch(1, 1), epoch(1, 2)):
        assert not np.array_equal(base, other)


def test_the_plan_of_a_fixed_data_set_stays_what_it_was():
    row = np.arange(3_000)
    index = IdentityIndex.build(row * 31 % 97 % 59, row * row // 97 % 7 % 5, 59)
    digest = hashlib.sha256()
    for mix in ("natural", "balanced"):
        plan = PKPlan(index, SamplerConfig(ids_per_batch=8, rows_per_id=4, mix=mix), 2026)
        for epoch in (1, 2):
            for step in range(plan.steps_per_epoch):
                batch = plan.batch(epoch, step)
                for column in (batch.rows, batch.starts, batch.class_index):
                    digest.update(column.astype("<i8").tobytes())
    # A change here means that runs started before it cannot be resumed after it.
    assert digest.hexdigest()[:16] == "691f68b6cb251aa7"


def test_threads_that_share_a_plan_across_epochs_get_what_one_thread_gets(columns):
    index = IdentityIndex.build(*columns, 400)
    cells = [(e, s) for s in range(40) for e in (1, 2, 3)]
    alone = PKPlan(index, SamplerConfig(), 4)
    expected = [alone.batch(*cell).rows for cell in cells]
    shared = PKPlan(index, SamplerConfig(), 4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda cell: shared.batch(*cell).rows, cells))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def deviation(per_epoch):
    """Mean squared z of totals over epochs; 1 if all have the same expectation. [E, n] -> float."""
    total = per_epoch.sum(axis=0)
    variance = per_epoch.var(axis=0, ddof=1) * len(per_epoch)
    return float(np.mean((total - total.mean()) ** 2 / variance))


def test_every_two_ids_meet_equally_often_and_at_scattered_steps():
    plan = PKPlan(even(24, 6, 6, 0, 0, 0), SamplerConfig(ids_per_batch=6, rows_per_id=2), 3)
    pairs = {pair: i for i, pair in enumerate(combinations(range(24), 2))}
    met = np.zeros((400, len(pairs)))
    in_a_row = 0
    for epoch in range(400):
        before = set()
        for step in range(plan.steps_per_epoch):
            ids = sorted(plan.batch(epoch + 1, step).class_index.tolist())
            met[epoch, [pairs[pair] for pair in combinations(ids, 2)]] += 1
            in_a_row += len(before.intersection(ids))
            before = set(ids)
    # 276 pairs: the mean of as many squared standard normals is 1 with deviation 0.085.
    assert deviation(met) == pytest.approx(1.0, abs=0.35)
    # Two ids of 6 chunks in 24 steps meet 6 * 6 / 24 times with variance 0.88 (hypergeometric) in
    # different lanes, never in the same one: 1.02 in all. Ids that move together would have 3.
    assert met.var() < 1.15
    # An id at 6 random steps of 24 is at 6 * 5 / 24 pairs of neighbouring ones.
    assert in_a_row / 400 == pytest.approx(24 * 6 * 5 / 24, rel=0.05)


def test_every_id_is_equally_often_at_every_place_and_step_and_has_every_pairing():
    plan = PKPlan(even(7, 5, 5, 0, 0, 0), SamplerConfig(ids_per_batch=3, rows_per_id=2), 8)
    place = np.zeros((400, 7, 3))
    when = np.zeros((400, 7, plan.steps_per_epoch))
    pairing = np.zeros((400, 7, 5, 5))
    for epoch in range(400):
        for step in range(plan.steps_per_epoch):
            batch = plan.batch(epoch + 1, step)
            place[epoch, batch.class_index, [0, 1, 2]] += 1
            when[epoch, batch.class_index, step] += 1
            vis, nir = (batch.rows % 10).reshape(3, 2).T
            pairing[epoch, batch.class_index, vis, nir - 5] += 1
    for counts in (place, when, pairing):
        assert deviation(counts.reshape(400, -1)) == pytest.approx(1.0, abs=0.6)


def test_extra_chunks_go_round_instead_of_to_the_same_ids():
    plan = PKPlan(even(7, 3, 3, 0, 0, 0), SamplerConfig(ids_per_batch=4, rows_per_id=2), 0)
    given_out = np.zeros(7)
    for epoch in range(1, 141):
        for step in range(plan.steps_per_epoch):
            given_out[plan.batch(epoch, step).class_index] += 1
    assert plan.steps_per_epoch == 6
    assert given_out.sum() == 140 * 24
    assert np.abs(given_out - 480).max() < 40


MIXED = ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3], [0, 1, 2, 0, 3, 4, 0, 0, 0, 4, 4])
"""Ids 0 and 1 can pair; 2 has only VIS, 3 only captions."""


def mixed_plan(**settings):
    index = IdentityIndex.build(np.array(MIXED[0]), np.array(MIXED[1]), 4)
    return PKPlan(index, SamplerConfig(**{"ids_per_batch": 2, "rows_per_id": 3, **settings}), 0)


def ids_of(plan):
    cells = [(e, s) for e in (1, 2, 3) for s in range(plan.steps_per_epoch)]
    return {c for cell in cells for c in plan.batch(*cell).class_index.tolist()}


def test_replace_draws_pairable_ids_only_and_counts_the_others():
    plan = mixed_plan(on_unpairable="replace")
    assert ids_of(plan) == {0, 1}
    assert (plan.stats.unpairable_ids, plan.stats.unusable_rows) == (2, 5)
    assert "4 ids, pairable rate 0.500; 2 ids (5 rows) not drawn" in plan.stats.text()
    assert plan.stats.pairable_rate == 0.5
    assert plan.stats.warning is not None
    assert "50.0% of 4 ids" in plan.stats.warning
    assert plan.stats.text().endswith(f"warning: {plan.stats.warning}")


def test_soft_draws_all_ids_but_few_unpairable_ones_a_batch():
    plan = mixed_plan(on_unpairable="soft", soft_share=0.5)
    assert ids_of(plan) == {0, 1, 2, 3}
    assert (plan.stats.soft_ids, plan.stats.ragged_ids) == (2, 1)
    assert plan.stats.unusable_rows == 0


def test_lower_p_makes_smaller_batches_and_says_so():
    plan = mixed_plan(on_unpairable="lower_p", ids_per_batch=16)
    assert plan.ids_per_batch == 2
    assert (plan.stats.ids_asked, plan.stats.ids_per_batch) == (16, 2)
    assert "P=2 (asked 16)" in plan.stats.text()


def test_few_rows_are_given_whole_or_left_out_by_policy():
    ragged = mixed_plan(rows_per_id=4)
    assert ragged.stats.ragged_ids == 2
    assert all(len(ragged.batch(1, s).rows) == 6 for s in range(ragged.steps_per_epoch))
    counts = [(1, 1, 0, 0, 0), (2, 2, 0, 0, 0), (1, 1, 1, 1, 1), (1, 0, 0, 0, 0)]
    modality = np.concatenate([np.repeat(np.arange(5), row) for row in counts])
    index = IdentityIndex.build(np.repeat(np.arange(4), [2, 4, 5, 1]), modality, 4)
    config = SamplerConfig(ids_per_batch=2, rows_per_id=4, on_few_rows="exclude")
    left_out = PKPlan(index, config, 0)
    assert ids_of(left_out) == {1, 2}
    assert (left_out.stats.excluded_ids, left_out.stats.usable_rows) == (1, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_unpairable": "error"}, r"2 of 4 ids lack VIS or any other modality.* 2, 3;"),
        ({"ids_per_batch": 3}, r"P=3 needs 3 ids.*found 2 pairable and 0 .* of 4 ids; lower"),
        ({"on_unpairable": "soft", "soft_share": 0.4}, r"less than one identity.*at least 0\.500"),
        (
            {"on_unpairable": "soft", "ids_per_batch": 5, "soft_share": 0.6},
            r"needs 2 pairable and 5 in all.*found 2 pairable and 2 unpairable",
        ),
        (
            {"on_unpairable": "soft", "ids_per_batch": 4, "soft_share": 0.3},
            r"needs 3 pairable and 4 in all.*found 2 pairable",
        ),
        ({"rows_per_id": 4, "on_few_rows": "error"}, r"2 of 4 ids have fewer than K=4 .* 0, 1;"),
        ({"rows_per_id": 4, "on_few_rows": "exclude"}, r"none of the 4 ids can be drawn"),
        (
            {"rows_per_id": 4, "on_few_rows": "exclude", "on_unpairable": "lower_p"},
            r"none of the 4 ids",
        ),
    ],
)
def test_what_the_ids_cannot_fill_is_refused_with_found_expected_and_a_way_out(settings, message):
    with pytest.raises(SamplerError, match=message):
        mixed_plan(**settings)


def test_a_world_that_leaves_ranks_empty_or_overfull_is_refused_with_the_worlds_that_fit():
    index = even(16, 5, 5, 5, 5, 5)
    plan = PKPlan(index, SamplerConfig(ids_per_batch=16, max_rows_per_rank=20), 0)
    for world in (4, 5, 8, 16):
        plan.check_world(world)
    with pytest.raises(SamplerError, match=r"3 workers would hold up to 30 rows.*at least 4 work"):
        plan.check_world(3)
    with pytest.raises(SamplerError, match=r"17 workers share P=16.*at most 16 workers"):
        plan.check_world(17)
    tight = PKPlan(index, SamplerConfig(ids_per_batch=16, max_rows_per_rank=4), 0)
    with pytest.raises(SamplerError, match=r"up to 5 rows each.* is 4; lower sampler\.ids_per_ba"):
        tight.check_world(16)


@pytest.mark.parametrize("cell", [(0, 0), (1, -1), (1, 12)])
def test_a_batch_outside_the_epoch_is_refused(cell):
    plan = PKPlan(even(8, 6, 6, 6, 6, 6), SamplerConfig(ids_per_batch=4), 0)
    with pytest.raises(IndexError, match=rf"no batch at epoch {cell[0]}, step {cell[1]}"):
        plan.batch(*cell)
