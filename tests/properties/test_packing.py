import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.data.packing import fair_shares, permutation, shuffled_segments, timetable, words


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 9))
def test_segments_are_shuffled_inside_themselves_in_blocks_of_any_size(sizes, block, seed):
    starts = np.cumsum([0, *sizes])
    found = shuffled_segments(words(seed, 1, 0), starts, block)
    for low, high in itertools.pairwise(starts):
        assert sorted(found[low:high].tolist()) == list(range(low, high))


def test_permutations_are_uniform():
    found = Counter(map(tuple, permutation(words(1, 1, 1), 24_000, 4).tolist()))
    assert len(found) == 24
    statistic = sum((n - 1000) ** 2 / 1000 for n in found.values())
    assert statistic < 60  # chi-square of 23 degrees exceeds this once in 30,000


def test_segment_shuffles_are_uniform():
    starts = np.arange(0, 18_001, 3)
    found = shuffled_segments(words(2, 1, 1), starts).reshape(-1, 3) - starts[:-1, None]
    counts = Counter(map(tuple, found.tolist()))
    assert len(counts) == 6
    assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 30


@given(st.lists(st.integers(0, 8), max_size=8), st.data())
def test_fair_shares_hand_out_everything_and_never_favour(room, data):
    amount = data.draw(st.integers(0, sum(room)))
    sure, left, candidates = fair_shares(np.array(room, np.int64), amount)
    assert sure.sum() + left == amount
    assert (sure <= room).all()
    assert 0 <= left <= candidates.sum()
    assert (sure[candidates] < np.array(room)[candidates]).all()
    level = sure.max(initial=0)
    assert all(s in (level, r) for s, r in zip(sure.tolist(), room, strict=True))


@st.composite
def jobs(draw: st.DrawFn):
    """Lengths that fill lanes of steps exactly, each at most the number of steps."""
    num_steps, num_lanes = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    lengths, cells = [], num_steps * num_lanes
    while cells:
        lengths.append(draw(st.integers(1, min(num_steps, cells))))
        cells -= lengths[-1]
    return num_steps, num_lanes, np.array(lengths, np.int64)


@given(jobs(), st.integers(0, 999))
def test_a_timetable_places_every_chunk_once_and_no_job_twice_in_a_step(case, seed):
    num_steps, num_lanes, lengths = case
    stream = words(seed, 1, 0)
    order = permutation(stream, len(lengths))
    job, chunk = timetable(stream, order, lengths, num_steps, num_lanes)
    assert job.shape == chunk.shape == (num_steps, num_lanes)
    assert all(len(set(step)) == num_lanes for step in job.tolist())
    placed = sorted(zip(job.ravel().tolist(), chunk.ravel().tolist(), strict=True))
    assert placed == [(j, c) for j, n in enumerate(lengths) for c in range(n)]
