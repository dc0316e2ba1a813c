"""The run view's rows on SDM and on the cross-batch memory."""

from service.causes import Cause
from service.telemetry.panels.panel import RUN, Panel, Row, Target, Word, bound, curve, series

_NATS = "nats"

SDM = Row(
    "SDM: asked for, applied, effect",
    (
        Panel(
            title="SDM weight",
            kind="lines",
            unit="none",
            text="As the schedule asks, and as the loss applied it. The two must be one line.",
            targets=(
                curve("sdm_weight_scheduled", RUN, "scheduled {{trial}}"),
                curve("sdm_weight", RUN, "applied {{trial}}"),
            ),
            causes=(Cause.SDM_NOT_APPLIED,),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="SDM loss over its chance level",
            kind="lines",
            unit="none",
            text="1 is what uniform similarities would give, whatever form SDM has; it must fall. "
            "No curve while SDM is off.",
            targets=(
                Target(
                    f"{series('sdm_loss_nats', RUN)} / ({series('sdm_chance_nats', RUN)} > 0)",
                    "{{trial}}",
                ),
                Target("vector(1)", "chance", True, "red"),
            ),
            decimals=3,
        ),
        Panel(
            title="SDM loss",
            kind="lines",
            unit=_NATS,
            text="The loss, and its chance level. Both are 0 while SDM is off.",
            targets=(
                curve("sdm_loss_nats", RUN, "loss {{trial}}"),
                curve("sdm_chance_nats", RUN, "chance {{trial}}"),
            ),
            lowest=0.0,
        ),
        Panel(
            title="Rows that entered SDM",
            kind="lines",
            unit="rows",
            text="In the last step. A few rows where the batch has many means that most have no "
            "positive.",
            targets=(curve("sdm_rows_used", RUN),),
            causes=(Cause.SDM_NOT_APPLIED, Cause.NOT_PAIRING),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Positives of such a row",
            kind="lines",
            unit="none",
            text="Mean over the rows that entered, the memory's rows included.",
            targets=(curve("sdm_positives_per_row", RUN),),
            decimals=1,
            lowest=0.0,
        ),
        Panel(
            title="SDM's part of the gradient",
            kind="lines",
            unit="percentunit",
            text="At the features. Above `max_sdm_share`, while cross-entropy stands, SDM crowds "
            "it out. 0 with a weight applied: SDM has no effect.",
            targets=(
                curve("sdm_gradient_ratio", RUN),
                bound("max_sdm_share", RUN, "red"),
            ),
            causes=(Cause.SDM_TOO_LARGE, Cause.SDM_NOT_APPLIED),
            lowest=0.0,
            highest=1.0,
        ),
        Panel(
            title="Steps in which SDM was applied",
            kind="lines",
            unit="percentunit",
            text="Of the window's steps for which a weight was scheduled; 100 % when there were "
            "none. Below one half, the weight is lost between schedule and loss.",
            targets=(curve("sdm_applied_ratio", RUN),),
            causes=(Cause.SDM_NOT_APPLIED,),
            lowest=0.0,
            highest=1.0,
        ),
        Panel(
            title="Steps with a scheduled weight",
            kind="lines",
            unit="steps",
            text="Of the window. With fewer than some twenty, the share next to it means little.",
            targets=(curve("sdm_scheduled_steps", RUN),),
            decimals=0,
            lowest=0.0,
        ),
    ),
)

MEMORY = Row(
    "Cross-batch memory",
    (
        Panel(
            title="Memory rows",
            kind="lines",
            unit="rows",
            text="It fills, then stays full; it falls to 0 when a rollback flushes it.",
            targets=(curve("memory_rows", RUN),),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Age of the oldest memory row",
            kind="lines",
            unit="steps",
            text="It rises to the set number of steps and stays there. Beyond, the memory is no "
            "longer filled and SDM compares with stale features.",
            targets=(curve("memory_age_steps", RUN),),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Memories of all ranks",
            kind="states",
            unit="none",
            text="Compared by hash at every report. If they differ, ranks train on different "
            "losses: stop the run and keep its journal.",
            targets=(curve("memory_hash_equal", RUN),),
            words=(Word(0, "differ", "red"), Word(1, "equal", "green")),
        ),
    ),
)
