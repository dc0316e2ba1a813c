import numpy as np
import pytest
import torch

from service.data.loader import decode_rows
from service.errors import DataError, NonFiniteError
from service.evaluation.evaluator import check_test_split, evaluate
from service.evaluation.protocol import GROUPS, MEAN, QUERY_KINDS, averages
from service.evaluation.result import METRICS
from service.modality import Modality
from service.model.reid import CrossReID
from tests.evaluation import FakeModel, FakeRecords
from tests.steps import tiny_model_config


@pytest.fixture(scope="module")
def records():
    return FakeRecords()


@pytest.fixture(scope="module")
def result(records):
    return evaluate(FakeModel(), records, batch_rows=4)


def by_hand(records, kind, neck=None):
    """(R1, R5, R10, mAP, mINP) of a kind, one row and one query at a time in float64."""
    model = FakeModel().eval()

    def embedded(row):
        modality = Modality(records.modality[row])
        if modality is Modality.TEXT:
            found = model.embed_tokens(torch.tensor(records.tokens([row])))
        else:
            found = model.embed_images(torch.tensor(decode_rows(records, [row])), modality)
        return found[0].double().numpy()

    def after(vector):
        if neck is None:
            return vector
        vector = neck(torch.tensor(vector, dtype=torch.float32)[None])[0].double().numpy()
        return vector / np.linalg.norm(vector)

    gallery = np.array([after(embedded(row)) for row in records.gallery])
    queries = next(q for q in records.queries if q.key == kind.key)
    values = []
    for label, members in zip(queries.label, queries.members, strict=True):
        vector = np.mean([embedded(row) for row in members], axis=0)
        order = np.argsort(-gallery @ after(vector / np.linalg.norm(vector)))
        ranks = np.flatnonzero(records.label[records.gallery][order] == label) + 1
        precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        hits = [ranks[0] <= k for k in (1, 5, 10)]
        values.append([*hits, precision, len(ranks) / ranks[-1]])
    return np.mean(values, axis=0)


@torch.no_grad()
def test_every_kind_equals_one_query_at_a_time_by_hand(records, result):
    for found in result.kinds:
        values = [getattr(found.retrieval, field) for field in METRICS.values()]
        assert values == pytest.approx(by_hand(records, found.kind), abs=1e-9)
        assert found.num_queries == 15


@torch.no_grad()
def test_the_averages_after_the_neck_are_those_of_the_neck_in_evaluation_mode(records):
    model = FakeModel()
    model.neck[0].running_mean += torch.linspace(-0.5, 0.5, 12)
    model.neck[0].running_var += torch.linspace(0, 3, 12)
    found = evaluate(model, records)
    neck = model.neck.eval()
    expected = {k.key: by_hand(records, k, neck)[3] for k in QUERY_KINDS}
    assert found.after_neck["mAP"] == pytest.approx(averages(expected), abs=1e-9)
    assert found.after_neck["mAP"] != found.before_neck["mAP"]


def test_every_row_is_embedded_once_without_gradient_and_in_evaluation_mode(records):
    model = FakeModel()
    calls = []
    evaluate(model, records, batch_rows=4, progress=lambda done, of: calls.append((done, of)))
    assert set(model.seen.values()) == {1}
    assert len(model.seen) == records.num_rows
    assert model.modes == {False}
    assert calls == [(i, 20) for i in range(1, 21)]


def test_every_module_is_left_in_the_mode_it_was_in_also_after_an_error(records):
    model = FakeModel()
    model.neck[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    evaluate(model, records)
    assert [module.training for module in model.modules()] == modes
    broken = FakeRecords()
    broken._jpeg[int(broken.gallery[0])] = np.zeros(5, np.uint8)
    with pytest.raises(DataError, match="fake/"):
        evaluate(model, broken)
    assert [module.training for module in model.modules()] == modes


def test_two_passes_are_identical(records, result):
    again = evaluate(FakeModel(), records, batch_rows=4)
    assert again == result


def test_the_summary_has_what_a_run_must_leave(result):
    summary = result.to_summary()
    keys = [kind.key for kind in QUERY_KINDS]
    for name in ("R1", "R5", "R10", "mAP", "mINP"):
        assert list(summary[name]) == [*GROUPS, MEAN, *keys]
        assert all(0 <= value <= 1 for value in summary[name].values())
        expected = averages({key: summary[name][key] for key in keys})
        assert {group: summary[name][group] for group in expected} == expected
    assert set(summary["after_neck"]) == set(METRICS)
    assert (summary["num_gallery"], summary["num_queries"]["TEXT+NIR"]) == (15, 15)
    assert 0 < summary["chance_mAP"] < summary["mAP"]["mean"]


@pytest.mark.parametrize("norm_scale", [8.0, None])
def test_the_real_model_can_be_evaluated_and_knows_nothing_yet(norm_scale):
    torch.manual_seed(0)
    model = CrossReID(tiny_model_config(norm_scale), num_classes=3)
    found = evaluate(model, FakeRecords(num_people=8, per_person=4))
    assert model.training
    assert found.before_neck["mAP"]["mean"] == pytest.approx(found.chance_map, abs=0.3)
    assert all(0 < k.retrieval.mean_ap <= 1 for k in found.kinds)


def broken(**changes):
    records = FakeRecords(num_people=3, per_person=2)
    for name, change in changes.items():
        setattr(records, name, change(getattr(records, name)))
    return records


def replace_query(number, **values):
    def change(queries):
        fields = {"key": queries[number].key, "label": queries[number].label}
        fields |= {"members": queries[number].members, **values}
        return [*queries[:number], type(queries[number])(**fields), *queries[number + 1 :]]

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gallery": lambda g: g[:0]}, "the gallery is empty"),
        ({"gallery": lambda g: np.arange(30)}, "gallery has rows that are not VIS"),
        ({"queries": lambda q: []}, "0 query kinds in the records, expected the 32"),
        ({"queries": lambda q: q[1:]}, "31 query kinds.*missing: NIR;"),
        ({"queries": lambda q: [*q, q[0]]}, "33 query kinds.*missing: none"),
        (
            {
                "queries": replace_query(
                    0, label=np.empty(0, np.int32), members=np.empty((0, 1), int)
                )
            },
            "no query of kind NIR",
        ),
        ({"queries": lambda q: replace_query(1, members=q[0].members)(q)}, "other modalities"),
        ({"queries": lambda q: replace_query(4, members=q[0].members)(q)}, r"expected \(6, 2\)"),
        (
            {"queries": lambda q: replace_query(0, members=q[0].members[::-1])(q)},
            "NIR have members of other people",
        ),
        ({"gallery": lambda g: g[:1]}, r"of 6 queries NIR have no row of their person"),
    ],
)
def test_a_test_split_that_cannot_be_evaluated_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        evaluate(FakeModel(), broken(**changes))
    with pytest.raises(DataError, match=message):
        check_test_split(broken(**changes))


def test_a_whole_test_split_passes_the_check_and_no_image_is_opened(records, monkeypatch):
    monkeypatch.setattr(records, "_jpeg", None)
    assert check_test_split(records) is None


def test_embeddings_that_are_no_numbers_are_refused(records):
    model = FakeModel()
    model.text.data[:] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        evaluate(model, records)
