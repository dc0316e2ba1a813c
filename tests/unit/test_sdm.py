import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import service.losses.sdm as sdm
from service.losses.sdm import CE_FORM, KL_FORM, SdmForm, chance, sdm_rows
from tests.sdm_oracle import SdmInput, oracle, random_input

forms = pytest.mark.parametrize("form", [CE_FORM, KL_FORM], ids=lambda form: form.name)


@pytest.fixture(params=[2**20, 30], ids=["one block", "many blocks"], autouse=True)
def block(request, monkeypatch):
    """Every test runs with the gallery in one piece and streamed three columns at a time."""
    monkeypatch.setattr(sdm, "CPU_BLOCK", request.param)


def gradients(loss, data):
    weights = torch.linspace(0.5, 2.0, len(loss), dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), (data.query, data.gallery))


def test_the_configuration_names_the_two_documented_forms():
    assert SdmForm.named("ce").temperature == pytest.approx(0.2)
    assert SdmForm.named("kl").temperature == pytest.approx(0.02)
    assert SdmForm.named("ce").direction_weight == 0.5
    assert SdmForm.named("kl").direction_weight == 1.0
    assert pickle.loads(pickle.dumps(KL_FORM)) == KL_FORM


@forms
@pytest.mark.parametrize("seed", range(5))
def test_values_and_gradients_equal_the_definition_in_float64(form, seed):
    data = random_input(seed)
    rows, expected = data.rows(form), oracle(data, form)
    torch.testing.assert_close(rows.loss, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(rows.loss, data), gradients(expected, data), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@forms
def test_gradcheck_passes(form):
    form = SdmForm(form.name, logit_scale=5.0, direction_weight=1.0)
    data = random_input(1, sizes=(4, 5, 3), dim=3)

    def loss(query, gallery):
        return data._replace(query=query, gallery=gallery).rows(form).loss

    assert torch.autograd.gradcheck(loss, (data.query, data.gallery))


@forms
def test_float32_agrees_with_float64(form):
    data = random_input(2)
    single = SdmInput(*(t.float() if t.is_floating_point() else t for t in data))
    rows = single.rows(form)
    assert rows.loss.dtype == torch.float32
    torch.testing.assert_close(rows.loss.double(), oracle(data, form), rtol=1e-5, atol=1e-5)


@forms
def test_autocast_does_not_change_value_or_gradient(form):
    data = random_input(3, dtype=torch.float32)
    plain = data.rows(form).loss
    expected = gradients(plain, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = data.rows(form).loss
        found = gradients(inside, data)
    assert torch.equal(inside, plain)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@forms
def test_bfloat16_rows_are_computed_in_float32_and_their_gradient_comes_back(form):
    data = random_input(4, dtype=torch.bfloat16)
    upcast = SdmInput(*(t.float() if t.is_floating_point() else t for t in data))
    rows = data.rows(form)
    assert torch.equal(rows.loss, upcast.rows(form).loss)
    assert [g.dtype for g in gradients(rows.loss, data)] == [torch.bfloat16] * 2


@forms
def test_memory_equals_the_same_rows_in_the_gallery_as_constants(form):
    data = random_input(5)
    assert data.memory is not None
    assert data.memory_class is not None
    joined = data._replace(
        gallery=torch.cat([data.gallery, data.memory]),
        gallery_class=torch.cat([data.gallery_class, data.memory_class]),
        memory=None,
        memory_class=None,
    )
    ours, theirs = data.rows(form), joined.rows(form)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-12)
    assert torch.equal(ours.positives, theirs.positives)
    expected = torch.autograd.grad(theirs.loss.sum(), (data.query, data.gallery))
    found = torch.autograd.grad(ours.loss.sum(), (data.query, data.gallery))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@forms
def test_an_empty_memory_changes_no_bit(form):
    data = random_input(6)
    without = data._replace(memory=None, memory_class=None)
    masked = data._replace(memory_class=torch.full_like(data.gallery_class[:11], -1))
    assert torch.equal(masked.rows(form).loss, without.rows(form).loss)
    for a, b in zip(
        gradients(masked.rows(form).loss, data),
        gradients(without.rows(form).loss, data),
        strict=True,
    ):
        assert torch.equal(a, b)


@forms
def test_a_masked_column_gets_no_gradient(form):
    data = random_input(7)
    masked = data.gallery_class < 0
    assert masked.any()
    _, grad = gradients(data.rows(form).loss, data)
    assert not grad[masked].any()
    assert grad[~masked].any()


@forms
def test_a_row_without_a_positive_is_zero_and_leaves_no_gradient(form):
    data = random_input(8)._replace(query_class=torch.tensor([0, 1, 99, -1, 2, 98, 3, 4, 0]))
    rows = data.rows(form)
    alone = torch.tensor([False, False, True, True, False, True, False, False, False])
    assert torch.equal(rows.valid, ~alone)
    assert torch.equal(rows.positives == 0, alone)
    assert not rows.loss[alone].any()
    grad_query, grad_gallery = gradients(rows.loss, data)
    assert not grad_query[alone].any()
    fewer = torch.autograd.grad(rows_of_valid(data, form, ~alone), data.gallery)[0]
    torch.testing.assert_close(grad_gallery, fewer, rtol=0, atol=1e-12)


def rows_of_valid(data, form, keep):
    weights = torch.linspace(0.5, 2.0, len(keep), dtype=torch.float64)[keep]
    kept = data._replace(query=data.query[keep], query_class=data.query_class[keep])
    return (kept.rows(form).loss * weights).sum()


@forms
def test_all_rows_without_a_positive_give_a_zero_that_backward_can_run_through(form):
    data = random_input(9)._replace(query_class=torch.full((9,), 99))
    grads = gradients(data.rows(form).loss, data)
    assert all(not grad.any() and torch.isfinite(grad).all() for grad in grads)


@forms
@pytest.mark.parametrize("sizes", [(0, 4, 3), (3, 0, 4), (3, 4, 0), (3, 0, 0), (0, 0, 0)])
def test_no_query_or_no_column_gives_a_zero_that_backward_can_run_through(form, sizes):
    data = random_input(10, sizes=sizes)
    rows = data.rows(form)
    assert rows.loss.shape == rows.valid.shape == rows.positives.shape == (sizes[0],)
    if sizes[1] + sizes[2] == 0:
        assert not rows.loss.any()
        assert not rows.valid.any()
    grads = torch.autograd.grad(rows.loss.sum(), (data.query, data.gallery))
    assert [g.shape for g in grads] == [data.query.shape, data.gallery.shape]
    assert all(torch.isfinite(g).all() for g in grads)


@forms
def test_columns_that_are_all_masked_leave_zero_rows(form):
    data = random_input(11)
    data = data._replace(
        gallery_class=torch.full_like(data.gallery_class, -1), memory=None, memory_class=None
    )
    rows = data.rows(form)
    assert not rows.loss.any()
    assert not rows.valid.any()
    assert all(not grad.any() for grad in gradients(rows.loss, data))


@forms
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_logits_stay_finite_in_float32(form, sign):
    form = SdmForm(form.name, logit_scale=1e4, direction_weight=1.0)
    query = torch.eye(4, 8).requires_grad_()
    gallery = (sign * torch.eye(4, 8)).requires_grad_()
    data = SdmInput(query, gallery, None, torch.arange(4), torch.arange(4), None)
    rows = data.rows(form)
    assert torch.isfinite(rows.loss).all()
    assert all(torch.isfinite(grad).all() for grad in gradients(rows.loss, data))


@forms
def test_a_non_finite_feature_shows_in_the_loss(form):
    data = random_input(12)
    query = data.query.detach().clone()
    query[0, 0] = torch.nan
    assert torch.isnan(data._replace(query=query).rows(form).loss[0])


@forms
def test_a_memory_that_changes_before_backward_is_refused(form):
    data = random_input(13)
    assert data.memory is not None
    loss = data.rows(form).loss.sum()
    data.memory.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_gradient_reaches_the_memory():
    data = random_input(14)
    assert data.memory is not None
    data.memory.requires_grad_()
    data.rows(CE_FORM).loss.sum().backward()
    assert data.memory.grad is None


def test_perfect_alignment_reaches_the_floor_of_each_form():
    features = F.normalize(torch.randn(6, 32), dim=1).repeat_interleave(3, dim=0)
    classes = torch.arange(6).repeat_interleave(3)
    sharp = {form.name: SdmForm(form.name, 1e3, 1.0) for form in (CE_FORM, KL_FORM)}
    ce, _, positives = sdm_rows(features, features, None, classes, classes, None, sharp["ce"])
    kl, _, _ = sdm_rows(features, features, None, classes, classes, None, sharp["kl"])
    torch.testing.assert_close(ce, torch.full((18,), math.log(3)), rtol=1e-4, atol=1e-4)
    assert kl.abs().max() < 1e-4
    assert (positives == 3).all()


@forms
def test_chance_is_the_loss_of_features_that_are_all_alike(form):
    ones = F.normalize(torch.ones(7, 5, dtype=torch.float64), dim=1)
    query_class = torch.tensor([0, 0, 1, 2, 3, 9, -1])
    columns_class = torch.tensor([0, 0, 0, 1, 2, 3, -1])
    rows = sdm_rows(ones, ones, None, query_class, columns_class, None, form)
    level = chance(form, 6, rows.positives)
    torch.testing.assert_close(level.double(), rows.loss, rtol=1e-5, atol=1e-5)


def test_chance_of_the_documents_batch_is_about_two_and_about_twenty_four():
    positives = torch.full((8,), 2)
    assert chance(CE_FORM, 8, positives).mean().item() == pytest.approx(math.log(8))
    assert 2 * chance(KL_FORM, 8, positives).mean().item() == pytest.approx(23.8, abs=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"gallery": torch.zeros(13, 9)},
        {"query_class": torch.zeros(4, dtype=torch.int64)},
        {"memory": torch.zeros(11)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        random_input(15)._replace(**change).rows(CE_FORM)
