"""Tune's own loggers: made by name, refused when their package or login is missing."""

import importlib.util
from pathlib import Path

import pytest
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

from service.errors import ConfigError
from service.orchestration.loggers import check_loggers, make_loggers
from service.orchestration.scalars import compared, scalars
from tests.reports import healthy


def test_loggers_are_made_by_name_once_each(tmp_path: Path):
    made = make_loggers(["tensorboard", "csv", "json", "csv"], "s", tmp_path)
    assert [type(one) for one in made] == [TBXLoggerCallback, CSVLoggerCallback, JsonLoggerCallback]
    assert make_loggers([], "s", tmp_path) == []


@pytest.mark.parametrize(
    ("name", "package"), [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboard", "tensorboardX")]
)
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ConfigError, match=f"{name} needs the package {package}; run pip install"):
        make_loggers([name], "s", tmp_path)


def test_weights_and_biases_without_login_is_refused_unless_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"set WANDB_API_KEY, or WANDB_MODE=offline"):
        check_loggers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_loggers(["wandb"])


def test_every_number_of_a_report_becomes_a_scalar_and_the_step_is_tunes_time():
    values = healthy(300).to_dict()
    found = scalars(values)
    assert found["timesteps_total"] == found["step"] == 300
    assert {"ce", "ce_fraction", "top1", "pair_coverage", "sdm_weight", "head_norm"} <= set(found)
    assert {type(value) for value in found.values()} <= {int, float}
    assert set(compared(values)) == {"step", "ce", "ce_fraction", "top1", "pair_coverage"}
    del values["top1"]
    with pytest.raises(KeyError, match=r"top1"):
        compared(values)
