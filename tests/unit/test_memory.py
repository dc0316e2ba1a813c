import io

import pytest
import torch

from service.errors import CheckpointError
from service.losses.memory import UNFILLED, CrossBatchMemory
from service.losses.sdm import CE_FORM
from tests.sdm_oracle import random_input


def filled(pushes: int, steps: int = 3, rows_per_step: int = 4, dim: int = 2) -> CrossBatchMemory:
    """A memory after `pushes` pushes of 4, 3, 2, 1, 4, ... rows whose class is 10 * step + row."""
    memory = CrossBatchMemory(steps, rows_per_step, dim)
    for step in range(pushes):
        memory.push(*rows_of(step, dim), step)
    return memory


def rows_of(step: int, dim: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    classes = 10 * step + torch.arange(4 - step % 4)
    return (classes[:, None] + torch.zeros(dim)).float(), classes


def test_a_new_memory_is_empty():
    memory = filled(0)
    features, classes = memory.view()
    assert features.shape == (0, 2)
    assert classes.shape == (0,)
    assert (memory.rows, memory.slots, memory.ages(5)) == (0, 0, [])
    assert memory.held_classes().shape == (0,)


def test_the_oldest_step_is_overwritten():
    memory = filled(5)
    assert memory.ages(5) == [3, 2, 1]
    assert memory.held_classes().tolist() == [20, 21, 30, 40, 41, 42, 43]
    assert memory.rows == 7


def test_the_view_marks_rows_that_a_short_step_left_empty():
    _, classes = filled(5).view()
    assert classes.view(3, 4).tolist() == [
        [30, UNFILLED, UNFILLED, UNFILLED],
        [40, 41, 42, 43],
        [20, 21, UNFILLED, UNFILLED],
    ]


def test_the_view_is_not_a_copy():
    memory = filled(3)
    features, classes = memory.view()
    addresses = features.data_ptr(), classes.data_ptr()
    memory.push(*rows_of(4), 4)
    assert (memory.view()[0].data_ptr(), memory.view()[1].data_ptr()) == addresses
    assert classes[:4].tolist() == rows_of(4)[1].tolist()


def test_what_is_kept_has_no_gradient_and_no_graph():
    memory = CrossBatchMemory(2, 4, 2)
    weight = torch.ones(2, requires_grad=True)
    memory.push(torch.ones(4, 2) * weight, torch.arange(4), 0)
    features, _ = memory.view()
    assert not features.requires_grad
    assert features.grad_fn is None


def test_a_later_change_of_the_pushed_tensors_does_not_reach_the_memory():
    memory = filled(0)
    features, classes = rows_of(0)
    memory.push(features, classes, 0)
    before = memory.fingerprint()
    features.zero_()
    classes.zero_()
    assert memory.fingerprint() == before
    assert memory.held_classes().tolist() == [0, 1, 2, 3]


def test_memory_use_stays_flat_over_pushes():
    memory = filled(1, steps=2)
    address = memory.view()[0].data_ptr()
    for step in range(1, 100):
        memory.push(torch.randn(4, 2, requires_grad=True) * 2, torch.arange(4), step)
        assert memory.view()[0].data_ptr() == address
    assert memory.rows == 8


@pytest.mark.parametrize(
    ("features", "classes"),
    [((5, 2), 5), ((3, 3), 3), ((3, 2), 2)],
    ids=["too many rows", "another dimension", "classes missing"],
)
def test_rows_that_do_not_fit_are_refused_and_change_nothing(features, classes):
    memory = filled(2)
    before = memory.fingerprint()
    with pytest.raises(ValueError, match="rows_per_step=4"):
        memory.push(torch.zeros(features), torch.zeros(classes, dtype=torch.int64), 9)
    assert memory.fingerprint() == before


@pytest.mark.parametrize("step", [0, 4])
def test_a_step_is_kept_once(step):
    memory = filled(5)
    with pytest.raises(ValueError, match="steps must rise"):
        memory.push(*rows_of(4), step)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="rows_per_step=0"):
        CrossBatchMemory(3, 0, 2)


