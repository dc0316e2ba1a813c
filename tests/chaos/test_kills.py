"""Kills are drawn from their seed alone, in an order in which all of them can come."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.kills import DAEMONS, DELAYS_S, SHARES, STAYING_SHARES, Moment, Victim, draw

DECK = sum(SHARES.values())


@given(st.integers(0, 10**6), st.integers(1, 3 * DECK), st.integers(3 * DECK, 1000))
def test_kills_follow_one_another_within_the_run(seed: int, number: int, total: int):
    kills = draw(seed, number, total=total, checkpoint_every=10)
    assert kills == draw(seed, number, total=total, checkpoint_every=10)
    assert len(kills) == number
    for kill in kills:
        assert 0 <= kill.step <= total
        assert 0 <= kill.delay_s <= DELAYS_S[kill.moment]
        assert 0 <= kill.which < 1
    steps = [kill.step for kill in kills if kill.moment is Moment.STEP]
    assert steps == sorted(steps)
    assert all(kill.moment is not Moment.END for kill in kills[:-1])


@pytest.mark.parametrize("shares", [SHARES, STAYING_SHARES])
@given(seed=st.integers(0, 10**6), decks=st.integers(1, 3))
def test_every_process_is_killed_as_often_as_its_share_says(
    shares: Mapping[Victim, int], seed: int, decks: int
):
    number = decks * sum(shares.values())
    kills = draw(seed, number, total=1000, checkpoint_every=10, shares=shares)
    found = Counter(kill.victim for kill in kills)
    assert found == {victim: decks * share for victim, share in shares.items()}


def test_every_process_has_its_turn_and_a_cluster_that_stays_keeps_its_daemons():
    assert set(SHARES) == set(Victim)
    assert set(SHARES) - set(STAYING_SHARES) == set(DAEMONS)


def test_all_but_the_driver_are_found_by_their_command_line():
    names = [name for victim in set(Victim) - {Victim.DRIVER} for name in victim.processes]
    assert all(names)


def test_all_moments_come():
    kills = [kill for seed in range(20) for kill in draw(seed, 10, total=400, checkpoint_every=10)]
    assert {kill.moment for kill in kills} == set(Moment)
    saved = [kill.step for kill in kills if kill.moment is Moment.CHECKPOINT]
    assert all(step % 10 == 0 for step in saved)
