"""What the loop writes into the journal, and reports, as plain values."""

from dataclasses import asdict
from typing import Any

from service.config import Config
from service.data.audit import audit as look
from service.data.layout import Batch
from service.decisions import Decision, PolicyState
from service.errors import CrossReidError
from service.health import HealthReport, StepSample
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
        "total_steps": parts.schedule.total,
        "plan": parts.plan.stats.text(),
        "trainable": {name: len(p) for name, p in parts.model.parameter_groups().items()},
        "schedule": parts.schedule.preview(num_classes, len(parts.plan.drawn)),
        "verdict": str(progress.policy.verdict),
        "cause": str(progress.policy.cause),
        **progress.policy.since_go,
    }


def decision(found: Decision, policy: PolicyState) -> Event:
    """A decision, with what the policy holds later reports against."""
    return {"event": "decision", **found.to_dict(), **policy.since_go}


def report(found: HealthReport, decision: Decision | None, progress: Progress) -> dict[str, Any]:
    """What `Ports.report` gets."""
    return {
        "step": found.step,
        "epoch": found.epoch,
        "health": found.to_dict(),
        "decision": decision.to_dict() if decision else None,
        "directive": progress.directive,
        "finished": progress.policy.verdict.ends or found.is_last,
    }


def audit(parts: Parts, step: int) -> Event:
    """A look at the batches after `step`: does the sampler really pair?"""
    epoch, first = parts.schedule.epoch(step + 1), parts.schedule.step_in_epoch(step + 1) - 1
    found = look(parts.plan, parts.records.modality, epoch, first)
    return {"event": "audit", "step": step, **asdict(found)}


def error(found: CrossReidError) -> Event:
    """What ended the run at once, with its named cause where it has one."""
    return {
        "event": "error",
        "kind": type(found).__name__,
        "cause": str(found.cause),
        "name": found.name,
        "message": str(found),
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
    """The steps since the last such event: their last number, how many, their images, and means
    of the rest."""
    n = len(samples)
    return {
        "event": "steps",
        "step": samples[-1].step,
        "ce": sum(s.ce for s in samples) / n,
        "top1": sum(s.top1 for s in samples) / n,
        "sdm": sum(s.sdm for s in samples) / n,
        "seconds": sum(s.seconds for s in samples) / n,
        "data_wait_s": sum(s.data_wait_s for s in samples) / n,
        "images": sum(s.images for s in samples),
        "count": n,
    }


def progress_line(report: HealthReport | None, judged: Progress | None) -> Event:
    """What a line of progress shows; `judged` gives its verdict where the loop itself decides."""
    if report is None:
        return {}
    verdict = {"verdict": str(judged.policy.verdict)} if judged is not None else {}
    return verdict | {
        "ce_fraction": report.ce_fraction,
        "top1": report.top1,
        "sdm_weight": report.sdm_weight,
        "images_per_second": report.images_per_second,
    }


def unpaired(config: Config, batch: Batch, pairs: Pairs, step: int) -> Event:
    """A batch with unpaired rows; who was in it at each detail period."""
    event: Event = {"event": "unpaired", "step": step, "rows": pairs.unpaired, "of": pairs.single}
    if step % config.log.detail_every == 0:
        event["classes"] = sorted(set(batch.layout.class_index.tolist()))
    return event


def fetching(seconds: float) -> Event:
    """A rank still reads records or weights before the first step; no line of the journal, which is
    not open by then."""
    return {"event": "fetching", "seconds": round(seconds, 1)}


def checkpoint_failed(step: int, message: str) -> Event:
    """A checkpoint could not be written, after all its tries."""
    return {"event": "checkpoint_failed", "step": step, "message": message}


def checkpoint_skipped(step: int) -> Event:
    """A checkpoint was not written, because a newer one was taken while it waited."""
    return {"event": "checkpoint_skipped", "step": step}


def checkpoint_stays(step: int, message: str) -> Event:
    """After that of `step`, older checkpoints could not be cleared away; tried again with the
    next."""
    return {"event": "checkpoint_stays", "step": step, "message": message}


def checkpoint_slow(step: int, seconds: float) -> Event:
    """The run waits for a checkpoint, its last one, which has been on its way for some time."""
    return {"event": "checkpoint_slow", "step": step, "seconds": round(seconds, 1)}


def checkpoint_unread(seconds: float, message: str) -> Event:
    """The checkpoints cannot be read to go on from one; tried again after some seconds."""
    return {"event": "checkpoint_unread", "seconds": seconds, "message": message}


def checkpoint_damaged(folder: str, message: str) -> Event:
    """A checkpoint cannot be taken over, so an older one must serve."""
    return {"event": "checkpoint_damaged", "folder": folder, "message": message}


def leaving(step: int, machines: str) -> Event:
    """Machines will be taken away soon; what was trained so far is saved at once."""
    return {"event": "leaving", "step": step, "machines": machines}
