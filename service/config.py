"""The one description of a run: typed, frozen, complete, and refused when it does not fit.

Reading it from YAML, with `extends:` and dotted overrides, is in `service/settings.py`.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1, strict=True)]
NotNegative = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, lt=10.0)]


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class RunConfig(Section):
    """Where a run lives. The run id is `name` plus a time stamp, made once by the client."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")] = "run"
    storage: str = "runs"
    """Folder, the same on all machines, under which `<run id>/` is made."""
    checkpoints: str | None = None
    """Folder or fsspec URL under which `<run id>/checkpoint_*` are written; None is the run's own
    folder. Without a password: the config lies in the run's folder."""
    seed: NotNegative = 0


class DataConfig(Section):
    records: str
    """Folder or fsspec URL that `crossreid data ingest` wrote."""


class SamplerConfig(Section):
    """The PK batch: P ids x K rows, each id with at least one VIS and one non-VIS row."""

    ids_per_batch: Positive = 16
    """P, in the global batch."""
    rows_per_id: Annotated[int, Field(ge=2)] = 5
    """K."""
    vis_per_id: Positive = 1
    mix: Literal["natural", "balanced"] = "balanced"
    """Which non-VIS rows: `natural` by their numbers, `balanced` evenly by modality."""
    on_few_rows: Literal["ragged", "exclude", "error"] = "ragged"
    """An id with fewer than K rows: give all it has, leave it out, or refuse the data."""
    on_unpairable: Literal["replace", "soft", "lower_p", "error"] = "replace"
    """An id without VIS or without non-VIS: draw others, allow a share, lower P, or refuse."""
    soft_share: Share = 0.3
    """With `soft`: the largest share of a batch's ids that may be unpairable."""
    max_rows_per_rank: Positive | None = None
    """A world so small that one rank would hold more rows is refused."""

    @model_validator(mode="after")
    def _leaves_room_for_a_pair(self) -> "SamplerConfig":
        if self.vis_per_id >= self.rows_per_id:
            raise ValueError(
                f"vis_per_id={self.vis_per_id} leaves no non-VIS row in "
                f"rows_per_id={self.rows_per_id}; lower vis_per_id"
            )
        return self


class LoaderConfig(Section):
    threads: Positive = 2
    """Decoding threads a rank; each prepares one whole batch."""
    prefetch: NotNegative = 2
    """Batches ready beyond those being decoded."""


class AugmentConfig(Section):
    """Training augmentation. There is no hue jitter: captions and pencils name colours."""

    flip: Share = 0.5
    pad: NotNegative = 10
    """Pixels of zero padding before the random crop back to size."""
    erase: Share = 0.5
    """Probability that a photo (VIS, NIR) loses a random rectangle."""
    token_mask: Share = 0.15
    """Probability that a caption token is masked."""


class TowerConfig(Section):
    """A small open_clip architecture, built without downloads."""

    embed_dim: Positive = 64
    patch_size: Positive = 8
    vision_width: Positive = 96
    vision_layers: Positive = 3
    vision_heads: Positive = 4
    text_width: Positive = 64
    text_layers: Positive = 2
    text_heads: Positive = 4
    context_length: Positive = 77


class BackboneConfig(Section):
    name: str = "ViT-B-16"
    """An open_clip name, `local-dir:<folder>`, or `small` with `architecture`."""
    pretrained: str | None = None
    """An open_clip tag or a weight file; None means random weights."""
    architecture: TowerConfig | None = None
    image_size: tuple[Positive, Positive] = (384, 128)
    """Height and width in pixels; records must have been ingested at this size."""

    @model_validator(mode="after")
    def _architecture_belongs_to_small(self) -> "BackboneConfig":
        if (self.name == "small") != (self.architecture is not None):
            raise ValueError("`architecture` is for `name: small`, and `small` needs it")
        if self.architecture and self.pretrained:
            raise ValueError("`small` has no pretrained weights; set pretrained: null")
        return self


class NeckConfig(Section):
    """BNNeck: BatchNorm over the global batch, without bias."""

    norm_scale: Annotated[float, Field(gt=0)] | None = 8.0
    """Length given to each row after the BatchNorm; None leaves the length free."""
    momentum: Share = 0.1
    eps: Annotated[float, Field(gt=0)] = 1e-5


class ModelConfig(Section):
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = NeckConfig()
    freeze: tuple[str, ...] = ()
    """Module names (dotted, exact) whose parameters do not learn."""


