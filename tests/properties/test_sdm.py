"""What holds for every SDM input: bounds, symmetries, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.losses.sdm import CE_FORM, KL_FORM
from tests.sdm_oracle import SdmInput, random_input

inputs = st.builds(
    random_input,
    seed=st.integers(0, 2**31),
    sizes=st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)),
    dim=st.integers(1, 6),
)
forms = pytest.mark.parametrize("form", [CE_FORM, KL_FORM], ids=lambda form: form.name)
quick = settings(max_examples=60, deadline=None)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def grads(rows, data):
    return torch.autograd.grad(rows.loss.sum(), (data.query, data.gallery))


@forms
@quick
@given(data=inputs)
def test_every_row_and_gradient_is_finite(form, data):
    rows = data.rows(form)
    assert torch.isfinite(rows.loss).all()
    assert all(torch.isfinite(grad).all() for grad in grads(rows, data))


@quick
@given(data=inputs)
def test_ce_is_at_least_the_entropy_of_its_target(data):
    rows = data.rows(CE_FORM)
    floor = rows.positives.clamp_min(1).to(rows.loss.dtype).log()
    assert (rows.loss >= floor - 1e-12).all()


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@quick
@given(data=inputs)
def test_no_row_is_negative(form, dtype, data):
    """`kl` may fall below 0 by log(1 + N eps), because eps makes its target sum to 1 + N eps."""
    data = SdmInput(*(t.to(dtype) if t.is_floating_point() else t for t in data))
    columns = len(data.gallery) + len(data.memory_class)
    assert (data.rows(form).loss >= -math.log1p(columns * form.eps) - 1e-6).all()


@forms
@quick
@given(data=inputs, seed=st.integers(0, 2**31))
def test_the_order_of_columns_and_queries_does_not_matter(form, data, seed):
    generator = torch.Generator().manual_seed(seed)
    q, g, m = (torch.randperm(n, generator=generator) for n in map(len, data[:3]))
    shuffled = SdmInput(
        data.query[q], data.gallery[g], data.memory[m],
        data.query_class[q], data.gallery_class[g], data.memory_class[m],
    )  # fmt: skip
    rows, other = data.rows(form), shuffled.rows(form)
    same(other.loss, rows.loss[q])
    assert torch.equal(other.positives, rows.positives[q])
    for a, b in zip(grads(rows, data), grads(other, data), strict=True):
        same(a, b)


@forms
@quick
@given(data=inputs)
def test_a_masked_column_is_as_if_it_were_not_there(form, data):
    g, m = data.gallery_class >= 0, data.memory_class >= 0
    removed = data._replace(
        gallery=data.gallery[g], gallery_class=data.gallery_class[g],
        memory=data.memory[m], memory_class=data.memory_class[m],
    )  # fmt: skip
    rows, other = data.rows(form), removed.rows(form)
    same(rows.loss, other.loss)
    assert torch.equal(rows.positives, other.positives)
    for a, b in zip(grads(rows, data), grads(other, data), strict=True):
        same(a, b)


@forms
@quick
@given(data=inputs, cut=st.integers(0, 12))
def test_queries_can_be_split_over_ranks(form, data, cut):
    parts = [
        data._replace(query=data.query[part], query_class=data.query_class[part]).rows(form)
        for part in (slice(None, cut), slice(cut, None))
    ]
    rows = data.rows(form)
    same(torch.cat([part.loss for part in parts]), rows.loss)
    whole = grads(rows, data)
    pieces = [grads(part, data) for part in parts]
    for i in range(2):
        same(pieces[0][i] + pieces[1][i], whole[i])


@forms
@quick
@given(data=inputs)
def test_positives_are_the_columns_of_the_same_class(form, data):
    rows = data.rows(form)
    columns = torch.cat([data.gallery_class, data.memory_class]).tolist()
    expected = [sum(c == q for c in columns) for q in data.query_class.tolist()]
    assert rows.positives.tolist() == expected
    assert rows.valid.tolist() == [n > 0 for n in expected]
    assert not rows.loss[~rows.valid].any()
