"""The one table of metrics: what the exporter serves, and what panels and rules may ask for.

Every series carries the labels `run` and `trial`. A plain training is the one trial `main`. The
exporter always gets full snapshots, so that a restarted exporter is complete after the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.config import Config
from service.health import HealthReport

PREFIX = "reid_train_"
LABELS = ("run", "trial")

Values = dict[str, dict[tuple[str, ...], float]]
"""Line name to its samples: the values of the line's own labels to the number."""


@dataclass(frozen=True, slots=True)
class Line:
    """One metric.

    name: without `PREFIX`; ends with its unit where it has one, and a counter with `_total`.
    labels: those beyond `LABELS`. field: the health line that it shows, if it shows one.
    """

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    labels: tuple[str, ...] = ()
    field: str = ""


LINES: tuple[Line, ...] = (
    Line("running", "gauge", "1 while the trial trains, 0 after it ended by itself"),
    Line("heartbeat_timestamp_seconds", "gauge", "Unix time of the last step heard of"),
    Line("global_step", "gauge", "Steps done; rises across restarts"),
    Line("total_steps", "gauge", "Steps that the run will take"),
    Line("epoch", "gauge", "Epoch of the last report, 1-based", field="epoch"),
    Line("num_classes", "gauge", "C; ln(C) is cross-entropy by chance", field="num_classes"),
    Line("gate_threshold", "gauge", "Limit that the run's own config sets", ("gate",)),
    Line(
        "configured_steps",
        "gauge",
        "Step, or number of steps, that the run's own config sets",
        ("setting",),
    ),
    Line(
        "pair_coverage_ratio", "gauge", "Rows with a positive in the batch", field="pair_coverage"
    ),
    Line(
        "pair_coverage_with_memory_ratio",
        "gauge",
        "Rows with a positive in the batch or in the memory",
        field="pair_coverage_with_memory",
    ),
    Line(
        "no_positive_rows_ratio",
        "gauge",
        "Rows without a positive in the batch",
        field="rows_without_positive",
    ),
    Line("cross_entropy_nats", "gauge", "Unsmoothed cross-entropy, window mean", field="ce"),
    Line(
        "cross_entropy_by_kind_nats",
        "gauge",
        "The same, of the rows of one modality or of fused queries",
        ("kind",),
    ),
    Line(
        "cross_entropy_chance_ratio",
        "gauge",
        "Cross-entropy over ln(C); 1 is chance",
        field="ce_fraction",
    ),
    Line(
        "cross_entropy_best_ratio",
        "gauge",
        "Lowest cross-entropy over ln(C) since GO; absent before",
    ),
    Line(
        "cross_entropy_fall_ratio",
        "gauge",
        "Fall since the first window, over ln(C)",
        field="ce_fall",
    ),
    Line(
        "cross_entropy_slope_nats_per_step",
        "gauge",
        "Trend over the window; negative is learning",
        field="ce_slope",
    ),
    Line(
        "cross_entropy_swing_ratio",
        "gauge",
        "Largest climb inside the window, over ln(C)",
        field="ce_swing",
    ),
    Line("top1_accuracy_ratio", "gauge", "Training top-1, window mean", field="top1"),
    Line("sdm_loss_nats", "gauge", "SDM loss, 0 while off", field="sdm"),
    Line("sdm_chance_nats", "gauge", "SDM loss of uniform similarities", field="sdm_chance"),
    Line("sdm_weight", "gauge", "SDM weight as applied in the loss; 0 is off", field="sdm_weight"),
    Line(
        "sdm_weight_scheduled",
        "gauge",
        "SDM weight that the schedule asks for",
        field="sdm_scheduled",
    ),
    Line("sdm_rows_used", "gauge", "Rows that entered SDM in the last step", field="sdm_rows"),
    Line("sdm_positives_per_row", "gauge", "Mean positives of such a row", field="sdm_positives"),
    Line(
        "sdm_scheduled_steps",
        "gauge",
        "Steps of the window for which a weight was scheduled",
        field="sdm_scheduled_steps",
    ),
    Line(
        "sdm_applied_ratio",
        "gauge",
        "Share of them in which the loss applied one",
        field="sdm_applied_share",
    ),
    Line(
        "sdm_gradient_ratio",
        "gauge",
        "SDM's part of the gradient at the features",
        field="sdm_gradient_share",
    ),
    Line("classifier_weight_norm", "gauge", "L2 norm of the head", field="head_norm"),
    Line(
        "classifier_weight_norm_limit",
        "gauge",
        "Head norm at which the policy cuts the head's rate; absent until it is known",
    ),
    Line("classifier_growth_ratio", "gauge", "Head norm over its start", field="head_growth"),
    Line(
        "classifier_window_growth_ratio",
        "gauge",
        "Head norm over that of one window ago",
        field="head_window_growth",
    ),
    Line("classifier_grad_norm", "gauge", "L2 norm of the head's gradient", field="head_grad_norm"),
    Line(
        "classifier_moved_ratio",
        "gauge",
        "Change of the head in one step over its norm",
        field="head_moved",
    ),
    Line(
        "backbone_grad_norm",
        "gauge",
        "L2 norm of the gradient of backbone and patch embeddings; absent when they are frozen",
        field="body_grad_norm",
    ),
    Line(
        "body_moved_ratio",
        "gauge",
        "Largest change in one step of a sample of every other group, over its norm",
        field="body_moved",
    ),
    Line("classifier_learning_rate", "gauge", "Head learning rate in force", field="head_lr"),
    Line("bn_feature_norm", "gauge", "Mean feature length after the neck", field="feature_norm"),
    Line(
        "bn_feature_norm_expected",
        "gauge",
        "Length that the config implies",
        field="feature_norm_expected",
    ),
    Line("memory_rows", "gauge", "Filled rows of the cross-batch memory", field="memory_rows"),
    Line("memory_age_steps", "gauge", "Age of the oldest memory row", field="memory_age"),
    Line(
        "memory_hash_equal",
        "gauge",
        "1 while all ranks hold the same memory",
        field="memory_equal",
    ),
    Line("ids_per_batch", "gauge", "Identities in a batch (P)", field="ids_per_batch"),
    Line("images_per_second", "gauge", "Rows trained per second", field="images_per_second"),
    Line(
        "throughput_ratio",
        "gauge",
        "Rows trained per second over the median of the run's earlier reports",
        field="throughput_ratio",
    ),
    Line(
        "data_wait_ratio",
        "gauge",
        "Share of the step time spent waiting for data",
        field="data_wait_share",
    ),
    Line("gate_state", "gauge", "0 pending, 1 go, 2 no-go, 3 paused", ("gate",)),
    Line("verdict_info", "gauge", "1 for the verdict and cause in force", ("verdict", "cause")),
    Line(
        "gate_decision_timestamp_seconds",
        "gauge",
        "Unix time of the last such decision",
        ("gate", "decision"),
    ),
    Line("gate_decisions_total", "counter", "Decisions taken", ("gate", "decision")),
    Line("restarts_total", "counter", "Times the workers were started again after a loss"),
    Line("steps_total", "counter", "Steps trained, those redone after a restart included"),
    Line("images_total", "counter", "Rows trained, those redone after a restart included"),
    Line(
        "step_phase_seconds_total",
        "counter",
        "Wall time of steps by phase: data is waiting for the loader, compute is the rest",
        ("phase",),
    ),
    Line("checkpoint_timestamp_seconds", "gauge", "Unix time of the last checkpoint written"),
    Line("checkpoint_step", "gauge", "Step of the last checkpoint written"),
    Line(
        "checkpoint_faults_total",
        "counter",
        "Checkpoints that failed to be written, were skipped for a newer one, or found damaged",
        ("fault",),
    ),
    Line(
        "checkpoints_failed_in_a_row", "gauge", "Checkpoints that failed since the last one written"
    ),
    Line(
        "error_timestamp_seconds",
        "gauge",
        "Unix time at which an error ended the trial, by its named cause",
        ("cause",),
    ),
    Line("device_hours_used", "gauge", "Hours that its workers held devices", ("device",)),
    Line(
        "device_hours_saved",
        "gauge",
        "Hours that the steps left out by a stop would have held devices",
        ("device",),
    ),
    Line(
        "sink_failures_total",
        "counter",
        "Calls of the run's sink that failed; they are made again",
        ("sink",),
    ),
    Line("run_info", "gauge", "1, with what the run is made of", ("world_size", "precision")),
)
BY_NAME: Mapping[str, Line] = {line.name: line for line in LINES}

