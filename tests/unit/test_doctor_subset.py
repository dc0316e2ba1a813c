"""The fixed rows that are learned by heart: which they are, whoever asks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.data.index import IdentityIndex
from service.doctor.overfit import sparkline
from service.doctor.subset import LEAST_PEOPLE, choose
from service.errors import DataError
from service.modality import Modality


@st.composite
def indexes(draw: st.DrawFn) -> IdentityIndex:
    """People with any rows; some cannot pair."""
    counts = draw(
        st.lists(st.tuples(*[st.integers(0, 6)] * 5).filter(any), min_size=3, max_size=20)
    )
    person = np.repeat(np.arange(len(counts)), [sum(c) for c in counts]).astype(np.int32)
    modality = np.concatenate([np.repeat(np.arange(5), c) for c in counts]).astype(np.int8)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(person))
    return IdentityIndex.build(person[order], modality[order], len(counts))


@given(indexes(), st.integers(16, 200))
def test_the_rows_are_those_of_the_first_people_who_can_pair(index: IdentityIndex, samples: int):
    pairable = np.flatnonzero(index.pairable).tolist()
    if len(pairable) < 2:
        with pytest.raises(DataError, match="at least 2 people"):
            choose(index, samples)
        return
    subset = choose(index, samples)
    assert list(subset.people) == pairable[: len(subset.people)]
    assert len(subset.people) >= 2
    assert subset.num_rows <= samples
    for person, rows in zip(subset.people, subset.rows, strict=True):
        of = {m: index.rows(person, m).tolist() for m in Modality}
        assert len(set(rows)) == len(rows) <= samples // LEAST_PEOPLE
        taken = {m: [r for r in rows if r in of[m]] for m in Modality}
        assert sum(map(len, taken.values())) == len(rows)
        for modality in Modality:
            assert taken[modality] == of[modality][: len(taken[modality])]
        present = [m for m in Modality if of[m]]
        assert len([m for m in present if taken[m]]) >= min(len(present), len(rows))


@given(indexes())
def test_all_rows_are_used_when_there_are_fewer_than_were_asked_for(index: IdentityIndex):
    people = np.flatnonzero(index.pairable)
    if len(people) >= 2:
        most = index.counts.sum(axis=1).max()
        subset = choose(index, int(most) * max(LEAST_PEOPLE, len(people)))
        assert subset.num_rows == index.counts[people].sum()


def test_two_people_need_room():
    index = IdentityIndex.build(
        np.repeat([0, 1], 5).astype(np.int32), np.tile(range(5), 2).astype(np.int8), 2
    )
    with pytest.raises(DataError, match="16 rows"):
        choose(index, 15)
    assert choose(index, 16).num_rows == 4


def test_a_curve_is_drawn_from_full_to_empty():
    assert sparkline([1.0, 0.5, 0.0], 1.0) == "█▅▁"
    assert sparkline([2.0, -1.0], 1.0) == "█▁"
