"""ORBench's protocol: the 32 query kinds, their names, their order and how they are averaged.

A kind is an anchor modality and the others that accompany it. There is one query for each anchor
row; the other members are fixed picks of the same person. Averages are unweighted means over kinds,
not over queries, as in the official table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from service.errors import DataError
from service.modality import QUERY_MODALITIES, Modality

GROUPS = ("MM-1", "MM-2", "MM-3", "MM-4")
"""Query kinds by their number of modalities."""

MEAN = "mean"
"""The mean of the four groups: the number that counts."""

_NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True, slots=True)
class QueryKind:
    """One kind of query; modalities: the anchor, then the others in the order of Modality."""

    modalities: tuple[Modality, ...]

    @property
    def key(self) -> str:
        """The official key in test_gallery_and_queries.json, which is also shown: "TEXT+NIR"."""
        return "+".join(m.name for m in self.modalities)

    @property
    def group(self) -> str:
        """MM-1 to MM-4."""
        return GROUPS[len(self.modalities) - 1]

    @property
    def submission_type(self) -> str:
        """The competition's spelling in a submission: "twomodal_TEXT_NIR"."""
        names = (m.name for m in self.modalities)
        return f"{_NUMBERS[len(self.modalities) - 1]}modal_{'_'.join(names)}"


def _kinds() -> tuple[QueryKind, ...]:
    return tuple(
        QueryKind((anchor, *(m for m in members if m != anchor)))
        for size in range(1, len(QUERY_MODALITIES) + 1)
        for members in combinations(QUERY_MODALITIES, size)
        for anchor in members
    )


QUERY_KINDS = _kinds()
"""All 32 in the official order: 4 singles, 12 pairs, 12 triples, 4 quadruples."""

_BY_NAME = {name: kind for kind in QUERY_KINDS for name in (kind.key, kind.submission_type)}


def query_kind(name: str) -> QueryKind:
    """The kind that `name` spells, as an official key or as a submission type.

    Raises:
        DataError: for any other name, also for the same modalities in another order.
    """
    kind = _BY_NAME.get(name)
    if kind is None:
        raise DataError(
            f"unknown query kind {name!r}; expected an anchor among NIR, CP, SK, TEXT and then "
            "others in that order, such as TEXT or TEXT+NIR+CP"
        )
    return kind


def averages(by_key: Mapping[str, float]) -> dict[str, float]:
    """The four group averages and their mean, keyed by GROUPS and MEAN.

    by_key: one value for each of the 32 keys.

    Raises:
        DataError: if a key is missing or unknown; an average over fewer would pass for the real
            one.
    """
    expected = {kind.key for kind in QUERY_KINDS}
    given = set(by_key)
    if expected != given:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        raise DataError(
            f"the averages need all {len(QUERY_KINDS)} query kinds; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    result: dict[str, float] = {}
    for group in GROUPS:
        values = [by_key[kind.key] for kind in QUERY_KINDS if kind.group == group]
        result[group] = sum(values) / len(values)
    result[MEAN] = sum(result.values()) / len(GROUPS)
    return result
