"""One page on every cause: how it looks, why it happens, what to do, and where it has been seen."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.causes import Cause


@dataclass(frozen=True, slots=True)
class Page:
    """looks: health lines and their values. why: what brings it about. do: steps, in order.
    seen: where people have met it. Backticks hold settings, health lines and commands."""

    looks: str
    why: str
    do: tuple[str, ...]
    seen: str


PAGES: Mapping[Cause, Page] = {
    Cause.HEAD_LR_TOO_SMALL: Page(
        looks="`ce_fraction` stays at 1.00 and `head_growth` near 1, while `head_grad_norm` is "
        "clearly above 0 and `head_moved` is tiny but not 0. Often `top1` rises far above chance "
        "all the same: features and labels fit, only the logits are too small.",
        why="The head starts with weights of 0.001, and its input has a fixed length "
        "(`model.neck.norm_scale`), so the logits start at almost nothing. AdamW moves a weight by "
        "about its rate in a step. With 1e-5, or with a long warm-up over the head, hundreds of "
        "steps do not double the head's length, and cross-entropy cannot leave ln C.",
        do=(
            "Set `optim.head_lr` to 1e-2 with pretrained weights, to 3e-3 with random ones.",
            "Not sure? `optim.head_probe` starts at 5e-3 and rises to 1e-2 by itself if needed.",
            "Run `crossreid doctor model CONFIG`: it says before the first step whether the head "
            "can move far enough.",
        ),
        seen="The classic of this field: the head lay in a group with the backbone's small rate "
        "and a warm-up of five epochs; a head rate of 1e-2 brought the same run from ln C to the "
        "Go line within 200 steps.",
    ),
    Cause.HEAD_NOT_IN_OPTIMIZER: Page(
        looks="`head_moved` is exactly 0 and `head_growth` exactly 1 at every report, while "
        "`head_grad_norm` is above 0 and `body_moved` too: the rest of the model learns.",
        why="The head was added to the model after the optimiser was built, was filtered out by "
        "its name, or its group has a rate of 0. A renamed module is enough: a filter that looks "
        "for a name that no longer exists matches nothing and says nothing.",
        do=(
            "Run `crossreid doctor model CONFIG` and look at the table of groups: head must hold "
            "one tensor.",
            "Look at whatever was changed in the model's parameter groups.",
            "Run `crossreid doctor overfit CONFIG` after the change: it must learn by heart.",
        ),
        seen="Runs in which a learning-rate rule looked for 'classifier' in the name of a group "
        "that was called otherwise; head norm and gradient stood constant for thousands of steps.",
    ),
    Cause.STEP_SKIPPED: Page(
        looks="`head_moved` and `body_moved` are both 0, while `head_grad_norm` and "
        "`body_grad_norm` are above 0. Nothing changes, and `ce_fraction` only shows the noise of "
        "the batches.",
        why="Gradients are computed and thrown away: a loss scaler whose scale overflows at every "
        "step, gradient accumulation that never completes, a step behind a condition that is never "
        "true, or rates that a schedule has brought to 0.",
        do=(
            "Look at the rates: `optim.schedule`, `optim.body_warmup_steps`, `optim.head_lr`.",
            "Set `train.precision` to fp32 to rule out a scaler.",
            "Run `crossreid doctor model CONFIG`: one step must move the head.",
        ),
        seen="Mixed precision in which the scaler was never handed over, and trainers that zero "
        "the gradients before the step reads them.",
    ),
    Cause.NO_GRADIENT: Page(
        looks="`head_grad_norm` is below `policy.min_grad`, `head_moved` is 0 or pure weight "
        "decay, and `ce_fraction` stays at 1.00.",
        why="The loss does not depend on the head: it is computed from other logits, under "
        "no_grad, from a detached copy, or a frozen classifier. A loss that is replaced by 0 when "
        "something looks odd has no gradient either.",
        do=(
            "Run `crossreid doctor model CONFIG` and look at the gradient of the head.",
            "Check that cross-entropy is computed from the classifier's output, after the neck.",
            "Take `classifier` out of `model.freeze`, if it stands there.",
        ),
        seen="Trainers that set a NaN loss to 0.0 and went on, and accuracy that was measured on "
        "other logits than the loss.",
    ),
    Cause.FEATURES_DETACHED: Page(
        looks="`body_grad_norm` is 0 while `head_grad_norm` is not. `ce_fraction` falls a little, "
        "as far as a head alone can bring it, and then stands.",
        why="Between backbone and loss something cuts the graph: detach(), no_grad, a conversion "
        "to NumPy, features from a cache or a memory, or a gather between processes that carries "
        "no gradient.",
        do=(
            "Run `crossreid doctor model CONFIG` and look at the gradient of the backbone.",
            "Check `model.freeze`: does it name more than was meant?",
            "With several workers, compare with one: `crossreid train CONFIG --no-ray`.",
        ),
        seen="The plain all_gather of torch.distributed carries no gradient, and losses in several "
        "public code bases used it as if it did.",
    ),
    Cause.LABELS_SHUFFLED: Page(
        looks="Everything moves: `head_grad_norm`, `body_grad_norm`, `head_growth` are healthy. "
        "Yet `top1` stays at chance (1/C) and `ce_fall` near 0. Learning by heart works on a few "
        "people.",
        why="Labels and rows do not belong together, so there is nothing to learn but noise: an "
        "index into another list than the one the data is read from, directories paired with the "
        "wrong labels, a sampler that reads one table and a loader that reads another.",
        do=(
            "Run `crossreid doctor data CONFIG --sheet people.png` and look: does a row show one "
            "person?",
            "Run `crossreid doctor overfit CONFIG`: if it learns by heart, the optimiser is "
            "innocent.",
            "Correct the source folder and run `crossreid data ingest` again.",
        ),
        seen="A sampler over all 400 people and a data set cut to 320 of them: 'K rows of one "
        "person' were K rows of anybody.",
    ),
    Cause.CE_NOT_FALLING: Page(
        looks="`ce_fraction` stays above `policy.go` with a `ce_fall` that is real but small, or a "
        "`ce_slope` that has turned flat; the head grows and `top1` is above chance.",
        why="Something works, but too slowly or against something else: rates of the backbone far "
        "too high or low, a batch of so few rows that BatchNorm's statistics are noise, random "
        "weights where pretrained ones were meant, images of another normalisation.",
        do=(
            "Run `crossreid doctor overfit CONFIG`: a few people must be learned by heart.",
            "Check `model.backbone.pretrained`: null means random weights.",
            "Raise `sampler.ids_per_batch`, then try half and double `optim.backbone_lr`.",
        ),
        seen="Batches of 3 people x 2 rows, and runs on random weights with the rates of "
        "pretrained ones.",
    ),
    Cause.TOO_SHORT: Page(
        looks="At the last step `ce_slope` is still negative and `ce_fall` healthy, but "
        "`ce_fraction` has not reached `policy.go`.",
        why="The run ends before it could be judged. Its end must decide, and this is no GO.",
        do=(
            "Raise `train.max_steps` or `train.epochs`; with pretrained weights 500 steps are "
            "enough to judge.",
            "Small data sets with random weights need more: compare with configs/demo.yaml.",
            "See what other lines would say: `crossreid doctor run RUN --policy go=0.94`.",
        ),
        seen="Short trial runs, such as the trials of a sweep.",
    ),
    Cause.NOT_PAIRING: Page(
        looks="`pair_coverage` is below `policy.coverage`, and `rows_without_positive` is the "
        "rest. `pair_coverage_with_memory` may look fine: the memory hides what the batch lacks.",
        why="Rows stand in a batch without a row of the same person on the other side (VIS or "
        "not). Either the people lack a modality, or the sampler does not insist. SDM learns "
        "nothing from such rows, so it is not raised meanwhile.",
        do=(
            "Run `crossreid doctor sampler CONFIG`: it shows batches and compares samplers.",
            "Leave `sampler.on_unpairable` at replace, or lower `sampler.soft_share`.",
            "Run `crossreid doctor data CONFIG` to see which people cannot pair, and ingest the "
            "missing modalities.",
            "P too large for the data? Lower `sampler.ids_per_batch`.",
        ),
        seen="Spikes of 33 % rows without a positive under a sampler that gave up after a few "
        "tries with a warning, and a coverage line that always read 0 because a modality had been "
        "renamed.",
    ),
    Cause.FEATURE_NORM_OFF: Page(
        looks="`feature_norm` is more than a quarter away from `feature_norm_expected`.",
        why="The length after the neck follows from the config: `model.neck.norm_scale` where it "
        "is set, else the root of the sum of BatchNorm's squared weights, which is 22.6 for 512 "
        "features. Another length means that something scales features twice or not at all.",
        do=(
            "Check `model.neck.norm_scale`; 8.0 is the default, null leaves the length free.",
            "Run `crossreid doctor model CONFIG` and compare the feature length after the neck.",
            "Look for a second normalisation between neck and classifier.",
        ),
        seen="A fixed alarm at 15 that cried at 22, which is healthy for BatchNorm over 512 "
        "features without a norm scale.",
    ),
    Cause.DATA_STARVED: Page(
        looks="`data_wait_share` is above its line: the step waits for the loader. "
        "`images_per_second` is low and does not depend on the model.",
        why="Batches are decoded more slowly than they are used: too few threads, records on a "
        "network disk, or several workers sharing few CPUs.",
        do=(
            "Raise `loader.threads`, then `loader.prefetch`.",
            "Copy the records to a local disk and set `data.records` to it.",
            "Raise `cluster.cpus_per_worker`; a thread without a CPU decodes nothing.",
        ),
        seen="Settings of two loader workers that were copied from one machine to the next.",
    ),
    Cause.THROUGHPUT_FALLEN: Page(
        looks="`throughput_ratio`, images a second over this run's own past, is below its line. "
        "Often `data_wait_share` has risen with it.",
        why="The machine gives less than it did: another job on the same GPU or disk, a hot GPU "
        "that lowers its clock, a node of the cluster that has become slow; the ranks wait for the "
        "slowest of them.",
        do=(
            "Look at the panels of the hosts: GPU clock and temperature, disk, other processes.",
            "Run `crossreid doctor cluster CONFIG` to see whether a node answers slowly.",
            "A run that was resumed on fewer workers is slower by right.",
        ),
        seen="People have asked for this line after fixing one thing had slowed down another.",
    ),
    Cause.SDM_NOT_APPLIED: Page(
        looks="`sdm_scheduled` is above 0, but `sdm_applied_share` stays near 0: `sdm_weight`, the "
        "weight as the loss applied it, is 0, and `sdm_rows` too. Cross-entropy goes on as if "
        "nothing had happened, which is why nobody notices.",
        why="The weight is lost between schedule and loss, or no row has a positive, so that the "
        "loss is computed over nothing. A schedule that writes its weight into one variable while "
        "the loss reads another shows exactly this.",
        do=(
            "Look at `sdm_rows` and `pair_coverage`: with no valid row there is nothing to weigh; "
            "then see `crossreid explain sampler_not_pairing`.",
            "Run `crossreid doctor run RUN` to see since which step it is so.",
            "With rows and yet no weight: whatever was changed between schedule and objective "
            "has lost it.",
        ),
        seen="Months of logs that said weight=0.1 use_sdm=True beside an SDM loss of 0.000: the "
        "model's own weight was read from the config once, and was 0.",
    ),
    Cause.SDM_TOO_LARGE: Page(
        looks="After SDM was raised, `ce_fraction` climbs more than `policy.rise` above its best "
        "and does not turn, or `sdm_gradient_share` is above its line: SDM crowds cross-entropy "
        "out. The verdict is ROLLBACK: one notch back, memory flushed.",
        why="SDM pulls features of a person together, whoever else lies there; without enough "
        "cross-entropy, people mix. Weights of one form mean nothing in the other: the gradients "
        "of kl are 20 to 65 times those of ce early on.",
        do=(
            "Lower `loss.sdm.weights`; the defaults are 0.1, 0.3, 0.5 for ce and 1.0 for kl.",
            "Check `loss.sdm.form` against the weights.",
            "Start later: raise `loss.sdm.min_steps` or `loss.sdm.start_epoch`.",
        ),
        seen="Weights carried from one form of SDM to the other, and a weight that was listed as a "
        "possible cause because nobody could see its share of the gradient.",
    ),
    Cause.CE_REBOUND: Page(
        looks="`ce_fraction` is back above `policy.hold`, or well above its own best, but not at "
        "chance. The verdict is HOLD: the SDM weight stays where it is.",
        why="A small rise is normal when SDM comes on or a rate changes, and passes within an "
        "epoch. One that stays says that the weight is near its limit.",
        do=(
            "Wait: the policy rolls back by itself when cross-entropy does not turn.",
            "If it comes again at every notch, lower `loss.sdm.weights`.",
            "See what a wider line would have said: `crossreid doctor run RUN --policy hold=0.96`.",
        ),
        seen="In healthy runs, for some hundred steps after SDM was switched on.",
    ),
    Cause.COLLAPSE_AFTER_SDM: Page(
        looks="`ce_fraction` is at `policy.collapse` or above after SDM was on, `top1` back at "
        "chance. The verdict is ROLLBACK at once, and PAUSE if it lasts at weight 0.",
        why="All features have come together in one place: SDM is satisfied, cross-entropy cannot "
        "tell people apart. Rows without a positive, or a memory whose labels do not belong to its "
        "features, help it along.",
        do=(
            "Run `crossreid doctor sampler CONFIG`: does every person pair?",
            "Lower `loss.sdm.weights` and begin at a higher `loss.sdm.min_steps`.",
            "A paused run goes on with `crossreid train --resume RUN`; one that stays at chance is "
            "better started anew.",
        ),
        seen="A memory that kept a mask in the place of its labels, so that every stored row "
        "counted as one person.",
    ),
    Cause.COLLAPSE: Page(
        looks="`ce_fraction` was below `policy.go` and is back at chance; SDM is off or was never "
        "on.",
        why="The model has unlearned: a rate too high for the weights, a schedule that jumps, data "
        "that changed under the run, or labels of another order after a restart.",
        do=(
            "Find the step in journal.jsonl: `crossreid doctor run RUN` shows the looks.",
            "Lower `optim.backbone_lr`, then `optim.head_lr`; set `optim.clip_norm` to 1.0.",
            "Continue from the checkpoint before it, or start again.",
        ),
        seen="Rarely, and then after a rate was raised by hand in the middle of a run.",
    ),
    Cause.HEAD_GROWTH: Page(
        looks="`head_norm` goes on growing long after GO, by more than `policy.max_head_growth`. "
        "Growth from the start says little: a healthy head becomes 50 to 75 times longer than its "
        "first weights.",
        why="At a high rate the head buys lower cross-entropy with longer weights instead of "
        "better features. The rate that was right for the first epoch is too high for the second.",
        do=(
            "Let the policy cut the rate: `policy.head_cuts` is 3e-3, then 1e-3.",
            "Set it from the start: `optim.head_lr` takes a list of epoch and rate.",
            "Raise `optim.weight_decay` to 5e-4.",
        ),
        seen="A head that grew from 7 to 35 within the second epoch at a rate left at 1e-2.",
    ),
    Cause.FLUCTUATION: Page(
        looks="`ce_swing`, the largest climb of cross-entropy inside a window, is above "
        "`policy.max_swing`, while its mean may even fall.",
        why="Steps are too long for the batch: a high head rate, few people in a batch, or hard "
        "batches that come in runs.",
        do=(
            "Set `optim.head_lr` to 1e-3 and `loss.label_smoothing` to 0.15.",
            "Set `optim.weight_decay` to 5e-4.",
            "Raise `sampler.ids_per_batch`: a larger batch is calmer.",
        ),
        seen="Batches of 4 people with a high head rate.",
    ),
    Cause.OVERFITTING: Page(
        looks="`top1` on the training people is above `policy.memorised` in the first half of the "
        "run, with a cross-entropy near 0. The evaluation, if there is one, no longer rises.",
        why="The people are known by heart, and the remaining steps only sharpen what is known. "
        "Small data sets come here soon, and it is a hint, not a fault.",
        do=(
            "Set `loss.label_smoothing` to 0.15 and `optim.weight_decay` to 5e-4.",
            "Raise `augment.erase` and `augment.token_mask`, or add people.",
            "Lower `train.epochs`: the rest is not worth its GPUs.",
        ),
        seen="Small data sets, such as the one that `crossreid data synth` draws.",
    ),
    Cause.NON_FINITE: Page(
        looks="The run ends at once with exit code 5 and names the step. No parameter was changed "
        "by the bad gradient, and the newest checkpoint is whole.",
        why="A rate too high, half precision where a sum overflows, a row of zeros that is "
        "normalised, or a broken image that decodes to nonsense. Setting such a gradient to 0 and "
        "going on hides it, and the run learns from what is left.",
        do=(
            "Lower `optim.backbone_lr` and `optim.head_lr`, and set `optim.clip_norm` to 1.0.",
            "Set `train.precision` to fp32; if that cures it, the rates are at their limit.",
            "Run `crossreid doctor data CONFIG` to rule out broken files.",
            "Go on from the newest checkpoint: `crossreid train --resume RUN`.",
        ),
        seen="Losses over rows whose every candidate was masked, and trainers that turned NaN "
        "into 0 for weeks.",
    ),
    Cause.LABELS_OUT_OF_RANGE: Page(
        looks="The run is refused before its first step: class numbers lie outside 0 to C-1. On a "
        "GPU, without the check, it would be an illegal memory access without a name.",
        why="The split and the numbering of people do not belong together: class numbers of all "
        "people, but a head for those of the training split, or files of two ingests mixed.",
        do=(
            "Run `crossreid doctor data CONFIG`: it names the range and the first wrong row.",
            "Run `crossreid data ingest` again into an empty folder.",
        ),
        seen="Labels from 0 to 425 for a head of 400, after a change of the split.",
    ),
    Cause.LABELS_GAPPED: Page(
        looks="The run is refused before its first step: some class numbers have no rows. Without "
        "the check, `ce_fraction` would look better than it is, since ln C counts people who "
        "never come.",
        why="Numbers were given before people were left out: by a split, a filter, or a directory "
        "that was emptied. The head then has outputs that nothing ever trains.",
        do=(
            "Run `crossreid doctor data CONFIG`: it names the empty class numbers.",
            "Run `crossreid data ingest` again, which numbers the people without gaps.",
        ),
        seen="400 outputs for 320 people: chance looked like ln 400, and every threshold was off.",
    ),
    Cause.FROZEN_RANDOM_LAYER: Page(
        looks="The run is refused before its first step, and the layer is named.",
        why="A layer with random weights was frozen and would stay random for ever: the model "
        "works around noise in its own middle, and learns a little, which is why it goes "
        "unnoticed. It comes from freezing by patterns: a module is renamed and falls out of the "
        "list of those that learn.",
        do=(
            "Take the layer out of `model.freeze`, or load weights: `model.backbone.pretrained`.",
            "Run `crossreid doctor model CONFIG`: every tensor that is random must learn.",
        ),
        seen="A fusion layer, patch embeddings and projections that stayed random through whole "
        "projects, because the list of names that learn held an old name.",
    ),
}
"""Every cause but NONE, in the order of `Cause`."""
