"""The run view's row on speed, progress, survival and cost."""

from service.causes import Cause
from service.telemetry.panels.panel import RUN, Panel, Row, Target, bound, curve, series

_RATE = "[$__rate_interval]"
_PHASES = f"rate({series('step_phase_seconds_total', RUN)}{_RATE})"
_STEPS = f"rate({series('steps_total', RUN)}{_RATE})"
_IMAGES = f"rate({series('images_total', RUN)}{_RATE})"

SPEED = Row(
    "Speed, progress, survival",
    (
        Panel(
            title="Step",
            kind="lines",
            unit="none",
            text="Steps done and to do. Time is the axis of every panel; this one tells the step "
            "at any moment. A fall is a restart from the last checkpoint.",
            targets=(
                curve("global_step", RUN),
                Target(f"max({series('total_steps', RUN)})", "to do", True, "gray"),
            ),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Epoch",
            kind="lines",
            unit="none",
            text="SDM, P and the head's rate change at epoch boundaries.",
            targets=(curve("epoch", RUN),),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Since the last step",
            kind="lines",
            unit="s",
            text="A trial that trains reports every few steps. If this climbs, it hangs or has "
            "died.",
            targets=(
                Target(f"time() - {series('heartbeat_timestamp_seconds', RUN)}", "{{trial}}"),
            ),
            lowest=0.0,
        ),
        Panel(
            title="Images a second",
            kind="lines",
            unit="images/s",
            text="As the training measured it over its window, and as counted from outside, "
            "checkpoints and restarts included.",
            targets=(
                curve("images_per_second", RUN),
                Target(_IMAGES, "counted {{trial}}"),
            ),
            causes=(Cause.THROUGHPUT_FALLEN,),
            lowest=0.0,
        ),
        Panel(
            title="Steps a second",
            kind="lines",
            unit="steps/s",
            text="Counted from outside; steps redone after a restart count again.",
            targets=(Target(_STEPS, "{{trial}}"),),
            lowest=0.0,
        ),
        Panel(
            title="Where a step's time goes",
            kind="areas",
            unit="s",
            text="Seconds a step by phase. The loader works while the step computes, so waiting "
            "is what it could not hide.",
            targets=(
                Target(f"{_PHASES} / on (run, trial) group_left {_STEPS}", "{{phase}} {{trial}}"),
            ),
            causes=(Cause.DATA_STARVED,),
            lowest=0.0,
        ),
        Panel(
            title="Throughput against its own past",
            kind="lines",
            unit="none",
            text="1 is the median of the run's earlier reports. Below `min_throughput` something "
            "slows it down.",
            targets=(
                curve("throughput_ratio", RUN),
                bound("min_throughput", RUN, "red"),
            ),
            causes=(Cause.THROUGHPUT_FALLEN,),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="Waiting for data",
            kind="lines",
            unit="percentunit",
            text="Share of the step time. Above `max_data_wait` the loader is the limit, not the "
            "device.",
            targets=(
                curve("data_wait_ratio", RUN),
                bound("max_data_wait", RUN, "red"),
            ),
            causes=(Cause.DATA_STARVED,),
            lowest=0.0,
            highest=1.0,
        ),
        Panel(
            title="Age of the last checkpoint",
            kind="lines",
            unit="s",
            text="What a lost machine would cost in time.",
            targets=(
                Target(f"time() - {series('checkpoint_timestamp_seconds', RUN)}", "{{trial}}"),
            ),
            lowest=0.0,
        ),
        Panel(
            title="Steps since the last checkpoint",
            kind="lines",
            unit="steps",
            text="What a lost machine would cost in steps.",
            targets=(
                Target(
                    f"{series('global_step', RUN)} - {series('checkpoint_step', RUN)}", "{{trial}}"
                ),
            ),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Checkpoints lost",
            kind="lines",
            unit="none",
            text="Since the driver began: the store refused the failed ones, the skipped ones gave "
            "way to a newer one, the damaged ones were found when the run was resumed. More "
            "failures in a row than `train.failed_checkpoints` end the run.",
            targets=(
                Target(series("checkpoint_faults_total", RUN), "{{trial}} {{fault}}"),
                Target(series("checkpoints_failed_in_a_row", RUN), "{{trial}} failed in a row"),
            ),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Restarts",
            kind="lines",
            unit="none",
            text="Times that the workers were started again after a loss, since the driver began.",
            targets=(curve("restarts_total", RUN),),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Decisions so far",
            kind="lines",
            unit="none",
            text="How often each verdict was given, since the driver began.",
            targets=(curve("gate_decisions_total", RUN, "{{decision}} {{trial}}"),),
            decimals=0,
            lowest=0.0,
        ),
        Panel(
            title="Device-hours",
            kind="lines",
            unit="h",
            text="Held by the workers so far, and saved by a stop.",
            targets=(
                curve("device_hours_used", RUN, "used {{device}} {{trial}}"),
                curve("device_hours_saved", RUN, "saved {{device}} {{trial}}"),
            ),
            decimals=2,
            lowest=0.0,
        ),
    ),
)
