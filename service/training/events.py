"""What the loop writes into the journal, as plain values."""

from service.config import Config
from service.data.layout import Batch
from service.health import StepSample
from service.losses.pairs import Pairs
from service.training.journal import Event
from service.training.parts import Parts
from service.training.state import Progress


def start(config: Config, parts: Parts, progress: Progress, world_size: int) -> Event:
    """A run's, or an attempt's, beginning: what it is made of and what will happen when."""
    num_classes = parts.records.num_classes
    return {
        "event": "start",
        "step": progress.step,
        "world_size": world_size,
        "num_classes": num_classes,
        "config_fingerprint": config.fingerprint(),
        "precision": config.train.precision,
        "plan": parts.plan.stats.text(),
        "trainable": {name: len(p) for name, p in parts.model.parameter_groups().items()},
        "schedule": parts.schedule.preview(num_classes),
    }


def epoch(config: Config, progress: Progress, number: int) -> Event:
    """The start of an epoch: the SDM weight that the loss will apply, and why."""
    return {
        "event": "epoch",
        "epoch": number,
        "step": progress.step,
        "sdm_weight": progress.sdm.weight,
        "use_sdm": progress.sdm.active,
        "sdm_reason": progress.sdm.reason,
        "head_lr": progress.head.lr(config.optim.head_lr),
    }


def steps(samples: list[StepSample]) -> Event:
    """The steps since the last flush, at the log period: their last number and their means."""
    n = len(samples)
    return {
        "event": "steps",
        "step": samples[-1].step,
        "ce": sum(s.ce for s in samples) / n,
        "top1": sum(s.top1 for s in samples) / n,
        "sdm": sum(s.sdm for s in samples) / n,
        "seconds": sum(s.seconds for s in samples) / n,
    }


def unpaired(config: Config, batch: Batch, pairs: Pairs, step: int) -> Event:
    """A batch with unpaired rows; who was in it at each detail period."""
    event: Event = {"event": "unpaired", "step": step, "rows": pairs.unpaired, "of": pairs.single}
    if step % config.log.detail_every == 0:
        event["classes"] = sorted(set(batch.layout.class_index.tolist()))
    return event
