"""The run view's row on head, backbone and features."""

from service.causes import Cause
from service.telemetry.panels.panel import RUN, Panel, Row, Target, bound, curve, series

_EXPECTED = series("bn_feature_norm_expected", RUN)
_TOLERANCE = series("gate_threshold", RUN, 'gate="norm_tolerance"')

PARTS = Row(
    "Head, backbone, features",
    (
        Panel(
            title="Head norm",
            kind="lines",
            unit="none",
            text="Length of the classifier's weights. A healthy head grows a lot from its start, "
            "then slows down. At the end of the epoch of GO the policy sets a limit at "
            "`max_head_growth` times the length of then; beyond it, it cuts the head's rate.",
            targets=(
                curve("classifier_weight_norm", RUN),
                Target(series("classifier_weight_norm_limit", RUN), "limit {{trial}}", True, "red"),
            ),
            causes=(Cause.HEAD_GROWTH,),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="Head growth",
            kind="lines",
            unit="x",
            text="The head's length over that at the start, and over that of one window ago. "
            "While cross-entropy does not fall, less than `min_head_growth` from the start is a "
            "head that cannot move.",
            targets=(
                curve("classifier_growth_ratio", RUN, "since start {{trial}}"),
                curve("classifier_window_growth_ratio", RUN, "in a window {{trial}}"),
                bound("min_head_growth", RUN, "red"),
            ),
            causes=(Cause.HEAD_LR_TOO_SMALL,),
            decimals=2,
            is_symlog=True,
        ),
        Panel(
            title="Head gradient",
            kind="lines",
            unit="none",
            text="Before the optimiser's step. Below `min_grad` no gradient reaches the head.",
            targets=(
                curve("classifier_grad_norm", RUN),
                bound("min_grad", RUN, "red"),
            ),
            causes=(Cause.NO_GRADIENT,),
            is_symlog=True,
        ),
        Panel(
            title="Moved in one step",
            kind="lines",
            unit="none",
            text="Change over length, of the head and of the other group that moved most. 0 for "
            "the head alone: it is not in the optimiser. 0 for both: the steps are skipped.",
            targets=(
                curve("classifier_moved_ratio", RUN, "head {{trial}}"),
                curve("body_moved_ratio", RUN, "others {{trial}}"),
            ),
            causes=(Cause.HEAD_NOT_IN_OPTIMIZER, Cause.STEP_SKIPPED),
            is_symlog=True,
        ),
        Panel(
            title="Backbone gradient",
            kind="lines",
            unit="none",
            text="0 while the head has one: the features are detached. No curve: the backbone and "
            "its patch embeddings are frozen.",
            targets=(curve("backbone_grad_norm", RUN),),
            causes=(Cause.FEATURES_DETACHED,),
            is_symlog=True,
        ),
        Panel(
            title="Feature length after the neck",
            kind="lines",
            unit="none",
            text="Against the length that the config implies. Outside the band of "
            "`norm_tolerance` something scales the features.",
            targets=(
                curve("bn_feature_norm", RUN),
                Target(f"max({_EXPECTED})", "expected", True, "gray"),
                Target(
                    f"max({_EXPECTED} * on (run, trial) (1 + {_TOLERANCE}))",
                    "upper bound",
                    True,
                    "red",
                ),
                Target(
                    f"min({_EXPECTED} * on (run, trial) (1 - {_TOLERANCE}))",
                    "lower bound",
                    True,
                    "orange",
                ),
            ),
            causes=(Cause.FEATURE_NORM_OFF,),
            decimals=2,
        ),
        Panel(
            title="Head learning rate",
            kind="lines",
            unit="sci",
            text="As applied. The policy lowers it, and nothing but its probe raises it.",
            targets=(curve("classifier_learning_rate", RUN),),
            causes=(Cause.HEAD_LR_TOO_SMALL, Cause.HEAD_GROWTH),
            is_symlog=True,
        ),
    ),
)
