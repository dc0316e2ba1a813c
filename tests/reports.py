"""Health reports of a healthy run, to be worsened line by line."""

import math
from dataclasses import replace
from typing import Any

from service.causes import Cause
from service.config import Config, DataConfig, PolicyConfig
from service.decisions import Decision, Verdict
from service.health import HealthReport

CONFIG = Config(data=DataConfig(records="records"))
NUM_CLASSES = 400
LN_C = math.log(NUM_CLASSES)

HEALTHY = HealthReport(
    step=200,
    epoch=1,
    step_in_epoch=200,
    steps_per_epoch=1863,
    total_steps=100_000,
    num_classes=NUM_CLASSES,
    window=100,
    ce=5.46,
    ce_fraction=5.46 / LN_C,
    ce_first=5.9,
    ce_fall=(5.9 - 5.46) / LN_C,
    ce_slope=-0.004,
    ce_swing=0.0,
    ce_by_kind={"vis": 5.4, "text": 5.6},
    top1=0.01,
    pair_coverage=1.0,
    pair_coverage_with_memory=1.0,
    rows_without_positive=0.0,
    sdm=0.0,
    sdm_chance=0.0,
    sdm_rows=0.0,
    sdm_positives=0.0,
    sdm_scheduled=0.0,
    sdm_weight=0.0,
    sdm_scheduled_steps=0,
    sdm_applied_share=1.0,
    sdm_gradient_share=0.0,
    sdm_reason="",
    head_norm=7.0,
    head_growth=15.0,
    head_window_growth=1.2,
    head_grad_norm=0.08,
    head_moved=0.02,
    body_grad_norm=0.1,
    body_moved=0.001,
    head_lr=1e-2,
    feature_norm=8.0,
    feature_norm_expected=8.0,
    memory_rows=0,
    memory_age=0,
    memory_equal=True,
    ids_per_batch=16,
    images_per_second=100.0,
    throughput_ratio=1.0,
    data_wait_share=0.0,
)


def healthy(step: int, **changes: Any) -> HealthReport:
    """A healthy report at `step`, which lies in its place in the epoch."""
    per_epoch = changes.get("steps_per_epoch", HEALTHY.steps_per_epoch)
    place = {"epoch": (step - 1) // per_epoch + 1, "step_in_epoch": (step - 1) % per_epoch + 1}
    return replace(HEALTHY, step=step, **{**place, **changes})


def stuck(step: int, **changes: Any) -> HealthReport:
    """A report of a run whose head cannot move: cross-entropy stays at chance."""
    still = {"ce": LN_C, "ce_fraction": 1.0, "ce_first": LN_C, "ce_fall": 0.0, "ce_slope": 0.0}
    return healthy(step, **{**still, "head_growth": 1.05, **changes})


def config(policy: PolicyConfig | None = None, **cluster: Any) -> Config:
    """A config of that policy and on that cluster."""
    changed = {"policy": policy or CONFIG.policy}
    return CONFIG.model_copy(
        update={**changed, "cluster": CONFIG.cluster.model_copy(update=cluster)}
    )


def decision(verdict: Any, cause: Any = "none", **more: Any) -> dict[str, Any]:
    """The event of a decision."""
    return {**Decision(200, Verdict(verdict), Cause(cause)).to_dict(), **more}


START = {"world_size": 2, "precision": "fp32", "verdict": "WAIT", "cause": "none"}
"""What the event of a start tells the exporter."""
