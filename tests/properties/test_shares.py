"""The shares of a step against plain loops over persons."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data.layout import FUSED
from service.data.sampler import id_slice
from service.data.shares import Share, fused_members, lay_out, take_share
from service.modality import QUERY_MODALITIES, Modality

KEY = (7, 2, 13)


@dataclass(frozen=True)
class Step:
    """A global batch: the modalities of each person's rows, and record row ids."""

    modality: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    class_index: np.ndarray

    @property
    def person(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.class_index)), np.diff(self.starts))

    def shares(self, world: int, key: tuple[int, ...] = KEY) -> list[Share]:
        members = fused_members(self.modality, self.person, self.class_index, key)
        slices = [id_slice(len(self.class_index), rank, world) for rank in range(world)]
        args = (self.rows, self.modality, self.starts, self.class_index, members)
        return [take_share(*args, ids) for ids in slices]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    people = draw(
        st.lists(st.lists(st.sampled_from(Modality), max_size=9), min_size=1, max_size=12)
    )
    modality = np.array([m for person in people for m in person], np.int8)
    rows = draw(st.permutations(range(100, 100 + len(modality))))
    starts = np.cumsum([0, *map(len, people)]).astype(np.int64)
    classes = draw(st.permutations(range(len(people) + 5)))[: len(people)]
    return Step(modality, np.array(rows, np.int64), starts, np.array(classes, np.int64))


def fused_by_row(shares: list[Share]) -> dict[int, set[int]]:
    """Class to the record rows of its fused query, over all ranks."""
    return {
        int(label): {int(share.row[i]) for i in members if i >= 0}
        for share in shares
        for label, members in zip(share.class_index[len(share.row) :], share.fused, strict=True)
    }


@settings(deadline=None)
@given(steps(), st.integers(1, 6))
def test_shares_hold_every_row_once_sorted_by_modality(step: Step, world: int):
    shares = step.shares(world)
    assert sorted(np.concatenate([share.row for share in shares])) == sorted(step.rows)
    modality_of = dict(zip(step.rows.tolist(), step.modality.tolist(), strict=True))
    class_of = dict(zip(step.rows.tolist(), step.class_index[step.person].tolist(), strict=True))
    for rank, share in enumerate(shares):
        assert share.kind.tolist() == [modality_of[row] for row in share.row.tolist()]
        assert (np.diff(share.kind) >= 0).all()
        labels = share.class_index[: len(share.row)].tolist()
        assert labels == [class_of[row] for row in share.row.tolist()]
        ids = id_slice(len(step.class_index), rank, world)
        assert set(labels) <= set(step.class_index[ids].tolist())


@settings(deadline=None)
@given(steps())
def test_every_person_with_two_query_modalities_has_one_fused_query(step: Step):
    (share,) = step.shares(1)
    expected = []
    for i, label in enumerate(step.class_index.tolist()):
        own = step.modality[step.starts[i] : step.starts[i + 1]]
        if len(set(own.tolist()) - {Modality.VIS}) >= 2:
            expected.append(label)
    assert share.class_index[len(share.row) :].tolist() == expected
    for label, members in zip(expected, share.fused, strict=True):
        assert (members >= 0).sum() >= 2
        for modality, at in zip(QUERY_MODALITIES, members.tolist(), strict=True):
            if at >= 0:
                assert share.kind[at] == modality
                assert share.class_index[at] == label


@settings(deadline=None)
@given(steps(), st.integers(1, 6), st.integers(1, 6))
def test_the_world_size_changes_no_fused_query(step: Step, one: int, other: int):
    assert fused_by_row(step.shares(one)) == fused_by_row(step.shares(other))


@settings(deadline=None)
@given(steps(), st.integers(1, 6))
def test_the_layout_is_the_same_on_every_rank_and_fits_each_share(step: Step, world: int):
    shares = step.shares(world)
    layouts = [lay_out(shares, rank) for rank in range(world)]
    for rank, (layout, share) in enumerate(zip(layouts, shares, strict=True)):
        assert np.array_equal(layout.class_index, layouts[0].class_index)
        assert np.array_equal(layout.kind, layouts[0].kind)
        assert layout.counts == layouts[0].counts
        assert layout.rank == rank
        assert (layout.class_index[layout.local] == share.class_index).all()
        kinds = layout.kind[layout.local].tolist()
        assert kinds == [*share.kind.tolist(), *[FUSED] * len(share.fused)]
    assert sum(layouts[0].counts) == len(layouts[0].class_index) == len(layouts[0].kind)
    assert (layouts[0].class_index.dtype, layouts[0].kind.dtype) == (np.int64, np.int8)


def whole_person(num: int, rows_each: int) -> Step:
    """`num` persons with `rows_each` rows of every modality."""
    modality = np.tile(np.repeat(np.arange(5, dtype=np.int8), rows_each), num)
    starts = np.arange(num + 1) * 5 * rows_each
    return Step(modality, np.arange(len(modality)), starts, np.arange(num))


def test_all_subsets_and_all_rows_are_drawn_equally_often():
    num, rows_each = 11_000, 3
    (share,) = whole_person(num, rows_each).shares(1)
    assert len(share.fused) == num
    subsets = Counter(tuple((members >= 0).tolist()) for members in share.fused)
    assert len(subsets) == 11
    assert all(abs(count - 1000) < 150 for count in subsets.values())
    used = share.row[share.fused[share.fused >= 0]] % rows_each
    shares_of_rows = np.bincount(used) / len(used)
    assert abs(shares_of_rows - 1 / rows_each).max() < 0.02


def test_another_step_epoch_or_seed_draws_other_queries():
    step = whole_person(50, 2)
    drawn = [step.shares(1, key) for key in [KEY, (8, 2, 13), (7, 3, 13), (7, 2, 14)]]
    queries = [share[0].fused.tobytes() for share in drawn]
    assert len(set(queries)) == 4
    assert step.shares(1)[0].fused.tobytes() == queries[0]
