"""The objective against plain formulas on one process."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from service.config import LossConfig, SdmConfig
from service.data.layout import FUSED, StepLayout
from service.losses.memory import CrossBatchMemory
from service.losses.objective import LINES, Choice, LossTerms, SdmWeight, objective, sdm_value
from service.losses.pairs import Pairs
from service.modality import Modality
from tests.steps import step_rows

V, N, S = Modality.VIS, Modality.NIR, Modality.SK
LAYOUT = StepLayout(
    class_index=np.array([0, 1, 2, 0, 1, 3, 0, 1], dtype=np.int64),
    kind=np.array([V, V, V, N, N, S, FUSED, FUSED], dtype=np.int8),
    counts=(8,),
    rank=0,
)
D, C = 6, 4


def terms(weight: SdmWeight, form: str = "ce", memory: CrossBatchMemory | None = None):
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(8, D, dtype=torch.float64), dim=1).requires_grad_()
    logits = torch.randn(8, C, dtype=torch.float64).requires_grad_()
    kept = memory.held_classes().numpy() if memory else np.empty(0, np.int64)
    found = objective(
        rows=rows,
        gathered=rows,
        after_neck=rows * 8,
        logits=logits,
        step=step_rows(LAYOUT),
        pairs=Pairs.of(LAYOUT, kept),
        memory=memory,
        weight=weight,
        config=LossConfig(label_smoothing=0.1, sdm=SdmConfig(form=form)),
        world=1,
    )
    return found, rows, logits


def line(found, name: str) -> float:
    return float(found.sums[LINES.index(name)])


def test_pairs_count_rows_without_a_positive():
    pairs = Pairs.of(LAYOUT, np.empty(0, np.int64))
    assert (pairs.single, pairs.fused) == (6, 2)
    assert pairs.unpaired == 2  # VIS of class 2, sketch of class 3
    assert (pairs.valid_queries, pairs.valid_vis) == (4, 2)
    with_memory = Pairs.of(LAYOUT, np.array([3, 3]))
    assert with_memory.unpaired == 2
    assert with_memory.unpaired_with_memory == 1
    assert with_memory.valid_queries == 5


def test_without_sdm_the_loss_is_the_mean_of_the_two_groups():
    found, _, logits = terms(SdmWeight(0.0, "off"))
    labels = torch.from_numpy(LAYOUT.class_index)
    single = F.cross_entropy(logits[:6], labels[:6], label_smoothing=0.1)
    fused = F.cross_entropy(logits[6:], labels[6:], label_smoothing=0.1)
    torch.testing.assert_close(found.total, (single + fused) / 2)
    assert found.sdm_weight == 0.0
    assert line(found, "sdm_rows") == 0
    plain = F.cross_entropy(logits[:6], labels[:6])
    assert line(found, "ce") / 6 == pytest.approx(float(plain.detach()))
    every = F.cross_entropy(logits, labels, reduction="none").detach()
    for kind in range(6):
        expected = every[torch.from_numpy(LAYOUT.kind == kind)].sum()
        assert line(found, f"ce_{kind}") == pytest.approx(float(expected))
    top1 = (logits[:6].argmax(1) == labels[:6]).sum()
    assert line(found, "correct") == int(top1)
    assert line(found, "norm") == pytest.approx(6 * 8)


def test_while_inactive_sdm_is_not_computed_at_all(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args, **kwargs):
        raise AssertionError("SDM was computed")

    monkeypatch.setattr("service.losses.objective.sdm_rows", refuse)
    terms(SdmWeight(0.0, "off"))
    with pytest.raises(AssertionError, match="SDM was computed"):
        terms(SdmWeight(0.1, "on"))


@pytest.mark.parametrize("form", ["ce", "kl"])
@pytest.mark.parametrize("with_memory", [False, True])
def test_sdm_equals_its_formula_in_both_directions(form: str, with_memory: bool):
    memory = None
    kept, kept_class = torch.zeros(0, D, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    if with_memory:
        memory = CrossBatchMemory(2, 3, D, dtype=torch.float64)
        kept = F.normalize(torch.randn(3, D, dtype=torch.float64), dim=1)
        kept_class = torch.tensor([3, 0, 2])
        memory.push(kept, kept_class, 1)
    off, _, _ = terms(SdmWeight(0.0, ""), form, memory)
    on, rows, _ = terms(SdmWeight(0.3, ""), form, memory)
    labels = torch.from_numpy(LAYOUT.class_index)
    scale = 5.0 if form == "ce" else 50.0

    def direction(query, query_class, gallery, gallery_class):
        y = (query_class[:, None] == gallery_class[None]).double()
        log_p = F.log_softmax(scale * query @ gallery.T, dim=1)
        valid = y.sum(1) > 0
        t = y[valid] / y[valid].sum(1, keepdim=True)
        if form == "ce":
            row = -(t * log_p[valid]).sum(1)
        else:
            row = (log_p[valid].exp() * (log_p[valid] - (t + 1e-8).log())).sum(1)
        return row.mean(), row.sum()

    gallery = torch.cat([rows[:3], kept])
    gallery_class = torch.cat([labels[:3], kept_class])
    a, a_sum = direction(rows[3:], labels[3:], gallery, gallery_class)
    b, b_sum = direction(rows[:3], labels[:3], rows[3:], labels[3:])
    expected = (a + b) / 2 if form == "ce" else a + b
    torch.testing.assert_close(on.total - off.total, 0.3 * expected)
    assert on.sdm_weight == 0.3
    assert line(on, "sdm_queries") == pytest.approx(float(a_sum.detach()))
    assert line(on, "sdm_vis") == pytest.approx(float(b_sum.detach()))
    value = sdm_value(line(on, "sdm_queries"), line(on, "sdm_vis"), on.pairs, form)
    assert value == pytest.approx(float(expected.detach()))
    assert line(on, "sdm_rows") == on.pairs.valid_queries + on.pairs.valid_vis


def test_the_chance_level_is_what_equal_rows_cost():
    torch.manual_seed(0)
    rows = F.normalize(torch.ones(8, D, dtype=torch.float64), dim=1)
    for form in ("ce", "kl"):
        pairs = Pairs.of(LAYOUT, np.empty(0, np.int64))
        found = objective(
            rows=rows,
            gathered=rows,
            after_neck=rows,
            logits=torch.zeros(8, C, dtype=torch.float64),
            step=step_rows(LAYOUT),
            pairs=pairs,
            memory=None,
            weight=SdmWeight(1.0, ""),
            config=LossConfig(sdm=SdmConfig(form=form)),
            world=1,
        )
        for side in ("queries", "vis"):
            assert line(found, f"sdm_{side}") == pytest.approx(
                line(found, f"sdm_{side}_chance"), rel=1e-5
            )


def test_a_batch_without_any_positive_has_a_finite_loss_and_no_sdm():
    lonely = StepLayout(
        class_index=np.array([0, 1], dtype=np.int64),
        kind=np.array([V, N], dtype=np.int8),
        counts=(2,),
        rank=0,
    )
    rows = F.normalize(torch.randn(2, D), dim=1)
    found = objective(
        rows=rows,
        gathered=rows,
        after_neck=rows,
        logits=torch.randn(2, C),
        step=step_rows(lonely),
        pairs=Pairs.of(lonely, np.empty(0, np.int64)),
        memory=None,
        weight=SdmWeight(0.5, ""),
        config=LossConfig(),
        world=1,
    )
    assert torch.isfinite(found.total)
    assert found.sdm_weight == 0.0


def test_classes_that_are_never_drawn_are_no_choice():
    """The loss is that of a head without them, whatever their logits are."""
    drawn = np.array([0, 2, 3, 5])
    logits = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    choice = Choice.of(drawn, 6, "cpu")
    spread = replace(LAYOUT, class_index=drawn[LAYOUT.class_index])
    with_others = of_logits(logits, spread, choice)
    alone = of_logits(logits[:, drawn], LAYOUT, None)
    torch.testing.assert_close(with_others.total, alone.total)
    torch.testing.assert_close(with_others.sums, alone.sums)
    assert Choice.of(np.arange(6), 6, "cpu") is None


def of_logits(logits: torch.Tensor, layout: StepLayout, choice: Choice | None) -> LossTerms:
    rows = F.normalize(torch.ones(8, D, dtype=torch.float64), dim=1)
    return objective(
        rows=rows,
        gathered=rows,
        after_neck=rows,
        logits=logits,
        step=step_rows(layout),
        pairs=Pairs.of(layout, np.empty(0, np.int64)),
        memory=None,
        weight=SdmWeight(0.0, "off"),
        config=LossConfig(label_smoothing=0.1),
        world=1,
        choice=choice,
    )
