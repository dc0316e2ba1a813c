"""The doctor's look at a model, on made-up batches, with faults put into it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.causes import Cause
from service.config import Config
from service.doctor import model as model_module
from service.doctor.check import Diagnosis, Status
from service.doctor.model import bn_rows, diagnose_model, head_reach, reach
from service.errors import ModelError
from tests.small import small_config

NOWHERE = Path("nowhere")


def config(*overrides: str) -> Config:
    return small_config(NOWHERE, overrides)


def statuses(found: Diagnosis) -> dict[str, Status]:
    return {check.name: check.status for check in found.checks}


def failed(found: Diagnosis) -> dict[str, Cause | None]:
    return {c.name: c.cause for c in found.checks if c.status is Status.FAIL}


def test_a_sound_model_passes_every_look_on_made_up_pixels():
    found = diagnose_model(config())
    assert statuses(found).pop("batch") is Status.WARN
    assert not found.failed
    assert set(statuses(found).values()) == {Status.OK, Status.WARN}
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["head", "neck", "patch", "backbone"]
    assert any("mean 0.4815" in note for note in found.notes)


def test_a_frozen_random_layer_is_named_and_the_rest_is_looked_at_all_the_same():
    found = diagnose_model(config("model.freeze=[backbone.patch]"))
    assert failed(found) == {"frozen layers": Cause.FROZEN_RANDOM_LAYER}
    assert statuses(found)["one step of the optimiser"] is Status.OK


def test_a_frozen_module_that_does_not_exist_is_named():
    assert failed(diagnose_model(config("model.freeze=[backbone.pach]"))) == {"frozen layers": None}


def test_a_backbone_that_does_not_exist_is_an_error():
    name = ["model.backbone.name=nonsense", "model.backbone.architecture=null"]
    with pytest.raises(ModelError):
        diagnose_model(config(*name))


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], None]) -> Diagnosis:
    """The look at a model that `fault` has changed after it was built."""
    build = model_module.CrossReID

    def faulty(*args: Any) -> Any:
        made = build(*args)
        fault(made)
        return made

    monkeypatch.setattr(model_module, "CrossReID", faulty)
    return diagnose_model(config())


def freeze_quietly(made: Any) -> None:
    made.backbone.patch.requires_grad_(False)


def detach(made: Any) -> None:
    encode_images, encode_tokens = made.backbone.encode_images, made.backbone.encode_tokens
    made.backbone.encode_images = lambda *a: encode_images(*a).detach()
    made.backbone.encode_tokens = lambda *a: encode_tokens(*a).detach()


def no_gradient(made: Any) -> None:
    made.classifier.weight.register_hook(lambda grad: grad * 0)


def drop_out(made: Any) -> None:
    """Noise that evaluation does not switch off."""
    encode = made.backbone.encode_images

    def noisy(*args: Any) -> Any:
        return torch.nn.functional.dropout(encode(*args), 0.5, training=True)

    made.backbone.encode_images = noisy


def only_in_training_path(made: Any) -> None:
    embed = made.embed_tokens
    made.embed_tokens = lambda tokens: embed(tokens).flip(1)


def scaled(made: Any) -> None:
    made.neck.register_forward_hook(lambda module, given, out: out * 3)


def forgotten_by_the_groups(made: Any) -> None:
    groups = made.parameter_groups
    made.parameter_groups = lambda: {**groups(), "neck": []}


@pytest.mark.parametrize(
    ("fault", "name", "cause"),
    [
        (freeze_quietly, "frozen layers", Cause.FROZEN_RANDOM_LAYER),
        (detach, "gradient of the backbone", Cause.FEATURES_DETACHED),
        (no_gradient, "gradient of the head", Cause.NO_GRADIENT),
        (drop_out, "evaluation is repeatable", None),
        (only_in_training_path, "training and evaluation agree", None),
        (scaled, "feature length after the neck", Cause.FEATURE_NORM_OFF),
        (forgotten_by_the_groups, "groups of the optimiser", Cause.HEAD_NOT_IN_OPTIMIZER),
    ],
)
def test_each_fault_is_named(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Any], None],
    name: str,
    cause: Cause | None,
):
    found = failed(with_fault(monkeypatch, fault))
    assert name in found
    assert found[name] is cause


def test_a_head_that_the_optimiser_never_steps_is_named(monkeypatch: pytest.MonkeyPatch):
    build = model_module.build_optimizer

    def without_head(*args: Any) -> Any:
        made = build(*args)
        made.param_groups = [g for g in made.param_groups if g["name"] != "head"]
        return made

    monkeypatch.setattr(model_module, "build_optimizer", without_head)
    assert failed(diagnose_model(config()))["one step of the optimiser"] is (
        Cause.HEAD_NOT_IN_OPTIMIZER
    )


@given(st.floats(1e-8, 1.0), st.integers(8, 2048), st.integers(2, 10_000))
def test_a_higher_head_rate_never_makes_the_forecast_worse(rate: float, dim: int, people: int):
    order = [Status.FAIL, Status.WARN, Status.OK]
    low, high = (
        order.index(reach(config(f"optim.head_lr={r}"), dim, people).status)
        for r in (rate, min(rate * 3, 9.0))
    )
    assert low <= high


@pytest.mark.parametrize(
    ("rate", "status"), [("1e-2", Status.OK), ("3e-3", Status.OK), ("1e-5", Status.FAIL)]
)
def test_the_forecast_tells_known_rates_apart_at_the_default_looks(rate: str, status: Status):
    looks = ["policy.final_look=500", "policy.no_go_from=300", "policy.first_look=200"]
    found = reach(config(f"optim.head_lr={rate}", *looks), dim=512, num_classes=400)
    assert found.status is status
    assert found.cause is (None if status is Status.OK else Cause.HEAD_LR_TOO_SMALL)


def test_the_forecast_starts_from_the_probe_where_there_is_one():
    found = config("optim.head_lr=1e-5", "optim.head_probe={lr: 5e-3}")
    assert head_reach(found) == pytest.approx(5e-3 * found.policy.first_look)


@pytest.mark.parametrize(("p", "k", "status"), [(4, 4, Status.OK), (3, 5, Status.WARN)])
def test_a_batch_too_small_for_batchnorm_is_a_warning(p: int, k: int, status: Status):
    sampler = config(f"sampler.ids_per_batch={p}", f"sampler.rows_per_id={k}").sampler
    assert bn_rows(sampler).status is status