class SdmConfig(Section):
    """Similarity distribution matching: when it starts, in which form, with which weights."""

    form: Literal["ce", "kl"] = "ce"
    """`ce`: cross-entropy, temperature 0.2, mean of both directions. `kl`: reverse KL,
    temperature 0.02, sum of both. Weights of one form mean nothing in the other."""
    weights: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    """The notches; None gives the form's own: (0.1, 0.3, 0.5) for ce, (1.0,) for kl."""
    enabled: bool = True
    start_epoch: Positive = 2
    """First epoch (1-based) that may have SDM, so 2 means one CE-only epoch."""
    min_steps: NotNegative = 500
    """SDM starts no earlier than this step, and notches are at least this far apart."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_warmup_epochs(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "warmup_epochs" in value:
            n = cast(Mapping[str, Any], value)["warmup_epochs"]
            raise ValueError(
                f"`warmup_epochs: {n}` has two readings; say start_epoch: {n} if epoch {n} is the "
                f"first with SDM, or start_epoch: {n}+1 if {n} epochs pass without it"
            )
        return cast(Any, value)

    @property
    def notches(self) -> tuple[float, ...]:
        """The weights in force, lowest first."""
        if self.weights is not None:
            return self.weights
        return (0.1, 0.3, 0.5) if self.form == "ce" else (1.0,)


class MemoryConfig(Section):
    """Cross-batch memory of VIS features."""

    enabled: bool = True
    steps: Positive = 6
    """Steps kept; the oldest is overwritten."""


class LossConfig(Section):
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    sdm: SdmConfig = SdmConfig()
    memory: MemoryConfig = MemoryConfig()


class HeadLr(Section):
    """From `epoch` on (1-based) the head learns at `lr`."""

    epoch: Positive
    lr: Rate


class HeadProbe(Section):
    """Start the head at `lr` and decide after some steps whether `to` is needed."""

    lr: Rate = 5e-3
    to: Rate = 1e-2
    after: Positive = 100
    """The step that decides: the rate rises when cross-entropy has not fallen by then."""

    @model_validator(mode="after")
    def _rises(self) -> "HeadProbe":
        if self.to <= self.lr:
            raise ValueError(f"a probe raises the rate; found lr={self.lr}, to={self.to}")
        return self


class OptimConfig(Section):
    """AdamW with named groups. The head has no warm-up: the verdict's clock starts at step 1."""

    head_lr: tuple[HeadLr, ...] = (HeadLr(epoch=1, lr=1e-2), HeadLr(epoch=2, lr=3e-3))
    """A list of {epoch, lr}, or one number for the whole run."""
    head_probe: HeadProbe | None = None
    """Takes the place of the first entry of `head_lr`; {} gives the probe's defaults."""
    backbone_lr: Rate = 1e-5
    patch_lr: Rate = 5e-5
    """Patch embeddings."""
    neck_lr: Rate = 1e-4
    """Neck and fusion."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    body_warmup_steps: NotNegative = 0
    """Linear warm-up of every group but the head, in steps."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Of every group but the head, over the whole run down to zero."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest global gradient norm; None does not clip."""

    @field_validator("head_lr", mode="before")
    @classmethod
    def _one_number_is_a_schedule(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return ({"epoch": 1, "lr": value},)
        return value

    @field_validator("head_lr")
    @classmethod
    def _epochs_rise_from_one(cls, value: tuple[HeadLr, ...]) -> tuple[HeadLr, ...]:
        epochs = [entry.epoch for entry in value]
        if epochs[:1] != [1] or any(b <= a for a, b in itertools.pairwise(epochs)):
            raise ValueError(f"epochs must rise from 1; found {epochs}")
        return value


class TrainConfig(Section):
    epochs: Positive = 60
    max_steps: Positive | None = None
    """Ends the run earlier than `epochs` would."""
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Positive | None = None
    """CPU threads of a training process; None leaves torch's choice."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """The newest ones that stay; the best one stays too."""
    failed_checkpoints: NotNegative = 3
    """Checkpoints in a row that may fail to be written before the run ends."""
    deterministic: bool = False
    """A resumed run equals the uninterrupted one bit for bit on any number of workers, and GPUs use
    deterministic kernels only; slower. Without it that holds on one and two CPU workers, and from
    three on up to the order of additions."""


class LogConfig(Section):
    """Periods in steps."""

    every: Positive = 50
    detail_every: Positive = 50
    health_every: Positive = 100


_LOOKS = ("first_look", "no_go_from", "final_look", "undecided_until")
"""Steps of the policy, none above the next."""
_LINES = ("settled", "learning", "go", "hold", "collapse")
"""Lines of the policy, each below the next."""


