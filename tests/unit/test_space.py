"""The search space: what fits, what is refused, and a trial's config."""

import math
from typing import Any

import pytest

from service.config import Config
from service.errors import ConfigError
from service.orchestration.space import check_space, num_trials, overrides, param_space, with_sample
from service.settings import load_text


def config(space: dict[str, Any], samples: int = 1) -> Config:
    return load_text(f"{{data: {{records: r}}, tune: {{samples: {samples}, space: {space}}}}}")


def test_a_sample_is_typed_as_overrides_would_be():
    sample = {"optim.head_lr": 1e-5, "loss.sdm.form": "kl", "loss.sdm.weights": [0.1, 0.2]}
    assert overrides(sample)[0] == "optim.head_lr=1e-05"
    found = with_sample(config({}), sample)
    assert math.isclose(found.optim.head_lr[0].lr, 1e-5)
    assert found.loss.sdm.form == "kl"
    assert found.loss.sdm.weights == (0.1, 0.2)


def test_grids_multiply_and_samples_repeat_them():
    space = {
        "optim.head_lr": {"grid": [1e-2, 3e-3]},
        "run.seed": {"grid": [0, 1, 2]},
        "optim.weight_decay": {"loguniform": [1e-5, 1e-3]},
    }
    assert num_trials(config(space, samples=4)) == 24
    check_space(config(space))
    assert set(param_space(config(space))) == set(space)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "tune.space is empty"),
        ({"optim.headlr": {"grid": [1]}}, "tune.space.optim.headlr: unknown setting"),
        ({"cluster.num_workers": {"grid": [1, 2]}}, "same for all trials"),
        ({"data.records": {"grid": ["a"]}}, "same for all trials"),
        ({"optim.head_lr": {"grid": [3e-3, -1]}}, "optim.head_lr"),
        ({"optim.neck_lr": {"uniform": [0.1, 50]}}, "optim.neck_lr"),
        ({"loss.sdm.form": {"choice": ["ce", "kj"]}}, "loss.sdm.form"),
    ],
)
def test_a_space_that_does_not_fit_is_refused_by_name(space: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        check_space(config(space))


LOOKS = {"policy.first_look": {"grid": [100, 250]}, "policy.no_go_from": {"choice": [200, 400]}}
LINES = {"policy.hold": {"uniform": [0.94, 0.98]}, "policy.collapse": {"uniform": [0.96, 0.99]}}
RATES = ("backbone_lr", "patch_lr", "neck_lr", "weight_decay", "head_lr", "clip_norm")
MANY = {f"optim.{name}": {"grid": [1e-4, 1e-3, 1e-2]} for name in RATES}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (LOOKS, "policy.first_look=250 with policy.no_go_from=200 does not fit"),
        (LINES, "policy.hold=0.98 with policy.collapse=0.96 does not fit"),
        ({**MANY, **LOOKS}, "policy.first_look=250 with policy.no_go_from=200 does not fit"),
        ({**MANY, "optim.neck_lr": {"grid": [*[1e-4] * 50, 50]}}, "space: optim.neck_lr=50 does"),
    ],
)
def test_samples_that_contradict_only_together_are_refused_by_the_settings_that_do(
    space: Any, words: str
):
    assert num_trials(config({**MANY, **LOOKS})) * 2 > 1000
    with pytest.raises(ConfigError, match=words):
        check_space(config(space))


def test_values_that_fit_only_together_are_not_refused():
    space = {"policy.first_look": {"grid": [400]}, "policy.no_go_from": {"grid": [450]}}
    check_space(config(space))