GATES = (
    "go",
    "learning",
    "hold",
    "settled",
    "min_fall",
    "coverage",
    "min_grad",
    "min_head_growth",
    "collapse",
    "rise",
    "margin",
    "max_unpaired",
    "max_sdm_share",
    "norm_tolerance",
    "max_head_growth",
    "max_swing",
    "max_data_wait",
    "min_throughput",
    "memorised",
)
"""Settings of the policy that are limits."""

STEPS = (
    "policy.window",
    "policy.first_look",
    "policy.no_go_from",
    "policy.final_look",
    "policy.undecided_until",
    "policy.rise_patience",
    "policy.collapse_patience",
    "log.health_every",
    "train.checkpoint_every",
)
"""Settings that count steps, which alerts wait for or hold ages against."""


def health_values(report: HealthReport) -> Values:
    """Every line that shows a health line which the run has."""
    found = {line.name: getattr(report, line.field) for line in LINES if line.field}
    values: Values = {name: {(): float(v)} for name, v in found.items() if v is not None}
    values["cross_entropy_by_kind_nats"] = {
        (kind,): float(ce) for kind, ce in report.ce_by_kind.items()
    }
    return values


def threshold_values(config: Config) -> Values:
    """The limits of the verdict and the steps at which things are due, named as in the config."""
    return {
        "gate_threshold": {(gate,): float(getattr(config.policy, gate)) for gate in GATES},
        "configured_steps": {(name,): float(_setting(config, name)) for name in STEPS},
    }


def _setting(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def checked(values: Mapping[str, Mapping[Any, float]]) -> Values:
    """`values` as a snapshot.

    Raises:
        KeyError: a name is not in the table, so that no series appears that no panel can know.
        ValueError: a sample has too few or too many label values.
    """
    result: Values = {}
    for name, samples in values.items():
        labels = BY_NAME[name].labels
        for key in samples:
            if len(key) != len(labels):
                raise ValueError(f"{name} has the labels {labels}, found the values {key}")
        result[name] = {tuple(key): float(value) for key, value in samples.items()}
    return result
