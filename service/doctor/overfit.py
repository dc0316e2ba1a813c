"""Can the model learn a few people by heart? Cross-entropy alone, no augmentation, a fixed subset,
through the real training loop. If not, the optimiser or the gradients are at fault, not the data.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

from service.bounds import Rules
from service.causes import WORDS, Cause
from service.config import Config
from service.data.index import IdentityIndex
from service.data.records import Records
from service.data.sampler import PKPlan
from service.decisions import PolicyState
from service.distributed import Distributed
from service.doctor.check import Diagnosis, Table, judged, listed
from service.doctor.subset import Subset, choose, written
from service.gonogo import decide
from service.health import HealthReport
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore
from service.settings import override
from service.training.journal import read_journal
from service.training.loop import train
from service.training.ports import Ports

LEARNED = 0.5
"""Share of ln C that cross-entropy has to fall below."""
_AT_FAULT = (
    Cause.NO_GRADIENT,
    Cause.FEATURES_DETACHED,
    Cause.HEAD_NOT_IN_OPTIMIZER,
    Cause.STEP_SKIPPED,
    Cause.HEAD_LR_TOO_SMALL,
)
_BARS = "▁▂▃▄▅▆▇█"


def diagnose_overfit(
    config: Config, *, samples: int = 256, epochs: int = 10, on_progress: OnProgress = ignore
) -> Diagnosis:
    """Trains `config` on `samples` fixed rows for `epochs` of them and says what came of it.

    Raises:
        DataError: too few people who can pair.
        CrossReidError: what the loop itself refuses.
    """
    import torch

    records = Records.open(config.data.records, "train")
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    subset = choose(index, samples)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    with written(records, subset) as folder, tempfile.TemporaryDirectory() as run:
        small = small_config(config, folder, len(subset.people), epochs)
        train(small, Path(run), _world(), _ports(on_progress))
        events = read_journal(Path(run))
    reports = [HealthReport.from_dict(e["health"]) for e in events if e["event"] == "health"]
    by_epoch = [r for r in reports if r.is_epoch_end]
    return _found(config, small, records, subset, by_epoch)


def small_config(config: Config, records: Path, people: int, epochs: int) -> Config:
    """`config` for the subset: cross-entropy only, no augmentation, judged at the end alone."""
    base = override(
        config,
        [
            f"data.records={records}",
            f"sampler.ids_per_batch={min(config.sampler.ids_per_batch, people)}",
            "sampler.on_few_rows=ragged",
            "sampler.max_rows_per_rank=null",
            *(f"augment.{name}=0" for name in ("flip", "pad", "erase", "token_mask")),
            "loss.sdm.enabled=false",
            "loss.memory.enabled=false",
            "optim.body_warmup_steps=0",
            "optim.head_probe=null",
            f"train.epochs={epochs}",
            "train.max_steps=null",
            "eval.after_training=false",
        ],
    )
    found = Records.open(str(records), "train")
    index = IdentityIndex.build(found.class_index, found.modality, found.num_classes)
    per_epoch = PKPlan(index, base.sampler, base.run.seed).steps_per_epoch
    total = epochs * per_epoch
    looks = ("first_look", "no_go_from", "final_look", "undecided_until")
    return override(
        base,
        [
            f"policy.window={max(per_epoch, 2)}",
            *(f"policy.{look}={total}" for look in looks),
            f"log.every={per_epoch}",
            f"log.health_every={per_epoch}",
            f"train.checkpoint_every={total}",
        ],
    )


def sparkline(values: list[float], top: float) -> str:
    """One bar a value, from 0 to `top`."""
    last = len(_BARS) - 1
    return "".join(_BARS[min(last, max(0, round(v / top * last)))] for v in values)


def fault(reports: list[HealthReport], config: Config) -> Cause:
    """What the policy would call it; without a name of its own, that cross-entropy stands."""
    state, rules = PolicyState(), Rules.of(config)
    cause = Cause.NONE
    for report in reports:
        state, decision = decide(state, report, rules)
        cause = decision.cause
    return cause if cause in _AT_FAULT else Cause.CE_NOT_FALLING


def _found(
    config: Config, small: Config, records: Records, subset: Subset, reports: list[HealthReport]
) -> Diagnosis:
    chance = math.log(len(subset.people))
    ce = [r.ce for r in reports]
    good = ce[-1] <= LEARNED * chance
    cause = Cause.NONE if good else fault(reports, small)
    words, remedy = WORDS[cause]
    if cause is Cause.CE_NOT_FALLING:
        words = "the optimiser or the gradients are at fault, not the data"
        remedy = "run `crossreid doctor model`; look at optim.* and model.freeze"
    curve = sparkline(ce, max(chance, *ce))
    check = judged(
        "a few people by heart",
        good,
        f"cross-entropy {ce[0]:.3f} -> {ce[-1]:.3f}, {ce[-1] / chance:.2f} of ln "
        f"{len(subset.people)}, top-1 {reports[-1].top1:.0%}  {curve}"
        + (f"; {words}" if words else ""),
        f"{LEARNED * chance:.3f} or less, {LEARNED:g} of ln {len(subset.people)}",
        remedy,
        cause=cause,
    )
    rows = tuple(
        (
            str(r.epoch),
            f"{r.ce:.3f}",
            f"{r.ce_fraction:.2f}",
            f"{r.top1:.1%}",
            f"{r.head_norm:.3g}",
            f"{r.head_grad_norm:.2g}",
        )
        for r in reports
    )
    table = Table(
        "By epoch", ("epoch", "CE", "CE/lnC", "top-1", "head norm", "head gradient"), rows
    )
    folders = [records.manifest.classes[person].dir_id for person in subset.people]
    notes = (
        f"{subset.num_rows} rows of {len(subset.people)} people: class {listed(subset.people, 3)}; "
        f"directory {listed(folders, 3)}; the first rows of each modality in turn",
        f"cross-entropy only, no augmentation, {reports[-1].steps_per_epoch} steps an epoch",
        *(
            ("if the real run stands all the same, look at labels and data, not at the optimiser",)
            if good
            else ()
        ),
    )
    return Diagnosis(f"learning by heart, {config.run.name}", (check,), (table,), notes)


def _world() -> Distributed:
    import torch

    return Distributed.single("cuda" if torch.cuda.is_available() else "cpu")


def _ports(on_progress: OnProgress) -> Ports:
    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        shown = {"verdict": "", **line} if line else {}
        on_progress(Update(trial=MAIN_TRIAL, step=step, total=total, line=shown))

    return Ports(progress=progress, decides=False)
