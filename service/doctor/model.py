"""Looks at the model and its optimiser on the CPU: what learns, how fast it can move, and whether
gradients arrive, on one batch."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.causes import Cause
from service.config import AugmentConfig, Config, PolicyConfig, SamplerConfig
from service.data.layout import Batch
from service.data.records import Records
from service.doctor.batch import made_up_batch, real_batch
from service.doctor.check import Check, Diagnosis, Status, Table, judged, listed
from service.errors import CrossReidError, DataError, ModelError
from service.modality import IMAGE_MODALITIES
from service.model.reid import HEAD_STD, CrossReID, Embeddings, Inputs
from service.training.optim import HeadSchedule, build_optimizer, learning_rates, set_rates
from service.training.parts import to_inputs

BN_ROWS = 16
"""Rows below which BatchNorm's statistics are mostly noise."""
MADE_UP_CLASSES = 100
_INGEST = "set data.records to a folder that `crossreid data ingest` made at the model's image size"
_ADDS_UP = 0.25
"""Share of the sum of its steps by which a weight of the head moves (demo data: 0.14 at 3e-3, 0.24
at 1e-4)."""
_PARITY = 1e-4
_CE_BAND = 0.1


class Subject(NamedTuple):
    """What is looked at. why: why the batch is made up, empty when it is real."""

    model: CrossReID
    inputs: Inputs
    labels: Tensor
    single: int
    why: str


def diagnose_model(config: Config) -> Diagnosis:
    """Builds the model of `config`, passes one batch through it and takes one optimiser step.

    Without records that fit, the batch is made of random pixels and words.

    Raises:
        ModelError: the backbone or its weights cannot be had.
    """
    records, why = _records(config)
    num_classes = records.num_classes if records else MADE_UP_CLASSES
    torch.manual_seed(config.run.seed)
    model, frozen = _built(config, num_classes)
    quiet = config.model_copy(update={"augment": _still(config)})
    batch = (
        real_batch(records, quiet)
        if records
        else made_up_batch(config, model.backbone.context_length)
    )
    inputs = to_inputs(batch, model, quiet, torch.device("cpu"))
    single = len(batch.row)
    labels = torch.from_numpy(batch.layout.class_index)
    subject = Subject(model, inputs, labels, single, why)
    told = f"made up of random pixels and words: {why}" if why else f"{single} rows of the records"
    checks = [
        judged("batch", not why, told, "rows of records that fit", _INGEST, otherwise=Status.WARN),
        frozen or random_layers(model, config),
        groups(model),
        reach(config, model.backbone.dim, num_classes),
        bn_rows(config.sampler),
        *same_in_evaluation(subject, batch),
        *one_step(subject, config, num_classes),
    ]
    mean, std = model.backbone.mean, model.backbone.std
    notes = [
        f"normalisation of pixels: mean {_numbers(mean)}, std {_numbers(std)}",
        f"batch of {single} rows and {len(labels) - single} fused queries",
    ]
    name = f"model of {config.run.name}: {config.model.backbone.name}, {num_classes} classes"
    return Diagnosis(name, tuple(checks), (_group_table(model, config),), tuple(notes))


# -- building --------------------------------------------------------------------------------------


def _records(config: Config) -> tuple[Records | None, str]:
    """The train split if it fits the model, else why not."""
    try:
        records = Records.open(config.data.records, "train")
    except DataError as error:
        return None, str(error)
    wanted = tuple(config.model.backbone.image_size)
    if tuple(records.image_size) != wanted:
        return None, f"the records hold images of {records.image_size}, the model wants {wanted}"
    return records, ""


def _built(config: Config, num_classes: int) -> tuple[CrossReID, Check | None]:
    """The model, and the failed check if its freezing is refused; then nothing is frozen in it."""
    try:
        return CrossReID(config.model, num_classes), None
    except ModelError as error:
        if not config.model.freeze:
            raise
        free = config.model.model_copy(update={"freeze": ()})
        model = CrossReID(free, num_classes)
        cause = None if error.cause is Cause.NONE else error.cause
        wanted = "frozen modules that exist and have loaded weights"
        return model, judged(
            "frozen layers", False, str(error), wanted, "correct model.freeze", cause=cause
        )


def _still(config: Config) -> AugmentConfig:
    """The augmentation section with everything off."""
    off = {"flip": 0.0, "pad": 0, "erase": 0.0, "token_mask": 0.0}
    return config.augment.model_copy(update=off)


# -- what learns -----------------------------------------------------------------------------------


