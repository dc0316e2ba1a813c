import numpy as np
import pytest

from service.distributed import Distributed
from service.errors import DataError
from service.evaluation.evaluator import evaluate
from service.evaluation.result import EvalResult
from service.launch import launch
from tests.evaluation import FakeModel, FakeRecords

pytestmark = pytest.mark.distributed


def evaluate_twice(world: Distributed) -> tuple[EvalResult, str]:
    """The result, and then the error when one row, so one rank's work, is damaged."""
    records = FakeRecords(num_people=3, per_person=2)
    result = evaluate(FakeModel(), records, world, batch_rows=5)
    records._jpeg[int(records.gallery[0])] = np.zeros(5, np.uint8)
    try:
        evaluate(FakeModel(), records, world, batch_rows=5)
    except DataError as error:
        return result, str(error)
    raise AssertionError("the damaged row was not noticed")


def test_any_world_finds_the_same_bit_for_bit_and_all_its_ranks_raise_an_error_of_one():
    alone = evaluate_twice(Distributed.single())
    assert "fake/" in alone[1]
    assert launch(evaluate_twice, 3, timeout_s=60) == [alone] * 3
