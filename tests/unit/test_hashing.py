import numpy as np
import pytest

from service.data.hashing import hash_keys, outputs, uniforms

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def test_outputs_are_those_of_the_published_splitmix64():
    """The first outputs of splitmix64.c from seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert outputs(np.array([1234567], np.uint64), 5)[0].tolist() == expected


def splitmix64(state: int, num: int) -> list[int]:
    """Plain integers, as in splitmix64.c."""
    word, results = (1 << 64) - 1, []
    for _ in range(num):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        results.append(z ^ (z >> 31))
    return results


def test_keys_equal_those_of_plain_integers():
    items = np.array([0, 5, 2**31, 2**62], np.int64)
    keys = hash_keys((3, 2**64 - 1, 17), items)
    for item, key in zip(items.tolist(), keys.tolist(), strict=True):
        state = 0
        for word in (3, 2**64 - 1, 17, item):
            state = splitmix64(state ^ word, 1)[0]
        assert key == state
        draws = [(z >> 11) * 2.0**-53 for z in splitmix64(state, 4)]
        assert uniforms(np.array([key], np.uint64), 4)[0].tolist() == draws


def test_an_item_has_the_same_draws_in_any_company():
    items = np.arange(100)
    together = uniforms(hash_keys((1, 2), items), 3)
    alone = uniforms(hash_keys((1, 2), items[41:42]), 3)
    assert (together[41] == alone[0]).all()
    assert (uniforms(hash_keys((1, 2), items[::-1]), 3) == together[::-1]).all()


def test_draws_are_uniform_and_uncorrelated_over_neighbouring_coordinates():
    rows = np.arange(20_000)
    now = uniforms(hash_keys((0, 1, 7), rows), 4)
    next_step = uniforms(hash_keys((0, 1, 8), rows), 4)
    next_epoch = uniforms(hash_keys((0, 2, 7), rows), 4)
    assert now.min() >= 0.0
    assert now.max() < 1.0
    assert abs(now.mean(axis=0) - 0.5).max() < 0.01
    assert abs(now.var(axis=0) - 1 / 12).max() < 0.003
    columns = np.concatenate([now, next_step, next_epoch], axis=1).T
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert abs(correlation).max() < 0.04
    assert abs(np.corrcoef(now[:-1, 0], now[1:, 0])[0, 1]) < 0.04


def test_the_order_of_the_words_matters():
    row = np.array([9])
    assert hash_keys((1, 2), row) != hash_keys((2, 1), row)
    assert hash_keys((0,), row) != hash_keys((0, 0), row)


def test_no_items_give_no_draws():
    assert uniforms(hash_keys((1,), np.empty(0, np.int64)), 3).shape == (0, 3)
