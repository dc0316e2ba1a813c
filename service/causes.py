"""Why a run does not learn, or may not go on as asked: each cause by name, in words, with a remedy.

`crossreid explain CAUSE` has a page on each (`service/explain.py`).
"""

from collections.abc import Mapping
from enum import StrEnum


class Cause(StrEnum):
    """A named cause; the values are stable, since panels, alerts and journals use them."""

    NONE = "none"
    # A verdict's, before GO.
    HEAD_LR_TOO_SMALL = "head_lr_too_small"
    HEAD_NOT_IN_OPTIMIZER = "head_not_in_optimizer"
    STEP_SKIPPED = "optimizer_step_skipped"
    NO_GRADIENT = "no_gradient"
    FEATURES_DETACHED = "features_detached"
    LABELS_SHUFFLED = "labels_shuffled"
    CE_NOT_FALLING = "ce_not_falling"
    TOO_SHORT = "run_too_short"
    # A verdict's, at any time.
    NOT_PAIRING = "sampler_not_pairing"
    FEATURE_NORM_OFF = "feature_norm_off"
    DATA_STARVED = "data_starved"
    THROUGHPUT_FALLEN = "throughput_fallen"
    # A verdict's, after GO.
    SDM_NOT_APPLIED = "sdm_not_applied"
    SDM_TOO_LARGE = "sdm_weight_too_large"
    CE_REBOUND = "ce_rebound"
    COLLAPSE_AFTER_SDM = "collapse_after_sdm"
    COLLAPSE = "collapse_after_go"
    HEAD_GROWTH = "head_norm_growth"
    FLUCTUATION = "large_fluctuation"
    OVERFITTING = "overfitting"
    # An error's, which ends the run at once.
    NON_FINITE = "non_finite"
    LABELS_OUT_OF_RANGE = "labels_out_of_range"
    LABELS_GAPPED = "labels_gapped"
    FROZEN_RANDOM_LAYER = "frozen_random_layer"


WORDS: Mapping[Cause, tuple[str, str]] = {
    Cause.NONE: ("", ""),
    Cause.HEAD_LR_TOO_SMALL: (
        "the head's learning rate is too small to move the head",
        "set optim.head_lr to 1e-2 (3e-3 for random weights)",
    ),
    Cause.HEAD_NOT_IN_OPTIMIZER: (
        "the head gets a gradient but never changes, while the rest of the model does: it is not "
        "in the optimiser",
        "check that the head's parameters are trainable and in the group named head",
    ),
    Cause.STEP_SKIPPED: (
        "gradients arrive, but no parameter changes: the optimiser's steps are skipped",
        "look for a skipped optimizer.step(), a loss scaler that always overflows, or learning "
        "rates of 0",
    ),
    Cause.NO_GRADIENT: (
        "no gradient reaches the head",
        "look for a detached feature, a no_grad context or a frozen classifier",
    ),
    Cause.FEATURES_DETACHED: (
        "the head gets a gradient, the backbone gets none: its features are detached",
        "look for detach() or no_grad between the backbone and the loss",
    ),
    Cause.LABELS_SHUFFLED: (
        "gradients flow and the head moves, yet top-1 stays at chance: labels and rows do not "
        "belong together, or the body's rates or augmentation are so large that nothing is learned",
        "run `crossreid doctor overfit`: if it passes, it is the labels (`crossreid doctor data "
        "--sheet`), else the rates",
    ),
    Cause.CE_NOT_FALLING: (
        "cross-entropy does not fall far enough although the head moves and top-1 is above chance",
        "run `crossreid doctor overfit`: a few people must be learned by heart, or rates are wrong",
    ),
    Cause.TOO_SHORT: (
        "cross-entropy falls, but the run ends before it reaches the Go line",
        "raise train.max_steps or train.epochs",
    ),
    Cause.NOT_PAIRING: (
        "too many rows have no positive in their batch: the sampler does not pair",
        "run `crossreid doctor sampler` and check sampler.on_unpairable",
    ),
    Cause.FEATURE_NORM_OFF: (
        "features leave the neck with another length than the config implies",
        "check model.neck.norm_scale and that nothing scales features after the neck",
    ),
    Cause.DATA_STARVED: (
        "steps wait for data more than they compute",
        "raise loader.threads and loader.prefetch, or keep the records on a local disk",
    ),
    Cause.THROUGHPUT_FALLEN: (
        "images a second fell far below this run's own past",
        "look for other work on the same machines, a slow disk, or a hot GPU",
    ),
    Cause.SDM_NOT_APPLIED: (
        "an SDM weight is scheduled, but the loss does not apply it",
        "look where the weight is lost between schedule and loss; sdm_rows_used tells the rows",
    ),
    Cause.SDM_TOO_LARGE: (
        "cross-entropy rose after SDM was raised and did not come back: the SDM weight is too "
        "large",
        "lower loss.sdm.weights; sdm_gradient_share tells how much of the gradient is SDM's",
    ),
    Cause.CE_REBOUND: (
        "cross-entropy came back up from its best",
        "if it does not fall again, lower loss.sdm.weights or the learning rates",
    ),
    Cause.COLLAPSE_AFTER_SDM: (
        "cross-entropy came back to chance level after SDM was switched on",
        "lower loss.sdm.weights, and run `crossreid doctor sampler`",
    ),
    Cause.COLLAPSE: (
        "cross-entropy came back to chance level after GO",
        "find the step in journal.jsonl; lower the learning rates",
    ),
    Cause.HEAD_GROWTH: (
        "the head's weights grow without end",
        "lower optim.head_lr to 3e-3, then 1e-3",
    ),
    Cause.FLUCTUATION: (
        "cross-entropy swings up and down",
        "set loss.label_smoothing=0.15, optim.head_lr=1e-3, optim.weight_decay=5e-4",
    ),
    Cause.OVERFITTING: (
        "the training people are known by heart, so there is little left to learn from them",
        "set loss.label_smoothing=0.15, optim.head_lr=1e-3, optim.weight_decay=5e-4",
    ),
    Cause.NON_FINITE: (
        "a loss or gradient became NaN or infinite",
        "lower the learning rates, set optim.clip_norm=1.0, or use train.precision=fp32",
    ),
    Cause.LABELS_OUT_OF_RANGE: (
        "a label lies outside [0, number of classes)",
        "ingest the data set again: split and class numbers do not belong together",
    ),
    Cause.LABELS_GAPPED: (
        "some class numbers have no rows at all",
        "ingest the data set again, which numbers classes without gaps",
    ),
    Cause.FROZEN_RANDOM_LAYER: (
        "a layer with random weights is frozen, so it would stay random for ever",
        "take it out of model.freeze, or load weights for it",
    ),
}
"""What each cause means, and what to do about it."""