def random_layers(model: CrossReID, config: Config) -> Check:
    """Whatever begins with random weights must learn, or it stays random for ever."""
    backbone = config.model.backbone
    loaded = bool(backbone.pretrained) or backbone.name.startswith("local-dir:")
    still = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and not (loaded and name.startswith("backbone."))
    ]
    learning = sum(p.requires_grad for p in model.parameters())
    every = sum(1 for _ in model.parameters())
    return judged(
        "frozen layers",
        not still,
        f"random and frozen: {listed(still, 3)}"
        if still
        else f"{learning} of {every} tensors learn, none that is random is frozen",
        "every layer with random weights learns",
        cause=Cause.FROZEN_RANDOM_LAYER,
    )


def groups(model: CrossReID) -> Check:
    """Every parameter that can learn is in exactly one group of the optimiser."""
    times: dict[int, int] = {}
    for params in model.parameter_groups().values():
        for p in params:
            times[id(p)] = times.get(id(p), 0) + 1
    wrong = [
        f"{name} in {times.get(id(p), 0)} groups"
        for name, p in model.named_parameters()
        if p.requires_grad and times.get(id(p), 0) != 1
    ]
    return judged(
        "groups of the optimiser",
        not wrong,
        listed(wrong, 3) if wrong else "every parameter that learns is in one group",
        "exactly one group a parameter",
        cause=Cause.HEAD_NOT_IN_OPTIMIZER,
    )


def head_reach(config: Config) -> float:
    """How far AdamW can move one weight of the head before the first look: the sum of the rates,
    since a step moves a weight by about its rate. Epochs are not known here, so the first rate
    counts throughout."""
    return _head_rate(config) * config.policy.first_look


def _head_rate(config: Config) -> float:
    """The head's first rate."""
    probe = config.optim.head_probe
    return probe.lr if probe else config.optim.head_lr[0].lr


def reach(config: Config, dim: int, num_classes: int) -> Check:
    """Whether the head can become long enough, and its logits large enough, by the first look.

    The head starts with weights of standard deviation HEAD_STD. Its norm has to grow
    `policy.min_head_growth` times, and to bring cross-entropy from ln C to the Go line a logit must
    rise by (1 - go) ln C; a row of length n spread over D features gains at most
    reach x n x sqrt(2 D / pi) of logit. Steps do not all go one way: about a quarter of the sum was
    seen to add up, so between the whole and a quarter there is a warning.
    """
    policy, rate = config.policy, _head_rate(config)
    far = head_reach(config)
    per_reach = (config.model.neck.norm_scale or math.sqrt(dim)) * math.sqrt(2.0 * dim / math.pi)
    logit = (1.0 - policy.go) * math.log(num_classes)
    length = HEAD_STD * math.sqrt(policy.min_head_growth**2 - 1.0)
    needed = max(length, logit / per_reach)
    growth = math.sqrt(1.0 + (_ADDS_UP * far / HEAD_STD) ** 2)
    return judged(
        "the head can move",
        _ADDS_UP * far >= needed,
        f"rate {rate:g} x {policy.first_look} steps: the head grows about {growth:.3g} times, a "
        f"logit by about {_ADDS_UP * far * per_reach:.2g}",
        f"{policy.min_head_growth:g} times and {logit:.2g} by step {policy.first_look}, so a rate "
        f"of about {needed / _ADDS_UP / policy.first_look:.1g} at least",
        cause=Cause.HEAD_LR_TOO_SMALL,
        otherwise=Status.WARN if far >= needed else Status.FAIL,
    )


def bn_rows(sampler: SamplerConfig) -> Check:
    """The neck's BatchNorm takes its statistics over the rows of the global batch."""
    number = sampler.ids_per_batch * sampler.rows_per_id
    return judged(
        "rows of BatchNorm",
        number >= BN_ROWS,
        f"P x K = {sampler.ids_per_batch} x {sampler.rows_per_id} = {number}",
        f"{BN_ROWS} or more",
        "raise sampler.ids_per_batch or sampler.rows_per_id",
        otherwise=Status.WARN,
    )


# -- one batch -------------------------------------------------------------------------------------


