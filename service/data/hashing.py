"""Random numbers as a pure function of where they are used.

A generator with a state would tie a draw to everything drawn before it: to the number of ranks,
of threads, of prefetched batches. Here a draw is hashed from its coordinates, such as (seed, epoch,
step, row), so each can be made alone, anywhere, in any order.

The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014; the constants are those of Vigna's splitmix64.c). `uniforms(key, n)` are the first n
outputs of a SplitMix64 generator seeded with the key.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of 64-bit words; uint64, at least one dimension."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def outputs(keys: np.ndarray, num: int) -> np.ndarray:
    """The first `num` outputs of a SplitMix64 generator seeded with each key.

    keys: uint64 [n]. Returns uint64 [n, num].
    """
    steps = np.array([(_GOLDEN * (i + 1)) & _WORD for i in range(num)], np.uint64)
    return _mix(keys[:, None] + steps)


def hash_keys(words: tuple[int, ...], items: np.ndarray) -> np.ndarray:
    """One key for each item, from the words they share and the item itself; order matters.

    words: at least one, non-negative, for example (purpose, seed, epoch, step).
    items: integer [n], for example row ids. Distinct items have distinct keys.
    Returns uint64 [n].
    """
    key = np.zeros(1, np.uint64)
    for word in words:
        key = outputs(key ^ np.uint64(word & _WORD), 1)[:, 0]
    return outputs(key ^ items.astype(np.uint64), 1)[:, 0]


def uniforms(keys: np.ndarray, num: int) -> np.ndarray:
    """`num` draws for each key: float64 [n, num], uniform in [0, 1) with 53 bits."""
    return (outputs(keys, num) >> np.uint64(11)) * 2.0**-53
