"""Deterministic kernels are asked for as long as a run wants them, and no longer."""

import os
from pathlib import Path

import pytest
import torch

from service.distributed import Distributed
from service.training.determinism import deterministic_kernels
from service.training.loop import train
from service.training.ports import Ports
from tests.small import make_records, small_config


def settings() -> tuple[bool, bool, bool, str | None]:
    cudnn = torch.backends.cudnn
    asked = torch.are_deterministic_algorithms_enabled()
    return asked, cudnn.deterministic, cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_the_settings_hold_inside_and_are_as_before_after_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic_kernels(True):
        assert settings() == (True, True, False, ":4096:8")
    assert settings() == before
    with deterministic_kernels(False):
        assert settings() == before


def test_a_users_own_workspace_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(True):
        assert settings()[3] == ":16:8"
    assert settings()[3] == ":16:8"


def test_a_run_trains_with_deterministic_kernels_and_gives_them_back(tmp_path: Path):
    seen: list[bool] = []

    def progress(step: int, total: int, line: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    config = small_config(make_records(tmp_path), ["train.deterministic=true", "train.max_steps=4"])
    (tmp_path / "run").mkdir()
    train(config, tmp_path / "run", Distributed.single(), Ports(progress=progress))
    assert seen == [True] * 4
    assert not torch.are_deterministic_algorithms_enabled()
