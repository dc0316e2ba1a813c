import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.data.index import IdentityIndex
from service.errors import DataError
from service.modality import Modality


@st.composite
def columns(draw: st.DrawFn):
    num_classes = draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, num_classes - 1), max_size=30))
    classes = draw(st.permutations([*range(num_classes), *extra]))
    modality = draw(st.lists(st.integers(0, 4), min_size=len(classes), max_size=len(classes)))
    return np.array(classes, np.int32), np.array(modality, np.int8), num_classes


@given(columns())
def test_rows_counts_and_pairable_equal_brute_force(case):
    classes, modality, num_classes = case
    index = IdentityIndex.build(classes, modality, num_classes)
    assert (index.num_rows, index.num_classes) == (len(classes), num_classes)
    for c in range(num_classes):
        for m in Modality:
            expected = [r for r in range(len(classes)) if classes[r] == c and modality[r] == m]
            assert index.rows(c, m).tolist() == expected
            assert index.counts[c, m] == len(expected)
        has = {int(m) for m in modality[classes == c]}
        assert index.pairable[c] == (0 in has and len(has) > 1)


@given(columns(), columns())
def test_fingerprints_are_equal_exactly_when_the_columns_are(one, two):
    same = one[2] == two[2] and all(
        np.array_equal(a, b) for a, b in zip(one[:2], two[:2], strict=True)
    )
    prints = [IdentityIndex.build(*case).fingerprint for case in (one, two)]
    assert (prints[0] == prints[1]) == same
    wider = IdentityIndex.build(one[0].astype(np.int64), one[1].astype(np.int64), one[2])
    assert wider.fingerprint == prints[0]


def test_the_index_cannot_be_changed_and_leaves_its_input_alone():
    classes, modality = np.array([1, 0, 1], np.int64), np.array([0, 1, 4], np.int8)
    index = IdentityIndex.build(classes, modality, 2)
    assert classes.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="read-only"):
        index.order[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        index.offsets[0] = 1


@pytest.mark.parametrize(
    ("classes", "modality", "num_classes", "message"),
    [
        ([0, 2], [0, 0], 2, r"class index must be in \[0, 2\); found \[0, 2\], wrong in 1 records"),
        ([0, -1], [0, 0], 2, r"found \[-1, 0\].*first in row 1"),
        ([0, 3], [0, 0], 4, r"2 of 4 classes have no record: 1, 2;"),
        ([0] * 3, [0, 5, 9], 1, r"modality must be in \[0, 5\); found \[0, 9\], wrong in 2"),
        ([0], [0, 0], 1, "1 class indices but 2 modalities"),
        ([], [], 0, "nothing to index"),
        ([0], [0], 20, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 9 more"),
    ],
)
def test_columns_that_cannot_be_indexed_are_refused_with_what_was_found(
    classes, modality, num_classes, message
):
    with pytest.raises(DataError, match=message):
        IdentityIndex.build(np.array(classes, np.int32), np.array(modality, np.int8), num_classes)