@torch.no_grad()
def same_in_evaluation(subject: Subject, batch: Batch) -> list[Check]:
    """Evaluation gives the same features twice, and the same as the path that training takes."""
    model = subject.model.eval()
    first, again = (model(subject.inputs).rows[: subject.single] for _ in range(2))
    parts = [
        model.embed_images(images, modality)
        for modality, images in zip(
            IMAGE_MODALITIES, batch.images.split(batch.image_counts), strict=True
        )
        if len(images)
    ]
    if len(batch.tokens):
        parts.append(model.embed_tokens(batch.tokens))
    apart = float((torch.cat(parts) - first).abs().max())
    model.train()
    fault = "look for dropout, noise or a module that only one of the two paths uses"
    return [
        judged(
            "evaluation is repeatable",
            torch.equal(first, again),
            f"two passes differ by {float((first - again).abs().max()):.2g} at most",
            "no difference",
            fault,
        ),
        judged(
            "training and evaluation agree",
            apart <= _PARITY,
            f"features of the same rows differ by {apart:.2g} at most",
            f"{_PARITY:g} or less",
            fault,
        ),
    ]


def one_step(subject: Subject, config: Config, num_classes: int) -> list[Check]:
    """Forward, backward and one step of the optimiser on one batch."""
    model = subject.model.train()
    out = model(subject.inputs)
    loss = F.cross_entropy(out.logits, subject.labels)
    loss.backward()
    checks = [
        *at_start(out, float(loss.detach()), subject, config, num_classes),
        *_gradients(model, config.policy),
    ]
    head = model.classifier.weight
    before = head.detach().clone()
    try:
        optimizer = build_optimizer(model.parameter_groups(), config.optim)
    except CrossReidError as error:
        return [*checks, Check("one step of the optimiser", Status.FAIL, str(error))]
    set_rates(
        optimizer, learning_rates(1, 10_000, HeadSchedule.at_start(config.optim), config.optim)
    )
    optimizer.step()
    moved = float((head.detach() - before).norm() / before.norm())
    return [
        *checks,
        judged(
            "one step of the optimiser",
            moved > 0.0,
            f"the head changed by {moved:.2%} of its length",
            "more than nothing",
            cause=Cause.HEAD_NOT_IN_OPTIMIZER,
        ),
    ]


def at_start(
    out: Embeddings, ce: float, subject: Subject, config: Config, num_classes: int
) -> list[Check]:
    """Logits, cross-entropy and feature length before anything is learned."""
    logits, chance = out.logits.detach(), math.log(num_classes)
    band = config.policy.norm_tolerance
    finite = bool(torch.isfinite(logits).all())
    norm = float(out.after_neck.detach()[: subject.single].norm(dim=1).mean())
    expected = subject.model.neck.expected_norm
    return [
        judged(
            "logits",
            finite,
            f"mean {float(logits.mean()):+.2g}, std {float(logits.std()):.2g}, from "
            f"{float(logits.min()):.2g} to {float(logits.max()):.2g}",
            "finite numbers",
            cause=Cause.NON_FINITE,
        ),
        judged(
            "cross-entropy at start",
            abs(ce / chance - 1.0) <= _CE_BAND,
            f"{ce:.3f}, chance is ln {num_classes} = {chance:.3f}",
            f"within {_CE_BAND:.0%} of chance",
            "the head's first weights are too large, or the logits are scaled somewhere",
            otherwise=Status.WARN,
        ),
        judged(
            "feature length after the neck",
            abs(norm / expected - 1.0) <= band,
            f"{norm:.3g}, expected {expected:.3g}",
            f"within {band:.0%} of {expected:.3g}",
            cause=Cause.FEATURE_NORM_OFF,
        ),
    ]


def _gradients(model: CrossReID, policy: PolicyConfig) -> list[Check]:
    head, body = _norm(model.classifier), _norm(model.backbone)
    return [
        judged(
            "gradient of the head",
            head > policy.min_grad,
            f"{head:.3g}",
            f"more than {policy.min_grad:g}",
            cause=Cause.NO_GRADIENT,
        ),
        judged(
            "gradient of the backbone",
            body > 0.0 or not any(p.requires_grad for p in model.backbone.parameters()),
            f"{body:.3g}",
            "more than 0",
            cause=Cause.FEATURES_DETACHED,
        ),
    ]


def _norm(module: nn.Module) -> float:
    grads = [p.grad.float().norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(grads).norm()) if grads else 0.0


def _group_table(model: CrossReID, config: Config) -> Table:
    rates = _rates(config)
    rows = tuple(
        (name, str(len(params)), f"{sum(p.numel() for p in params):,}", f"{rates[name]:.3g}")
        for name, params in model.parameter_groups().items()
    )
    return Table("What learns", ("group", "tensors", "parameters", "rate"), rows)


def _rates(config: Config) -> dict[str, float]:
    """The rate of every group when the warm-up is over."""
    step = max(config.optim.body_warmup_steps, 1)
    return learning_rates(step, 1000 * step, HeadSchedule.at_start(config.optim), config.optim)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:.4f}" for v in values)
