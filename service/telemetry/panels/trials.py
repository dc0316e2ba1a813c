"""The table that both views open with: where each trial stands."""

from service.telemetry.panels.panel import Panel, Target, Word, latest, verdict_last_seen

_RUNNING = (Word(0, "ended", "gray"), Word(1, "training", "green"))
_GATE = (
    Word(0, "pending", "gray"),
    Word(1, "go", "green"),
    Word(2, "no-go", "red"),
    Word(3, "paused", "purple"),
)
_EQUAL = (Word(0, "differs", "red"), Word(1, "equal", "green"))


def trials_table(where: str) -> Panel:
    """One row a trial seen in the time shown: verdict, cause, progress, health, cost."""

    def column(title: str, name: str, unit: str = "none", decimals: int = 0) -> Target:
        return Target(latest(name, where), title, unit=unit, decimals=decimals)

    def state(title: str, name: str, words: tuple[Word, ...]) -> Target:
        return Target(latest(name, where), title, words=words)

    def hours(title: str, name: str) -> Target:
        return Target(latest(name, where, take="sum"), title, unit="h", decimals=2)

    heartbeat = latest("heartbeat_timestamp_seconds", where)
    return Panel(
        title="Trials",
        kind="table",
        unit="none",
        text="Each trial that was seen in the time shown, with the last that is known of it. A "
        "trial whose state is `training` and whose last step is minutes old has died without a "
        "word, or hangs. Hours saved are those that the steps left out by a stop would have "
        "taken. A click on a run or trial opens it.",
        targets=(
            Target(verdict_last_seen(where), "verdict seen", unit="dateTimeFromNow"),
            state("state", "running", _RUNNING),
            state("gate", "gate_state", _GATE),
            Target(f"{heartbeat} * 1000", "last step", unit="dateTimeFromNow"),
            column("step", "global_step"),
            column("of", "total_steps"),
            column("CE / ln C", "cross_entropy_chance_ratio", decimals=3),
            column("Top-1", "top1_accuracy_ratio", "percentunit", decimals=1),
            column("coverage", "pair_coverage_ratio", "percentunit", decimals=1),
            column("SDM weight", "sdm_weight", decimals=2),
            column("images/s", "images_per_second"),
            state("memory", "memory_hash_equal", _EQUAL),
            column("restarts", "restarts_total"),
            hours("device-hours", "device_hours_used"),
            hours("hours saved", "device_hours_saved"),
        ),
        width=24,
        height=9,
    )