def test_flush_forgets_everything():
    memory = filled(5)
    memory.flush()
    assert memory.fingerprint() == filled(0).fingerprint()
    memory.push(*rows_of(0), 0)
    assert memory.fingerprint() == filled(1).fingerprint()
    assert not memory.view()[0][4:].any()


@pytest.mark.parametrize("pushes", range(8))
def test_a_restored_memory_goes_on_as_the_saved_one(pushes):
    saved = filled(pushes)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    restored = filled(2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for step in range(pushes, pushes + 5):
        assert restored.fingerprint() == saved.fingerprint()
        assert restored.ages(step) == saved.ages(step)
        assert all(torch.equal(a, b) for a, b in zip(restored.view(), saved.view(), strict=True))
        for memory in (saved, restored):
            memory.push(*rows_of(step), step)


def test_the_saved_state_does_not_change_with_later_pushes():
    memory = filled(4)
    state = memory.state_dict()
    before = memory.fingerprint()
    memory.push(*rows_of(9), 9)
    other = filled(0)
    other.load_state_dict(state)
    assert other.fingerprint() == before


def test_a_smaller_ring_keeps_the_newest_steps():
    restored = filled(0, steps=2)
    restored.load_state_dict(filled(5).state_dict())
    assert restored.ages(5) == [2, 1]
    assert restored.held_classes().tolist() == [30, 40, 41, 42, 43]


@pytest.mark.parametrize(("steps", "rows_per_step"), [(5, 4), (3, 7), (4, 6)])
def test_a_larger_ring_holds_the_same_rows(steps, rows_per_step):
    restored = filled(0, steps=steps, rows_per_step=rows_per_step)
    restored.load_state_dict(filled(5).state_dict())
    assert restored.fingerprint() == filled(5).fingerprint()
    restored.push(*rows_of(7), 7)
    assert restored.ages(8)[-1] == 1


@pytest.mark.parametrize("sizes", [{"rows_per_step": 3}, {"dim": 3}])
def test_a_memory_that_cannot_hold_the_saved_rows_refuses_them(sizes):
    memory = CrossBatchMemory(**{"steps": 3, "rows_per_step": 4, "dim": 2} | sizes)
    before = memory.fingerprint()
    with pytest.raises(CheckpointError, match="4 rows a step of dimension 2"):
        memory.load_state_dict(filled(5).state_dict())
    assert memory.fingerprint() == before


@pytest.mark.parametrize("part", ["features", "classes", "step"])
def test_the_fingerprint_tells_apart_what_differs_in_one_place(part):
    features, classes = rows_of(2)
    if part == "features":
        features[0, 0] += 1e-6
    if part == "classes":
        classes = classes.flip(0)
    other = filled(2)
    other.push(features, classes, 3 if part == "step" else 2)
    assert other.fingerprint() != filled(3).fingerprint()


def test_bfloat16_features_are_kept_and_hashed():
    memory = CrossBatchMemory(2, 4, 2, dtype=torch.bfloat16)
    memory.push(torch.ones(4, 2), torch.arange(4), 0)
    assert memory.view()[0].dtype == torch.bfloat16
    assert len(memory.fingerprint()) == 64


def test_rows_of_a_step_are_not_columns_of_that_step_and_meet_the_next_one_once():
    data = random_input(0, sizes=(4, 4, 0), classes=(0, 4))
    memory = CrossBatchMemory(3, 4, 8, dtype=torch.float64)
    positives = []
    for step in range(3):
        features, classes = memory.view()
        now = data._replace(memory=features, memory_class=classes).rows(CE_FORM)
        now.loss.sum().backward()
        memory.push(data.gallery, data.gallery_class, step)
        positives.append(now.positives)
    first = positives[0]
    assert first.any()
    assert torch.equal(positives[1], 2 * first)
    assert torch.equal(positives[2], 3 * first)


def test_pushing_before_backward_is_refused():
    data = random_input(1, sizes=(4, 4, 0), classes=(0, 4))
    memory = CrossBatchMemory(3, 4, 8, dtype=torch.float64)
    memory.push(data.gallery, data.gallery_class, 0)
    features, classes = memory.view()
    loss = data._replace(memory=features, memory_class=classes).rows(CE_FORM).loss.sum()
    memory.push(data.gallery, data.gallery_class, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
