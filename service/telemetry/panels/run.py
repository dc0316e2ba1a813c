"""The run view: one run, its trials' health lines with the bounds that its own config sets."""

from service.telemetry.panels.learning import LEARNING, PAIRS
from service.telemetry.panels.panel import (
    RUN,
    VERDICT_WORDS,
    Panel,
    Row,
    Target,
    View,
    Word,
    decision_marks,
    latest,
    series,
    verdict_in_force,
)
from service.telemetry.panels.parts import PARTS
from service.telemetry.panels.sdm import MEMORY, SDM
from service.telemetry.panels.speed import SPEED
from service.telemetry.panels.trials import trials_table

_NAMED = series("verdict_info", RUN, 'cause!="none"')

_VERDICT = Row(
    "Verdict",
    (
        trials_table(RUN),
        Panel(
            title="Verdict in force",
            kind="states",
            unit="none",
            text="What the policy says of each trial, in time. It was decided in the training "
            "process; this panel only shows it.",
            targets=(Target(verdict_in_force(RUN), "{{trial}}"),),
            width=12,
            height=6,
            words=VERDICT_WORDS,
        ),
        Panel(
            title="Cause in force",
            kind="states",
            unit="none",
            text="The cause that goes with the verdict, while there is one. With GO it is a "
            "warning, with NO_GO and PAUSE the reason.",
            targets=(Target(f"max by (trial, cause) ({_NAMED})", "{{trial}}: {{cause}}"),),
            width=12,
            height=6,
            words=(Word(1, "in force", "orange"),),
        ),
    ),
)

_SETTINGS = Row(
    "What the run is",
    (
        Panel(
            title="Workers and precision",
            kind="table",
            unit="none",
            text="World size, precision and number of classes.",
            targets=(
                Target(latest("run_info", RUN, over="trial, world_size, precision")),
                Target(latest("num_classes", RUN, over="trial"), "classes", decimals=0),
            ),
        ),
        Panel(
            title="Limits of the policy",
            kind="table",
            unit="none",
            text="Every limit that the run's config sets (`policy.*`). Those that no panel draws "
            "are here: `margin` is how far a crossed line must come back, `max_head_growth` the "
            "growth of the head since GO that cuts its rate.",
            targets=(Target(latest("gate_threshold", RUN, over="gate"), "limit"),),
        ),
        Panel(
            title="When things are due",
            kind="table",
            unit="none",
            text="Steps, or numbers of steps, that the run's config sets: the looks of the "
            "verdict, the window of every moving average, patience after GO, and how often health "
            "lines and checkpoints are due.",
            targets=(Target(latest("configured_steps", RUN, over="setting"), "steps", decimals=0),),
        ),
        Panel(
            title="Failed calls of sinks",
            kind="table",
            unit="none",
            text="Calls of TensorBoard, MLflow or Weights & Biases that failed. They are made "
            "again from the journal, which has everything; so does `crossreid export RUN`.",
            targets=(
                Target(latest("sink_failures_total", RUN, over="sink"), "failed", decimals=0),
            ),
        ),
        Panel(
            title="Last decisions",
            kind="table",
            unit="none",
            text="When each verdict was last given. The same times are the marks in all panels.",
            targets=(
                Target(
                    latest("gate_decision_timestamp_seconds", RUN, over="trial, decision")
                    + " * 1000",
                    "last given",
                    unit="dateTimeAsIso",
                ),
            ),
        ),
    ),
)

RUN_VIEW = View(
    uid="crossreid-run",
    title="crossreid / Run",
    text="One run: is it learning, is SDM really applied, where does the time go, and what was "
    "decided when. Dashed lines are the limits of the run's own config.",
    rows=(_VERDICT, LEARNING, PAIRS, PARTS, SDM, MEMORY, SPEED, _SETTINGS),
    marks=(decision_marks(RUN),),
)
