"""The doctor's looks at data, on columns with faults put into them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.causes import Cause
from service.data.manifest import DataFile, Manifest, Quarantined, TrainPerson
from service.doctor.check import Status
from service.doctor.contents import captions, duplicates, quarantine, same_files
from service.doctor.data import class_numbers, modality_counts, names, overlap, pairable, people
from service.doctor.rows import Rows
from service.modality import Modality

PEOPLE = 4
FILE = DataFile("a.arrow", 0, 0, "0" * 64)


def rows(start: int = 0) -> Rows:
    """Four people, each with one row of every modality; all files and captions differ."""
    modality = np.tile(np.arange(len(Modality), dtype=np.int8), PEOPLE)
    person = np.repeat(np.arange(PEOPLE), len(Modality))
    return Rows(
        row=np.arange(len(person)),
        class_index=person,
        label=person + 10 + start,
        modality=modality,
        dir_id=[f"{p + start:04d}" for p in person],
        caption=[
            f"person {p + start}" if m == Modality.TEXT else ""
            for p, m in zip(person, modality, strict=True)
        ],
        sha256=[(i + 1000 * start).to_bytes(32, "big") for i in range(len(person))],
    )


def manifest(**changes: Any) -> Manifest:
    counts = {m.label: 100 for m in Modality}
    whole = Manifest(
        image_size=(8, 4),
        context_length=77,
        tokenizer="t",
        vocab_size=9,
        shards={"train": (FILE,), "test": ()},
        queries=FILE,
        counts={"train": counts, "test": counts},
        classes=tuple(TrainPerson(f"{p:04d}", p + 10, p) for p in range(PEOPLE)),
        query_counts={},
    )
    return replace(whole, **changes)


def changed(column: str, at: int, value: Any) -> Rows:
    """The rows with one cell changed."""
    found = rows()
    cells = getattr(found, column)
    cells = cells.copy() if isinstance(cells, np.ndarray) else list(cells)
    cells[at] = value
    return replace(found, **{column: cells})


@given(st.lists(st.integers(-2, 8), min_size=1, max_size=40), st.integers(1, 7))
def test_class_numbers_are_right_exactly_when_each_is_in_range_and_has_rows(
    numbers: list[int], num_classes: int
):
    in_range, whole = class_numbers(np.array(numbers), num_classes)
    wrong = [i for i, n in enumerate(numbers) if not 0 <= n < num_classes]
    assert (in_range.status is Status.OK) == (not wrong)
    assert (whole.status is Status.OK) == set(numbers).issuperset(range(num_classes))
    if wrong:
        assert in_range.cause is Cause.LABELS_OUT_OF_RANGE
        assert f"wrong in {len(wrong)} rows, first in row {wrong[0]}" in in_range.found
    if whole.status is Status.FAIL:
        assert whole.cause is Cause.LABELS_GAPPED


def test_counts_leave_rows_out_of_range_out():
    counts = modality_counts(np.array([0, 1, 1, 7, -1]), np.array([0, 0, 4, 0, 0]), 2)
    assert counts.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("paired", "status"),
    [(10, Status.OK), (8, Status.OK), (7, Status.WARN), (6, Status.WARN), (5, Status.FAIL)],
)
def test_the_share_of_people_who_can_pair_has_two_lines(paired: int, status: Status):
    counts = np.zeros((10, len(Modality)), int)
    counts[:, Modality.VIS] = 3
    counts[:paired, Modality.TEXT] = 1
    found = pairable(counts)
    assert found.status is status
    assert found.cause is (None if status is Status.OK else Cause.NOT_PAIRING)


def test_people_without_vis_do_not_pair_either():
    counts = np.ones((10, len(Modality)), int)
    counts[:, Modality.VIS] = 0
    assert pairable(counts).status is Status.FAIL


def test_rows_of_a_person_are_told_and_single_rows_are_noticed():
    counts = np.array([[2, 0, 0, 0, 0], [4, 2, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert people(counts).found.startswith("2 / 5 / 6")
    assert people(counts).status is Status.OK
    counts[0, 0] = 1
    assert people(counts).status is Status.WARN


def test_sound_data_passes_every_look():
    found, other = rows(), rows(start=50)
    checks = [names(found, manifest()), *duplicates(found), *captions(found)]
    checks += [quarantine(manifest()), overlap(found, other), same_files(found, other)]
    assert {check.status for check in checks} == {Status.OK}


@pytest.mark.parametrize(
    ("column", "value"), [("label", 12), ("dir_id", "0003"), ("class_index", 2)]
)
def test_a_row_whose_names_do_not_belong_together_is_named(column: str, value: Any):
    found = names(changed(column, 7, value), manifest())
    assert found.status is Status.FAIL
    assert found.cause is Cause.LABELS_SHUFFLED
    assert "row 7" in found.found


def swapped_labels(people: tuple[TrainPerson, ...]) -> tuple[TrainPerson, ...]:
    return (replace(people[0], label=people[1].label), *people[1:])


def same_directory(people: tuple[TrainPerson, ...]) -> tuple[TrainPerson, ...]:
    return (replace(people[0], dir_id=people[1].dir_id), *people[1:])


@pytest.mark.parametrize(
    ("change", "word"), [(swapped_labels, "label 11"), (same_directory, "directory '0001'")]
)
def test_two_people_of_one_name_are_named(change: Callable[[Any], Any], word: str):
    found = names(rows(), manifest(classes=change(manifest().classes)))
    assert found.status is Status.FAIL
    assert f"{word} names 2 people" in found.found


def test_an_image_of_two_people_is_a_fault_and_one_stored_twice_a_waste():
    first = rows()
    other_person = changed("sha256", 5, first.sha256[0])
    twice, across = duplicates(other_person)
    assert twice.status is Status.OK
    assert (across.status, across.cause) == (Status.FAIL, Cause.LABELS_SHUFFLED)
    assert "rows 0, 5" in across.found
    twice, across = duplicates(changed("sha256", 1, first.sha256[0]))
    assert (twice.status, across.status) == (Status.WARN, Status.OK)


def test_equal_captions_are_no_duplicate_images_but_do_not_tell_people_apart():
    at = [4, 9, 14]
    text = rows()
    same = replace(
        text, caption=["one for all" if i in at else c for i, c in enumerate(text.caption)]
    )
    words, apart = captions(same)
    assert (words.status, apart.status) == (Status.OK, Status.WARN)
    assert "3 of 4" in apart.found
    assert {check.status for check in duplicates(same)} == {Status.OK}


def test_an_empty_caption_is_named():
    words, _ = captions(changed("caption", 9, "  "))
    assert words.status is Status.WARN
    assert "row 9" in words.found


@pytest.mark.parametrize(("number", "status"), [(0, Status.OK), (8, Status.OK), (9, Status.WARN)])
def test_one_image_in_a_hundred_may_be_quarantined(number: int, status: Status):
    bad = tuple(Quarantined("train", f"{i}.jpg", "torn") for i in range(number))
    assert quarantine(manifest(quarantined=bad)).status is status


@pytest.mark.parametrize(("column", "at"), [("label", 0), ("dir_id", 3)])
def test_a_person_in_both_splits_is_named(column: str, at: int):
    test = rows(start=50)
    cells = list(getattr(test, column))
    cells[at] = getattr(rows(), column)[at]
    value = np.array(cells) if column == "label" else cells
    found = overlap(rows(), replace(test, **{column: value}))
    assert found.status is Status.FAIL
    assert str(cells[at]) in found.found


def test_a_file_in_both_splits_is_named():
    test = rows(start=50)
    leaked = replace(test, sha256=[rows().sha256[6], *test.sha256[1:]])
    found = same_files(rows(), leaked)
    assert found.status is Status.FAIL
    assert "train row 6 = test row 0" in found.found
