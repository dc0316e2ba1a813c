"""Laying chunks of identities into steps: shuffles, fair filling and a wrap-around timetable.

Everything here is a function of integers. Randomness comes in as the raw 64-bit words of a PCG64
stream and is used only by sorting them, so a plan is the same on every machine and NumPy version.
"""

import numpy as np
from numpy.random import PCG64, SeedSequence
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def words(seed: int, epoch: int, purpose: int) -> PCG64:
    """The stream of random words of one purpose in one epoch."""
    return PCG64(SeedSequence([seed, epoch, purpose]))


def permutation(stream: PCG64, *shape: int) -> Ints:
    """Independent uniform permutations of 0..n-1 along the last axis, n being its length."""
    bits = stream.random_raw(int(np.prod(shape))).reshape(shape)
    return np.asarray(_carried_through_sort(bits, shape[-1]), np.int64)


def _carried_through_sort(keys: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """The positions 0..n-1 in rising order of `keys`; their lowest bits carry the position.

    All keys thus differ, and sorting values is several times faster than an argsort.
    """
    width = np.uint64((n - 1).bit_length())
    keys = (keys >> width << width) | np.arange(n, dtype=np.uint64)
    keys.sort(axis=-1)
    return keys & np.uint64((1 << int(width)) - 1)


def shuffled_segments(
    stream: PCG64, starts: NDArray[np.integer], block_rows: int = 1 << 20
) -> NDArray[np.int32]:
    """Positions 0..N-1, shuffled inside each segment `starts[s]:starts[s + 1]` of them.

    starts: [S + 1], rising from 0 to N.
    block_rows: whole segments of about so many rows are shuffled at a time, to bound the memory.
    """
    result = np.empty(int(starts[-1]), np.int32)
    first = 0
    while first < len(starts) - 1:
        low = int(starts[first])
        last = int(np.searchsorted(starts, low + block_rows, side="right")) - 1
        last = max(last, first + 1)
        sizes = np.diff(starts[first : last + 1])
        if n := int(sizes.sum()):
            width = np.uint64(64 - len(sizes).bit_length())
            segment = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
            bits = stream.random_raw(n) >> np.uint64(len(sizes).bit_length())
            result[low : low + n] = _carried_through_sort(segment << width | bits, n) + low
        first = last
    return result


def fair_shares(room: Ints, amount: int) -> tuple[Ints, int, NDArray[np.bool_]]:
    """`amount` handed out as evenly as `room` allows.

    Returns: what everyone gets for sure, int64 [n], at most `room`; how many ones are left over;
        and who has room for one of those, bool [n]; at least as many as are left over.
    `amount` must be in [0, sum(room)].
    """
    assert 0 <= amount <= room.sum()
    low, high = 0, int(room.max(initial=0)) + 1
    while high - low > 1:
        level = (low + high) // 2
        if int(np.minimum(room, level).sum()) <= amount:
            low = level
        else:
            high = level
    sure = np.minimum(room, low)
    return sure, amount - int(sure.sum()), room > low


def timetable(
    stream: PCG64, order: Ints, length: Ints, num_steps: int, num_lanes: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Every job's chunks in steps, no job twice in a step: wrap-around scheduling, then mixed.

    order: the jobs, laid one after another over lanes of `num_steps` cells; the last jobs lie in
        the last lanes.
    length: [jobs] chunks of each job, each at most num_steps; they sum to num_steps * num_lanes.
    Returns: job and chunk number, int32 [num_steps, num_lanes] each.

    A job of at most `num_steps` chunks touches at most two lanes, and its cells lie in different
    columns (McNaughton, 1959). Each lane then visits its cells in a random order of its own: only
    a job that spans two lanes is bound, in the second, to steps that it did not take in the first.
    Columns are shuffled in each step, so that a lane is not a rank.
    """
    length = length[order]
    end = np.cumsum(length)
    begin = end - length
    job = np.repeat(order, length)
    chunk = np.arange(len(job)) - np.repeat(begin, length)
    column = permutation(stream, num_steps, num_lanes)
    step = permutation(stream, num_steps)
    jobs = np.empty(len(job), np.int32)
    chunks = np.empty(len(job), np.int32)
    for lane in range(num_lanes):
        cell = lane * num_steps
        if lane:
            at = int(np.searchsorted(begin, cell, side="right")) - 1
            taken, wanted = cell - int(begin[at]), int(end[at]) - cell
            step = _next_lane(stream, step, taken, wanted if taken else 0)
        place = step * num_lanes + column[step, lane]
        jobs[place] = job[cell : cell + num_steps]
        chunks[place] = chunk[cell : cell + num_steps]
    shape = (num_steps, num_lanes)
    return jobs.reshape(shape), chunks.reshape(shape)


def _next_lane(stream: PCG64, step: Ints, taken: int, wanted: int) -> Ints:
    """Steps of the next lane's cells; its first `wanted` avoid the last `taken` of `step`."""
    free = step[: len(step) - taken]
    free = free[permutation(stream, len(free))] if len(free) else free
    rest = np.concatenate((free[wanted:], step[len(step) - taken :]))
    rest = rest[permutation(stream, len(rest))] if len(rest) else rest
    return np.concatenate((free[:wanted], rest))