class PolicyConfig(Section):
    """Go/No-Go lines. CE lines are fractions of ln(number of classes), so 1.0 is chance."""

    window: Annotated[int, Field(ge=2, strict=True)] = 100
    """Steps of every moving average and of the trend."""
    go: Share = 0.935
    learning: Share = 0.918
    """Below this a flat stretch is noise; only a rise speaks against GO."""
    hold: Share = 0.951
    """Above this the SDM weight does not rise."""
    settled: Share = 0.5
    """Below this a flat CE is an end of learning, not a lack of it."""
    min_fall: Share = 0.02
    """A smaller fall since the first window counts as none."""
    first_look: Positive = 200
    no_go_from: Positive = 300
    final_look: Positive = 500
    undecided_until: Positive = 1000
    coverage: Share = 0.85
    """Share of rows with a positive in the batch below which SDM is not raised."""
    min_grad: Annotated[float, Field(ge=0.0)] = 1e-6
    """Head gradient norm below which there is none."""
    min_head_growth: Annotated[float, Field(gt=1.0)] = 2.0
    """A healthy head grows at least this much from its start; less is a head that cannot move."""
    collapse: Share = 0.985
    """From here on cross-entropy counts as back at chance."""
    rise: Share = 0.15
    """A rise by this much above the run's best is more than SDM's switching on explains."""
    rise_patience: Positive = 100
    """Steps that such a rise has to turn before the SDM weight is taken back."""
    collapse_patience: Positive = 300
    """Steps at chance without SDM after which the run is paused."""
    margin: Share = 0.01
    """A line that was crossed counts as crossed until it is back by this much."""
    max_unpaired: Share = 0.3
    """Share of rows without a positive above which pairing is broken."""
    unpaired_windows: Positive = 3
    """Windows in a row above it before P is lowered, and again before the run is paused."""
    max_sdm_share: Share = 0.9
    """SDM's part of the gradient above which it crowds cross-entropy out."""
    norm_tolerance: Share = 0.25
    """How far the feature length may be from what the config implies, as a share of it."""
    max_head_growth: Annotated[float, Field(gt=1.0)] = 3.0
    """Growth of the head's weights after the epoch of GO (and `final_look`) that cuts its rate."""
    head_cuts: tuple[Rate, ...] = (3e-3, 1e-3)
    """What the head's rate is cut to, one after the other, at least a notch's gap apart."""
    max_swing: Share = 0.15
    """Largest climb of cross-entropy inside a window that is not a large fluctuation."""
    max_data_wait: Share = 0.5
    """Share of the step time spent waiting for data that starves a run."""
    min_throughput: Share = 0.6
    """Images a second over the run's own past, below which it has fallen."""
    memorised: Share = 0.995
    """Training Top-1 in the first half of a run that means that it is known by heart."""

    @model_validator(mode="after")
    def _lines_and_looks_are_ordered(self) -> "PolicyConfig":
        for name, later in itertools.pairwise(_LOOKS):
            if getattr(self, name) > getattr(self, later):
                raise ValueError(f"{self._told(name)} must not be above {self._told(later)}")
        for name, above in itertools.pairwise(_LINES):
            if getattr(self, name) >= getattr(self, above):
                raise ValueError(f"{self._told(name)} must be below {self._told(above)}")
        if self.collapse >= 1.0:
            raise ValueError(f"{self._told('collapse')} must be below 1, which is chance")
        if self.max_unpaired < 1.0 - self.coverage:
            raise ValueError(
                f"max_unpaired={self.max_unpaired} is stricter than coverage={self.coverage}, "
                "which warns before it; let max_unpaired be at least 1 - coverage"
            )
        if list(self.head_cuts) != sorted(self.head_cuts, reverse=True):
            raise ValueError(f"head_cuts must fall; found {self.head_cuts}")
        return self

    def _told(self, name: str) -> str:
        return f"policy.{name}={getattr(self, name)}"


class ClusterConfig(Section):
    """What the run asks of Ray."""

    address: str | None = None
    """A running cluster; None uses RAY_ADDRESS when set, else starts Ray on this machine."""
    num_workers: Positive = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    min_workers: Positive | None = None
    """The run goes on with so few workers while machines are missing, and grows again up to
    `num_workers`; the global batch stays. None means always `num_workers`."""
    resize_s: Annotated[float, Field(gt=0)] = 60.0
    """With `min_workers`: seconds between two looks for machines to grow to."""
    wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for machines that an autoscaler has yet to start; 0 refuses a run that the
    machines now there cannot hold. After a loss the run waits at least ten minutes."""
    max_failures: NotNegative = 3
    """Lost workers that a run survives; verdicts and user errors are never retried."""
    collective_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that workers wait for one that does not come, before all are started again."""
    poll_s: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Seconds between the controller's looks at its workers."""

    @model_validator(mode="after")
    def _fewest_workers_come_first(self) -> "ClusterConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is above num_workers={self.num_workers}"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """The least workers that the run goes on with."""
        return self.min_workers or self.num_workers

    @property
    def devices(self) -> tuple[str, float]:
        """What one training holds: gpu, or cpu where no worker has a GPU, and how many."""
        if self.gpus_per_worker:
            return "gpu", self.num_workers * self.gpus_per_worker
        return "cpu", self.num_workers * self.cpus_per_worker


