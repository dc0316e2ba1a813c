"""The documents' own run lies inside the bands that were made from it."""

import pytest

from service.bands import expected
from tests.reports import LN_C, healthy

CHANCE = 2.08


def seen(epoch: int, ce: float, sdm: float = 0.0, top1: float = 0.01) -> dict[str, float]:
    on = {"sdm": sdm, "sdm_chance": CHANCE, "sdm_weight": 0.1} if sdm else {}
    return {"step": 1863 * epoch, "ce_fraction": ce / LN_C, "top1": top1, **on}


@pytest.mark.parametrize(
    "lines",
    [
        seen(1, 5.46),
        seen(2, 1.8, 2.2),
        seen(2, 1.5, 1.6),
        seen(3, 1.45, 1.5),
    ],
)
def test_the_documents_run_is_inside(lines: dict[str, float]):
    report = healthy(**lines)
    assert all(band.is_inside for band in expected(report))


@pytest.mark.parametrize(
    ("lines", "outside"),
    [
        (seen(1, 5.99, top1=1 / 400), ["ce_fraction", "top1"]),
        (seen(2, 2.6, 2.5), ["ce_fraction", "sdm_over_chance"]),
        ({**seen(1, 5.46), "pair_coverage": 0.7}, ["pair_coverage"]),
        ({**seen(1, 5.46), "feature_norm": 22.0}, ["feature_norm"]),
    ],
)
def test_what_went_wrong_is_outside(lines: dict[str, float], outside: list[str]):
    assert [band.line for band in expected(healthy(**lines)) if not band.is_inside] == outside
