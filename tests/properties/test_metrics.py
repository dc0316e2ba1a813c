"""Ranking metrics against brute force, including the treatment of ties."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from service.errors import DataError, NonFiniteError
from service.evaluation.metrics import chance_map, rank, retrieval, search


def brute_force(similarity, relevant):
    """(first, AP, INP) of one query; equal similarities put irrelevant rows first."""
    order = sorted(range(len(similarity)), key=lambda g: (-similarity[g], relevant[g]))
    ranks = [i for i, g in enumerate(order, start=1) if relevant[g]]
    precisions = [k / i for k, i in enumerate(ranks, start=1)]
    return ranks[0], float(np.mean(precisions)), len(ranks) / ranks[-1]


@st.composite
def searches(draw: st.DrawFn):
    """Similarities on a coarse grid, so that there are many ties, and labels."""
    num_gallery = draw(st.integers(1, 12))
    gallery_label = draw(st.lists(st.integers(-2, 3), min_size=num_gallery, max_size=num_gallery))
    query_label = draw(st.lists(st.sampled_from(gallery_label), min_size=1, max_size=5))
    cells = len(query_label) * num_gallery
    values = draw(st.lists(st.integers(-4, 4), min_size=cells, max_size=cells))
    similarity = torch.tensor(values, dtype=torch.float32).reshape(-1, num_gallery) / 4
    return similarity, torch.tensor(query_label), torch.tensor(gallery_label)


@given(searches())
def test_metrics_equal_brute_force_with_ties_against_the_query(case):
    similarity, query_label, gallery_label = case
    found = rank(*case)
    for q in range(len(query_label)):
        relevant = (gallery_label == query_label[q]).tolist()
        first, ap, inp = brute_force(similarity[q].tolist(), relevant)
        assert found.first[q] == first
        assert found.ap[q].item() == pytest.approx(ap, abs=1e-12)
        assert found.inp[q].item() == pytest.approx(inp, abs=1e-12)
        assert found.relevant[q] == sum(relevant)


@given(searches(), st.randoms(use_true_random=False))
def test_the_order_of_the_gallery_changes_nothing(case, random):
    similarity, query_label, gallery_label = case
    order = list(range(len(gallery_label)))
    random.shuffle(order)
    one, two = rank(*case), rank(similarity[:, order], query_label, gallery_label[order])
    assert torch.equal(one.first, two.first)
    assert torch.equal(one.ap, two.ap)
    assert torch.equal(one.inp, two.inp)


@given(searches())
def test_rounding_below_the_tie_changes_nothing(case):
    similarity, query_label, gallery_label = case
    noise = torch.rand(similarity.shape, generator=torch.Generator().manual_seed(0)) * 8e-7
    shaken = rank(similarity + noise, query_label, gallery_label)
    exact = rank(*case)
    assert torch.equal(shaken.first, exact.first)
    assert torch.equal(shaken.ap, exact.ap)


@given(searches(), st.integers(1, 5))
def test_rows_behind_the_last_relevant_one_leave_everything(case, extra):
    similarity, query_label, gallery_label = case
    longer = torch.cat([similarity, torch.full((len(query_label), extra), -3.0)], dim=1)
    more = torch.cat([gallery_label, torch.full((extra,), 9)])
    one, two = rank(*case), rank(longer, query_label, more)
    assert torch.equal(one.ap, two.ap)
    assert torch.equal(one.inp, two.inp)
    assert torch.equal(one.first, two.first)


@given(searches())
def test_values_are_shares_and_cmc_rises(case):
    found = rank(*case)
    means = retrieval(found)
    assert 0 <= means.r1 <= means.r5 <= means.r10 <= 1
    assert 0 < means.mean_inp <= 1
    assert 0 < means.mean_ap <= 1
    assert means.r1 == (found.first == 1).double().mean()


@given(searches())
def test_a_perfect_ranking_is_one(case):
    _, query_label, gallery_label = case
    perfect = (query_label[:, None] == gallery_label).float()
    means = retrieval(rank(perfect, query_label, gallery_label))
    assert (means.r1, means.mean_ap, means.mean_inp) == (1, 1, 1)


@given(searches())
def test_a_collapsed_model_is_no_better_than_chance(case):
    _, query_label, gallery_label = case
    found = rank(torch.ones(len(query_label), len(gallery_label)), query_label, gallery_label)
    chance = chance_map(found.relevant, len(gallery_label))
    assert (found.ap <= chance + 1e-12).all()


@given(st.integers(1, 8), st.data())
def test_chance_is_the_mean_over_all_rankings(num_gallery, data):
    relevant = data.draw(st.integers(1, num_gallery))
    every = [
        np.mean([k / place for k, place in enumerate(places, start=1)])
        for places in combinations(range(1, num_gallery + 1), relevant)
    ]
    found = chance_map(torch.tensor([relevant]), num_gallery)
    assert found.item() == pytest.approx(np.mean(every), abs=1e-12)


def test_chance_is_what_random_embeddings_reach():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 16, generator=generator) for n in (400, 300))
    label = torch.arange(300) % 20
    query_label = torch.arange(400) % 20
    found = search(unit(query), query_label, unit(gallery), label)
    expected = chance_map(found.relevant, 300).mean().item()
    assert retrieval(found).mean_ap == pytest.approx(expected, rel=0.05)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


@given(searches(), st.integers(1, 40))
def test_chunks_of_any_size_give_the_whole(case, max_cells):
    _, query_label, gallery_label = case
    generator = torch.Generator().manual_seed(len(gallery_label))
    query = unit(torch.randn(len(query_label), 6, generator=generator))
    gallery = unit(torch.randn(len(gallery_label), 6, generator=generator))
    whole = rank(query @ gallery.T, query_label, gallery_label)
    found = search(query, query_label, gallery, gallery_label, max_cells)
    assert torch.equal(found.first, whole.first)
    torch.testing.assert_close(found.ap, whole.ap)
    assert torch.equal(found.relevant, whole.relevant)


@given(searches(), st.integers(0, 9))
def test_queries_without_a_relevant_row_are_counted_and_refused(case, position):
    similarity, query_label, gallery_label = case
    assume(position < len(query_label))
    query_label[position] = 77
    with pytest.raises(DataError, match=rf"1 of {len(query_label)} queries .* label 77"):
        rank(similarity, query_label, gallery_label)


@pytest.mark.parametrize(("num_queries", "num_gallery"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_rank_is_refused(num_queries, num_gallery):
    message = f"{num_queries} queries and {num_gallery} gallery rows"
    labels = torch.zeros(num_queries, dtype=torch.int64), torch.zeros(num_gallery)
    with pytest.raises(DataError, match=message):
        rank(torch.zeros(num_queries, num_gallery), *labels)
    with pytest.raises(DataError, match=message):
        search(torch.zeros(num_queries, 4), labels[0], torch.zeros(num_gallery, 4), labels[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_similarities_that_are_no_numbers_are_refused(value):
    similarity = torch.zeros(3, 4)
    similarity[1, 2] = value
    with pytest.raises(NonFiniteError, match="1 of 3 queries"):
        rank(similarity, torch.zeros(3), torch.zeros(4))
