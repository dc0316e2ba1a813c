import pytest

from service.errors import DataError
from service.evaluation.protocol import GROUPS, MEAN, QUERY_KINDS, averages, query_kind
from service.modality import Modality

OFFICIAL_MAP = {
    "NIR": 48.793,
    "CP": 75.991,
    "SK": 61.149,
    "TEXT": 55.224,
    "NIR+CP": 85.443,
    "CP+NIR": 83.893,
    "NIR+SK": 75.431,
    "SK+NIR": 74.175,
    "NIR+TEXT": 70.196,
    "TEXT+NIR": 71.935,
    "CP+SK": 74.579,
    "SK+CP": 74.429,
    "CP+TEXT": 75.296,
    "TEXT+CP": 81.021,
    "SK+TEXT": 68.010,
    "TEXT+SK": 74.749,
    "NIR+CP+SK": 86.168,
    "CP+NIR+SK": 84.870,
    "SK+NIR+CP": 84.737,
    "NIR+CP+TEXT": 86.712,
    "CP+NIR+TEXT": 85.426,
    "TEXT+NIR+CP": 87.765,
    "NIR+SK+TEXT": 82.922,
    "SK+NIR+TEXT": 81.425,
    "TEXT+NIR+SK": 84.076,
    "CP+SK+TEXT": 77.786,
    "SK+CP+TEXT": 77.926,
    "TEXT+CP+SK": 83.174,
    "NIR+CP+SK+TEXT": 87.410,
    "CP+NIR+SK+TEXT": 86.179,
    "SK+NIR+CP+TEXT": 86.208,
    "TEXT+NIR+CP+SK": 88.429,
}
"""The keys and mAP published with ORBench's evaluation of 2026-01-08, in the published order."""

OFFICIAL_AVERAGES = {"MM-1": 60.289, "MM-2": 75.763, "MM-3": 83.582, "MM-4": 87.056}


def test_the_kinds_are_the_official_ones_in_the_official_order():
    assert [kind.key for kind in QUERY_KINDS] == list(OFFICIAL_MAP)


def test_the_averages_are_those_of_the_official_table():
    found = averages(OFFICIAL_MAP)
    assert list(found) == [*GROUPS, MEAN]
    for group, value in OFFICIAL_AVERAGES.items():
        assert found[group] == pytest.approx(value, abs=6e-4)
    assert found[MEAN] == pytest.approx(sum(OFFICIAL_AVERAGES.values()) / 4, abs=6e-4)


def test_every_group_has_its_kinds():
    groups = [kind.group for kind in QUERY_KINDS]
    assert [groups.count(group) for group in GROUPS] == [4, 12, 12, 4]


def test_names_are_read_in_both_spellings_and_written_as_they_are_read():
    kind = query_kind("TEXT+NIR")
    assert kind.modalities == (Modality.TEXT, Modality.NIR)
    assert kind.submission_type == "twomodal_TEXT_NIR"
    assert query_kind("onemodal_SK").key == "SK"
    for kind in QUERY_KINDS:
        assert query_kind(kind.key) == query_kind(kind.submission_type) == kind


@pytest.mark.parametrize("name", ["", "VIS", "nir", "SK+CP+NIR", "twomodal_NIR", "NIR+NIR"])
def test_other_names_are_refused(name):
    with pytest.raises(DataError, match="unknown query kind"):
        query_kind(name)


def test_an_average_over_fewer_kinds_is_refused_with_their_names():
    fewer = {**OFFICIAL_MAP, "VIS": 1.0}
    del fewer["TEXT"], fewer["SK+CP"]
    with pytest.raises(DataError, match=r"missing: SK\+CP, TEXT; unknown: VIS"):
        averages(fewer)
