"""Several ranks learn exactly what one process learns, to the last digits of float64."""

import numpy as np
import pytest
import torch

from service.config import LossConfig, SdmConfig
from service.distributed import Distributed
from service.launch import launch
from service.losses.memory import CrossBatchMemory
from service.losses.objective import SdmWeight, objective
from service.losses.pairs import Pairs
from service.modality import Modality
from service.model.reid import CrossReID
from tests.steps import Person, make_inputs, step_rows, tiny_model_config

V, N, C, S, T = Modality
PEOPLE = [
    Person(0, (V, N, C, S, T)),
    Person(1, (V, V, N)),
    Person(2, (V, N, S)),
    Person(3, (V, S)),
    Person(4, (V, C, T)),
    Person(5, (N, T)),
]
"""Class 5 has no VIS row; only the first and the last two have captions, so that with the bounds
below a rank has none."""
BOUNDS = {1: [0, 6], 2: [0, 1, 6], 3: [0, 1, 4, 6]}


def two_steps(world: Distributed, form: str) -> dict[str, np.ndarray]:
    """Gradients of the second of two steps, statistics and memory; the first fills the memory."""
    torch.manual_seed(0)
    model = CrossReID(tiny_model_config(), num_classes=6, gather=world.gather_rows).double()
    wrapped = world.wrap(model)
    wrapped.train()
    memory = CrossBatchMemory(3, 8, model.backbone.dim, dtype=torch.float64)
    config = LossConfig(sdm=SdmConfig(form=form))
    total = torch.zeros((), dtype=torch.float64)
    for step in (1, 2):
        model.zero_grad(set_to_none=True)
        inputs, layout = make_inputs(
            PEOPLE, BOUNDS[world.world], world.rank, seed=step, dtype=torch.float64
        )
        rows = step_rows(layout)
        out = wrapped(inputs)
        terms = objective(
            rows=out.rows,
            gathered=out.gathered,
            after_neck=out.after_neck,
            logits=out.logits,
            step=rows,
            pairs=Pairs.of(layout, memory.held_classes().numpy()),
            memory=memory,
            weight=SdmWeight(0.7, ""),
            config=config,
            world=world.world,
        )
        terms.total.backward()
        vis = out.gathered.detach().index_select(0, rows.vis)
        memory.push(vis, torch.from_numpy(layout.class_index[layout.kind == V]), step)
        total = world.all_reduce_sum(terms.total.detach().clone()) / world.world
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    found["running_mean"] = model.neck.running_mean.numpy()
    found["running_var"] = model.neck.running_var.numpy()
    found["loss"] = total.numpy()
    assert world.same(memory.fingerprint())
    return found


def both_forms(world: Distributed) -> dict[str, dict[str, np.ndarray]]:
    return {form: two_steps(world, form) for form in ("ce", "kl")}


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_equal_those_of_one_process(size: int):
    expected = both_forms(Distributed.single())
    every_parameter = {n for n, _ in CrossReID(tiny_model_config(), 6).named_parameters()}
    for found in launch(both_forms, size, timeout_s=120):
        for form, values in expected.items():
            assert values.keys() == every_parameter | {"running_mean", "running_var", "loss"}
            for name, value in values.items():
                scale = float(np.abs(value).max())
                assert scale > 0, name
                error = float(np.abs(found[form][name] - value).max()) / scale
                assert error <= 1e-9, f"{form} {name} at world {size}: relative error {error:.1e}"