class TelemetryConfig(Section):
    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9109
    """0 takes any free port. Where the command starts Ray itself, a taken port is replaced by a
    free one, which the command prints; on a running cluster a taken port is an error, since
    Prometheus was told this one."""
    linger_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that an ended run's series stay."""
    sinks: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Where the journal's numbers and decisions also go, of every trial in a sweep: TensorBoard's
    files into its run folder; MLflow and Weights & Biases as MLFLOW_ and WANDB_ variables say."""


class EvalConfig(Section):
    after_training: bool = True
    batch_rows: Positive = 256


class Distribution(Section):
    """One Tune search dimension; exactly one field is set."""

    grid: tuple[Any, ...] | None = None
    choice: tuple[Any, ...] | None = None
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Distribution":
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give one of grid, choice, uniform, loguniform; found {kinds}")
        return self

    @model_validator(mode="after")
    def _holds_values(self) -> "Distribution":
        if self.grid == () or self.choice == ():
            raise ValueError("an empty list has nothing to try; give at least one value")
        for low, high in (ends for ends in (self.uniform, self.loguniform) if ends is not None):
            if not low < high:
                raise ValueError(f"a range goes from its low to its high end; found {low}, {high}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs a low end above 0; found {self.loguniform[0]}")
        return self


class TuneConfig(Section):
    """The sweep: what is searched, how, and who else may stop a trial.

    Go/No-Go always judges. The base scheduler may stop trials that it has found to learn but that
    fall behind the others; it counts time in training steps.
    """

    space: dict[str, Distribution] = {}
    """Dotted setting name to its distribution."""
    samples: Positive = 1
    """Draws of the random dimensions; a grid is run once per draw."""
    max_concurrent: Positive = 1
    grace_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a trial has to stop by itself before it is killed."""
    search: Literal["random", "optuna"] = "random"
    """Where samples come from: `random` draws them by run.seed; `optuna` learns from the trials
    before (TPE) and knows no grid."""
    metric: Literal["ce", "ce_fraction", "top1", "pair_coverage"] = "ce_fraction"
    """The health line by which the search and the base scheduler compare trials; of CE less is
    better, of the others more."""
    base: Literal["fifo", "asha", "median"] = "fifo"
    """Stops trials that fall behind: `fifo` none, `asha` all but the best share at each rung,
    `median` those worse than the median of the others."""
    base_grace_steps: Positive = 200
    """Steps before which the base stops no trial; the first rung of asha."""
    reduction_factor: Annotated[float, Field(gt=1)] = 4.0
    """asha: of so many trials at a rung one goes on; rungs are as many times apart."""
    min_trials: Positive = 3
    """median: other trials that must have come as far before one is stopped."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb", "csv", "json"], ...] = ()
    """Ray Tune's own loggers that also write every report down, in the sweep's `tune/` folder or
    where MLFLOW_TRACKING_URI and the WANDB_ variables say."""


class Config(Section):
    """A whole run. `fingerprint()` names everything that makes a resumed run the same run."""

    run: RunConfig = RunConfig()
    data: DataConfig
    sampler: SamplerConfig = SamplerConfig()
    loader: LoaderConfig = LoaderConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()
    policy: PolicyConfig = PolicyConfig()
    cluster: ClusterConfig = ClusterConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    eval: EvalConfig = EvalConfig()
    tune: TuneConfig = TuneConfig()

    def fingerprint_values(self) -> dict[str, Any]:
        """The settings that determine the weights, nested as in the file.

        Left out: where a run lives, how many workers share it, and what only watches it. The health
        period counts, because verdicts fall at its steps.
        """
        kept = ("sampler", "augment", "model", "loss", "optim", "policy")
        values = self.model_dump(mode="json", include=set(kept))
        values["sampler"].pop("max_rows_per_rank")
        values["run"] = {"seed": self.run.seed}
        values["log"] = {"health_every": self.log.health_every}
        values["train"] = self.train.model_dump(
            mode="json", include={"precision", "epochs", "max_steps", "deterministic"}
        )
        return values

    def fingerprint(self) -> str:
        """16 hex digits over `fingerprint_values`."""
        text = json.dumps(self.fingerprint_values(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved config; `load_text` of it gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
