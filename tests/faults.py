"""The fault library: mistakes planted in real runs, and what the policy must say of each.

A fault is planted by settings, by data that does not fit, or by a change in the code that runs;
the policy, its bounds and its health lines are always the real ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.causes import Cause
from service.decisions import Verdict
from tests import plants
from tests.plants import Plant
from tests.relabel import moved, shuffled, vis_only
from tests.small import make_records


class Shelf:
    """Records folders, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def people(self, number: int = 24, seed: int = 0) -> Path:
        """Synthetic people, of whom two thirds are for training."""
        return self.made(
            f"people-{number}-{seed}", partial(make_records, people=number, seed=seed), "records"
        )

    def made(self, name: str, make: Callable[[Path], Path], inside: str = "") -> Path:
        path = self._folder / name
        if not path.exists():
            make(path)
        return path / inside


Data = Callable[[Shelf, int], Path]
Said = tuple[Verdict, Cause]


def _people(shelf: Shelf, seed: int, number: int = 24) -> Path:
    return shelf.people(number, seed)


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake and its name.

    planted: what was done, in words. says: decisions that must come, in this order; the first one
    names the fault. error: the named cause with which the run must break off instead. shows: step
    from which it can show; 0 is while the run is built. also: other causes that are right as well.
    actions: names of actions that must have been asked for. code: the exit code, where the run ends
    by itself. timed: it shows by the clock, and what was said before it could show does not count;
    for all others the clock's lines are off. A busy machine is no fault, but makes them cry.
    """

    name: str
    planted: str
    says: tuple[Said, ...] = ()
    error: Cause = Cause.NONE
    shows: int = 1
    overrides: tuple[str, ...] = ()
    plant: Plant = plants.nothing
    data: Data = _people
    also: frozenset[Cause] = frozenset()
    actions: frozenset[str] = frozenset()
    code: int = 0
    timed: bool = False
    short: bool = True

    @property
    def cause(self) -> Cause:
        return self.error if self.error is not Cause.NONE else self.says[0][1]


WITHOUT_CLOCK = ("policy.min_throughput=0", "policy.max_data_wait=1")

LONGER = ("train.max_steps=400", "policy.final_look=80", "optim.schedule=constant")
"""For faults that show after GO."""

PATIENCE = ("policy.rise_patience=40", "policy.collapse_patience=100")
"""Scaled like the window, which is 20 steps in small runs and 100 in life."""

LATE_SDM = (*LONGER, *PATIENCE, "loss.sdm.min_steps=160")
"""For faults of SDM that need a CE far enough below chance to rise from."""


def _shuffled(shelf: Shelf, seed: int) -> Path:
    source = shelf.people(72, seed)
    return shelf.made(f"shuffled-{seed}", lambda out: shuffled(source, out, seed))


def _relabelled(new: int) -> Data:
    """Class 3 of 16 says it is another one."""

    def data(shelf: Shelf, seed: int) -> Path:
        source = shelf.people(24, seed)
        return shelf.made(
            f"class-3-is-{new}-{seed}", lambda out: moved(source, out, old=3, new=new)
        )

    return data


def _vis_only(shelf: Shelf, seed: int) -> Path:
    source = shelf.people(24, seed)
    return shelf.made(f"vis-only-{seed}", lambda out: vis_only(source, out, people=12))


GO, HOLD, ROLLBACK, PAUSE, NO_GO = (
    Verdict.GO,
    Verdict.HOLD,
    Verdict.ROLLBACK,
    Verdict.PAUSE,
    Verdict.NO_GO,
)

FAULTS = (
    Fault(
        "head LR too small",
        "optim.head_lr=1e-6",
        says=((NO_GO, Cause.HEAD_LR_TOO_SMALL),),
        overrides=("optim.head_lr=1e-6",),
        code=3,
    ),
    Fault(
        "head not in the optimiser",
        "its group taken out of the optimiser",
        says=((NO_GO, Cause.HEAD_NOT_IN_OPTIMIZER),),
        plant=plants.optimizer(plants.forget_head),
        code=3,
    ),
    Fault(
        "no gradient at the head",
        "the classifier's gradient times 0",
        says=((NO_GO, Cause.NO_GRADIENT),),
        plant=plants.model(plants.head_gradient_is_zero),
        code=3,
    ),
    Fault(
        "features detached",
        "detach() between backbone and neck",
        says=((NO_GO, Cause.FEATURES_DETACHED),),
        plant=plants.detach_from(1),
        code=3,
    ),
    Fault(
        "features detached late",
        "the same from step 101 on",
        says=((NO_GO, Cause.FEATURES_DETACHED),),
        shows=101,
        plant=plants.detach_from(101),
        overrides=LONGER,
        also=frozenset({Cause.SDM_NOT_APPLIED}),
        code=3,
        short=False,
    ),
    Fault(
        "optimiser step skipped",
        "optimizer.step() does nothing",
        says=((NO_GO, Cause.STEP_SKIPPED),),
        plant=plants.optimizer(plants.skip_from(1)),
        code=3,
    ),
    Fault(
        "optimiser step skipped late",
        "the same from step 101 on",
        says=((NO_GO, Cause.STEP_SKIPPED),),
        shows=101,
        plant=plants.optimizer(plants.skip_from(101)),
        overrides=LONGER,
        code=3,
        short=False,
    ),
    Fault(
        "labels shuffled",
        "rows of 48 people given to one another",
        says=((NO_GO, Cause.LABELS_SHUFFLED),),
        data=_shuffled,
        code=3,
    ),
    Fault(
        "labels gapped",
        "class 3 has no rows",
        error=Cause.LABELS_GAPPED,
        shows=0,
        data=_relabelled(4),
        code=2,
    ),
    Fault(
        "labels out of range",
        "class 3 of 16 says 16",
        error=Cause.LABELS_OUT_OF_RANGE,
        shows=0,
        data=_relabelled(16),
        code=2,
    ),
    Fault(
        "sampler not pairing, some",
        "a quarter of a batch's people without photo",
        says=((GO, Cause.NOT_PAIRING), (HOLD, Cause.NOT_PAIRING)),
        plant=plants.without_photo(0.25),
        overrides=LONGER,
        short=False,
    ),
    Fault(
        "sampler not pairing, most",
        "half of a batch's people without photo, whatever P",
        says=((HOLD, Cause.NOT_PAIRING), (PAUSE, Cause.NOT_PAIRING)),
        plant=plants.without_photo(0.5),
        overrides=LONGER,
        actions=frozenset({"ids_per_batch", "pause"}),
        code=4,
    ),
    Fault(
        "people that cannot pair",
        "12 of 16 people have photos only, sampler.on_unpairable=soft",
        says=((HOLD, Cause.NOT_PAIRING), (Verdict.RAISE, Cause.NONE)),
        data=_vis_only,
        overrides=(
            *LONGER,
            "sampler.on_unpairable=soft",
            "sampler.soft_share=0.75",
        ),
        actions=frozenset({"ids_per_batch"}),
    ),
    Fault(
        "SDM weight lost",
        "the loss gets weight 0 whatever was set",
        says=((NO_GO, Cause.SDM_NOT_APPLIED),),
        shows=65,
        plant=plants.weight_lost,
        overrides=LONGER,
        code=3,
    ),
    Fault(
        "SDM without rows",
        "no row of SDM finds a positive",
        says=((NO_GO, Cause.SDM_NOT_APPLIED),),
        shows=65,
        plant=plants.sdm_rows(plants.no_positives),
        overrides=LONGER,
        code=3,
        short=False,
    ),
    Fault(
        "SDM detached",
        "the SDM value has no gradient",
        says=((NO_GO, Cause.SDM_NOT_APPLIED),),
        shows=65,
        plant=plants.sdm_detached,
        overrides=LONGER,
        code=3,
    ),
    Fault(
        "SDM weight too large",
        "form kl with weights [100], from step 161 on",
        says=((HOLD, Cause.SDM_TOO_LARGE), (ROLLBACK, Cause.SDM_TOO_LARGE)),
        shows=161,
        overrides=(
            *LATE_SDM,
            "loss.sdm.form=kl",
            "loss.sdm.weights=[100]",
            "policy.rise_patience=20",
        ),
        also=frozenset({Cause.CE_REBOUND}),
        actions=frozenset({"sdm_weight", "flush_memory", "audit_sampler"}),
        short=False,
    ),
    Fault(
        "SDM weight far too large",
        "form kl with weights [100], body rates times 3, from step 161 on",
        says=((ROLLBACK, Cause.COLLAPSE_AFTER_SDM), (HOLD, Cause.COLLAPSE_AFTER_SDM)),
        shows=161,
        overrides=(
            *LATE_SDM,
            "loss.sdm.form=kl",
            "loss.sdm.weights=[100]",
            "optim.backbone_lr=3e-3",
            "optim.patch_lr=3e-3",
        ),
        also=frozenset({Cause.CE_REBOUND, Cause.SDM_TOO_LARGE}),
        actions=frozenset({"sdm_weight", "flush_memory", "audit_sampler"}),
        short=False,
    ),
    Fault(
        "collapse after SDM",
        "features are noise once SDM is on",
        says=((ROLLBACK, Cause.COLLAPSE_AFTER_SDM), (PAUSE, Cause.COLLAPSE_AFTER_SDM)),
        shows=65,
        plant=plants.noise_with_sdm,
        overrides=(*LONGER, *PATIENCE),
        also=frozenset({Cause.CE_REBOUND}),
        actions=frozenset({"sdm_weight", "flush_memory", "audit_sampler", "pause"}),
        code=4,
    ),
    Fault(
        "collapse after GO",
        "features are noise from step 101 on, SDM off",
        says=((HOLD, Cause.COLLAPSE), (PAUSE, Cause.COLLAPSE)),
        shows=101,
        plant=plants.noise_from(101),
        overrides=(*LONGER, *PATIENCE, "loss.sdm.enabled=false"),
        also=frozenset({Cause.CE_REBOUND}),
        actions=frozenset({"pause"}),
        code=4,
        short=False,
    ),
    Fault(
        "non-finite",
        "one pixel is NaN at step 30",
        error=Cause.NON_FINITE,
        shows=30,
        plant=plants.nan_pixel_at(30),
        code=5,
    ),
    Fault(
        "neck too short",
        "the neck's output times 0.1",
        says=((HOLD, Cause.FEATURE_NORM_OFF),),
        plant=plants.neck_scaled(0.1),
        overrides=LONGER,
        short=False,
    ),
    Fault(
        "neck too long",
        "the neck's output times 3",
        says=((HOLD, Cause.FEATURE_NORM_OFF),),
        plant=plants.neck_scaled(3.0),
        overrides=LONGER,
        short=False,
    ),
    Fault(
        "neck not normalised",
        "the rows keep the length that the BatchNorm gives",
        says=((HOLD, Cause.FEATURE_NORM_OFF),),
        plant=plants.neck_not_normalised,
        overrides=(*LONGER, "model.neck.norm_scale=3.0"),
    ),
    Fault(
        "frozen random layer",
        "a block of the backbone does not learn",
        error=Cause.FROZEN_RANDOM_LAYER,
        shows=0,
        plant=plants.model(plants.freeze_a_block),
        code=2,
    ),
    Fault(
        "frozen random layer by name",
        "model.freeze=[backbone.patch]",
        error=Cause.FROZEN_RANDOM_LAYER,
        shows=0,
        overrides=("model.freeze=[backbone.patch]",),
        code=2,
        short=False,
    ),
    Fault(
        "data starved",
        "the loader sleeps 0.2 s a batch from step 51 on",
        says=((GO, Cause.DATA_STARVED),),
        shows=51,
        plant=plants.slow_loader(51, 0.2),
        overrides=("loader.threads=1",),
        also=frozenset({Cause.THROUGHPUT_FALLEN}),
        timed=True,
    ),
    Fault(
        "throughput fallen",
        "every step sleeps 0.2 s from step 101 on",
        says=((GO, Cause.THROUGHPUT_FALLEN),),
        shows=101,
        plant=plants.slow_from(101, 0.2),
        overrides=LONGER,
        timed=True,
        short=False,
    ),
    Fault(
        "overfitting",
        "4 people without augmentation",
        says=((GO, Cause.OVERFITTING),),
        data=partial(_people, number=6),
        overrides=(
            *LONGER,
            "sampler.ids_per_batch=4",
            "augment={flip: 0, pad: 0, erase: 0, token_mask: 0}",
        ),
    ),
    Fault(
        "features grow noisy",
        "thrice as much noise as feature from step 161 on, SDM off",
        says=((HOLD, Cause.CE_REBOUND),),
        shows=161,
        plant=plants.noisy_from(161, 3.0),
        overrides=(*LONGER, "loss.sdm.enabled=false"),
        short=False,
    ),
    Fault(
        "run too short",
        "train.max_steps=36",
        says=((NO_GO, Cause.TOO_SHORT),),
        overrides=("train.max_steps=36",),
        code=3,
    ),
    Fault(
        "large fluctuation",
        "all images are black in 12 of 40 steps",
        says=((HOLD, Cause.FLUCTUATION),),
        shows=121,
        plant=plants.dark_every(40, 12, 121),
        overrides=LONGER,
        also=frozenset({Cause.CE_REBOUND}),
    ),
    Fault(
        "head LR far too large",
        "optim.head_lr=1",
        says=((NO_GO, Cause.FLUCTUATION),),
        overrides=(*LONGER, "optim.head_lr=1"),
        code=3,
        short=False,
    ),
    Fault(
        "head norm growth",
        "the head's weights are blown up instead of decayed",
        says=((HOLD, Cause.HEAD_GROWTH), (HOLD, Cause.HEAD_GROWTH)),
        shows=80,
        plant=plants.optimizer(plants.grow_head),
        overrides=(*LONGER, "optim.head_lr=1e-2", "train.max_steps=600"),
        actions=frozenset({"head_lr"}),
        short=False,
    ),
)
