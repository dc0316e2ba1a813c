"""The fleet view: all runs and trials, their verdicts, speed and cost."""

from service.causes import Cause
from service.telemetry.panels.panel import (
    FLEET,
    VERDICT_WORDS,
    Panel,
    Row,
    Target,
    View,
    bound,
    curve,
    decision_marks,
    latest,
    series,
    verdict_in_force,
)
from service.telemetry.panels.trials import trials_table

_BOTH = "{{run}} {{trial}}"
_ALERTS = 'ALERTS{alertstate="firing",run=~"$run|"}'
"""Alerts of the chosen runs, and those that concern no run, such as a lost exporter."""

_NOW = Row(
    "Now",
    (
        Panel(
            title="Training",
            kind="stat",
            unit="none",
            text="Trials that say that they train.",
            targets=(Target(f"sum({series('running', FLEET)})", "trials"),),
            width=4,
            height=4,
        ),
        Panel(
            title="Verdicts",
            kind="stat",
            unit="none",
            text="Trials by the verdict in force; ended trials count while their series stay.",
            targets=(
                Target(f"count by (verdict) ({series('verdict_info', FLEET)})", "{{verdict}}"),
            ),
            width=8,
            height=4,
        ),
        Panel(
            title="Images a second",
            kind="stat",
            unit="images/s",
            text="All trials together.",
            targets=(Target(f"sum({series('images_per_second', FLEET)})", "all"),),
            width=4,
            height=4,
        ),
        Panel(
            title="Device-hours",
            kind="stat",
            unit="h",
            text="Of all trials seen in the time shown, each over its whole life.",
            targets=(
                Target(latest("device_hours_used", FLEET, over="device", take="sum"), "{{device}}"),
            ),
            width=4,
            height=4,
            decimals=1,
        ),
        Panel(
            title="Device-hours saved",
            kind="stat",
            unit="h",
            text="What the steps that verdicts left out would have cost.",
            targets=(
                Target(
                    latest("device_hours_saved", FLEET, over="device", take="sum"), "{{device}}"
                ),
            ),
            width=4,
            height=4,
            decimals=1,
        ),
        trials_table(FLEET),
        Panel(
            title="Firing alerts",
            kind="table",
            unit="none",
            text="What Prometheus has found of the chosen runs and of the service itself. "
            "deploy/README.md has an entry on each.",
            targets=(Target(f"max by (alertname, severity, run, trial) ({_ALERTS})"),),
            width=12,
            height=7,
        ),
        Panel(
            title="Errors that ended a trial",
            kind="table",
            unit="none",
            text="A cause with a name, and when it struck.",
            targets=(
                Target(
                    latest("error_timestamp_seconds", FLEET, over="run, trial, cause") + " * 1000",
                    "when",
                    unit="dateTimeFromNow",
                ),
            ),
            causes=(
                Cause.NON_FINITE,
                Cause.LABELS_OUT_OF_RANGE,
                Cause.LABELS_GAPPED,
                Cause.FROZEN_RANDOM_LAYER,
            ),
            width=12,
            height=7,
        ),
    ),
)

_TIME = Row(
    "In time",
    (
        Panel(
            title="Verdicts in time",
            kind="states",
            unit="none",
            text="Each trial's verdict. It was decided in the training process; this panel only "
            "shows it.",
            targets=(Target(verdict_in_force(FLEET), _BOTH),),
            width=24,
            height=9,
            words=VERDICT_WORDS,
        ),
        Panel(
            title="Cross-entropy over ln C",
            kind="lines",
            unit="none",
            text="1 is chance; below `go` a run learns. Where the limits of runs differ, the "
            "highest is drawn: the run view shows each run's own.",
            targets=(
                curve("cross_entropy_chance_ratio", FLEET, _BOTH),
                bound("go", FLEET, "green"),
                bound("collapse", FLEET, "red"),
            ),
            causes=(Cause.CE_NOT_FALLING, Cause.COLLAPSE),
            width=12,
            decimals=3,
            lowest=0.0,
        ),
        Panel(
            title="Progress",
            kind="lines",
            unit="percentunit",
            text="Steps done of those to do.",
            targets=(
                Target(f"{series('global_step', FLEET)} / {series('total_steps', FLEET)}", _BOTH),
            ),
            width=12,
            lowest=0.0,
            highest=1.0,
        ),
        Panel(
            title="Images a second",
            kind="areas",
            unit="images/s",
            text="Stacked, so that the height is the fleet's.",
            targets=(curve("images_per_second", FLEET, _BOTH),),
            lowest=0.0,
        ),
        Panel(
            title="Throughput against its own past",
            kind="lines",
            unit="none",
            text="1 is the median of a run's earlier reports. Several runs that fall together "
            "share a machine, a disk or a network.",
            targets=(
                curve("throughput_ratio", FLEET, _BOTH),
                bound("min_throughput", FLEET, "red"),
            ),
            causes=(Cause.THROUGHPUT_FALLEN,),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="Since the last step",
            kind="lines",
            unit="s",
            text="A trial that trains reports every few steps. If this climbs, it hangs or has "
            "died.",
            targets=(Target(f"time() - {series('heartbeat_timestamp_seconds', FLEET)}", _BOTH),),
            lowest=0.0,
        ),
        Panel(
            title="Device-hours used",
            kind="lines",
            unit="h",
            text="By run, its trials added up.",
            targets=(
                Target(
                    f"sum by (run, device) ({series('device_hours_used', FLEET)})",
                    "{{run}} {{device}}",
                ),
            ),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="Device-hours saved",
            kind="lines",
            unit="h",
            text="By run: what the steps that verdicts left out would have cost.",
            targets=(
                Target(
                    f"sum by (run, device) ({series('device_hours_saved', FLEET)})",
                    "{{run}} {{device}}",
                ),
            ),
            decimals=2,
            lowest=0.0,
        ),
        Panel(
            title="Restarts",
            kind="lines",
            unit="none",
            text="Times that workers were started again after a loss, since the driver began.",
            targets=(curve("restarts_total", FLEET, _BOTH),),
            decimals=0,
            lowest=0.0,
        ),
    ),
)

FLEET_VIEW = View(
    uid="crossreid-fleet",
    title="crossreid / Fleet",
    text="All runs and trials: verdict and cause, progress, speed, device-hours used and saved, "
    "alerts and errors.",
    rows=(_NOW, _TIME),
    marks=(decision_marks(FLEET, 'decision=~"ROLLBACK|PAUSE|NO_GO"'),),
)
