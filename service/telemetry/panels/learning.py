"""The run view's rows on learning and on pairs."""

from service.causes import Cause
from service.telemetry.panels.panel import RUN, Panel, Row, Target, bound, curve, series

_NATS = "nats"
_CE_RATIO = series("cross_entropy_chance_ratio", RUN)

LEARNING = Row(
    "Does it learn?",
    (
        Panel(
            title="Cross-entropy over ln C",
            kind="lines",
            unit="none",
            text="1 is chance. Below `go` the run learns; below `learning` a flat stretch is "
            "noise; above `hold` the SDM weight does not rise; above `collapse` it is back at "
            "chance; below `settled` a flat curve is an end of learning. Where the limits of "
            "trials differ, the highest is drawn: choose one trial to see its own.",
            targets=(
                curve("cross_entropy_chance_ratio", RUN),
                bound("go", RUN, "green"),
                bound("learning", RUN, "blue"),
                bound("hold", RUN, "orange"),
                bound("collapse", RUN, "red"),
                bound("settled", RUN, "gray"),
            ),
            causes=(
                Cause.CE_NOT_FALLING,
                Cause.TOO_SHORT,
                Cause.CE_REBOUND,
                Cause.COLLAPSE,
                Cause.COLLAPSE_AFTER_SDM,
            ),
            width=12,
            decimals=3,
            lowest=0.0,
        ),
        Panel(
            title="Training Top-1",
            kind="lines",
            unit="percentunit",
            text="Share of rows whose own class is first. `chance` is 1 / C. Above `memorised` in "
            "the first half of a run, the training people are known by heart. It may dip when "
            "SDM starts, then must come back.",
            targets=(
                curve("top1_accuracy_ratio", RUN),
                Target(f"max(1 / {series('num_classes', RUN)})", "chance", True, "gray"),
                bound("memorised", RUN, "red"),
            ),
            causes=(Cause.LABELS_SHUFFLED, Cause.OVERFITTING),
            width=12,
            lowest=0.0,
        ),
        Panel(
            title="Cross-entropy",
            kind="lines",
            unit=_NATS,
            text="Without label smoothing, so that it can be held against ln C, which is chance.",
            targets=(
                curve("cross_entropy_nats", RUN),
                Target(f"max(ln({series('num_classes', RUN)}))", "ln C", True, "red"),
            ),
            decimals=3,
            lowest=0.0,
        ),
        Panel(
            title="Cross-entropy by kind of row",
            kind="lines",
            unit=_NATS,
            text="One curve a modality, and one for fused queries. A modality that stays behind "
            "is not learned, or its rows are wrong.",
            targets=(curve("cross_entropy_by_kind_nats", RUN, "{{kind}} {{trial}}"),),
            lowest=0.0,
        ),
        Panel(
            title="Cross-entropy slope",
            kind="lines",
            unit="nats/step",
            text="Trend over the window. Between chance and `learning` it must lie below 0; "
            "between `learning` and `settled` only a rise of `min_fall` in a window counts "
            "against the run.",
            targets=(
                curve("cross_entropy_slope_nats_per_step", RUN),
                Target("vector(0)", "flat", True, "red"),
            ),
            causes=(Cause.CE_NOT_FALLING, Cause.HEAD_LR_TOO_SMALL),
            decimals=5,
        ),
        Panel(
            title="Fall since the first window",
            kind="lines",
            unit="none",
            text="As a part of ln C. A run above `go` that fell by less than `min_fall` has not "
            "begun to learn.",
            targets=(
                curve("cross_entropy_fall_ratio", RUN),
                bound("min_fall", RUN, "red"),
            ),
            causes=(Cause.CE_NOT_FALLING,),
            decimals=3,
        ),
        Panel(
            title="Rise above the best",
            kind="lines",
            unit="none",
            text="Cross-entropy over ln C, less the best since GO that the policy remembers; no "
            "curve before GO. A rise by more than `rise` is more than SDM's switching on explains; "
            "after `rise_patience` steps the weight falls a notch.",
            targets=(
                Target(f"{_CE_RATIO} - {series('cross_entropy_best_ratio', RUN)}", "{{trial}}"),
                bound("rise", RUN, "red"),
            ),
            causes=(Cause.SDM_TOO_LARGE,),
            decimals=3,
            lowest=0.0,
        ),
        Panel(
            title="Largest climb in the window",
            kind="lines",
            unit="none",
            text="As a part of ln C; 0 for a curve that only falls. Above `max_swing` it is a "
            "large fluctuation.",
            targets=(
                curve("cross_entropy_swing_ratio", RUN),
                bound("max_swing", RUN, "red"),
            ),
            causes=(Cause.FLUCTUATION,),
            decimals=3,
            lowest=0.0,
        ),
    ),
)

PAIRS = Row(
    "Pairs",
    (
        Panel(
            title="Pair coverage",
            kind="lines",
            unit="percentunit",
            text="Rows that find a positive: in their batch, and with the memory's rows as well. "
            "Below `coverage` in the batch, SDM is not raised.",
            targets=(
                curve("pair_coverage_ratio", RUN, "batch {{trial}}"),
                curve("pair_coverage_with_memory_ratio", RUN, "with memory {{trial}}"),
                bound("coverage", RUN, "orange"),
            ),
            causes=(Cause.NOT_PAIRING,),
            highest=1.0,
        ),
        Panel(
            title="Rows without a positive",
            kind="lines",
            unit="percentunit",
            text="Above `max_unpaired` for some windows in a row, P is lowered; if that does not "
            "help, the run is paused.",
            targets=(
                curve("no_positive_rows_ratio", RUN),
                bound("max_unpaired", RUN, "red"),
            ),
            causes=(Cause.NOT_PAIRING,),
            lowest=0.0,
        ),
        Panel(
            title="Identities in a batch (P)",
            kind="lines",
            unit="none",
            text="P of the global batch. It falls when the policy lowers it.",
            targets=(curve("ids_per_batch", RUN),),
            decimals=0,
            lowest=0.0,
        ),
    ),
)
