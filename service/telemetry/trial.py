"""One trial's numbers for `/metrics`, kept by the driver from what it hears."""

from collections.abc import Mapping
from typing import Any

from service.causes import Cause
from service.config import Config
from service.health import HealthReport
from service.telemetry.lines import Values, health_values, threshold_values

_VERDICT_GATE = "verdict"
_STATES = {"WAIT": 0, "GO": 1, "HOLD": 1, "RAISE": 1, "ROLLBACK": 1, "NO_GO": 2, "PAUSE": 3}
_FAULTS = ("failed", "skipped", "damaged")
"""What may happen to a checkpoint, as the journal's events `checkpoint_<fault>` tell."""
_SINCE_GO = {"best": "cross_entropy_best_ratio", "head_limit": "classifier_weight_norm_limit"}
"""What the policy remembers since GO, and the lines that show it."""


class TrialSeries:
    """One trial's snapshot; config: the trial's own. Times are Unix seconds."""

    def __init__(self, config: Config) -> None:
        self._device, self._devices = config.cluster.devices
        self._began: float | None = None
        self._values: Values = {
            "running": {(): 1.0},
            "gate_state": {(_VERDICT_GATE,): 0.0},
            "verdict_info": {("WAIT", "none"): 1.0},
            "restarts_total": {(): 0.0},
            "checkpoint_faults_total": {(fault,): 0.0 for fault in _FAULTS},
            "checkpoints_failed_in_a_row": {(): 0.0},
            "steps_total": {(): 0.0},
            "images_total": {(): 0.0},
            "step_phase_seconds_total": {("data",): 0.0, ("compute",): 0.0},
            **threshold_values(config),
        }

    @property
    def values(self) -> Values:
        """The full snapshot."""
        return {name: dict(samples) for name, samples in self._values.items()}

    def step(self, step: int, total: int, now: float) -> None:
        self._values["global_step"] = {(): float(step)}
        self._values["total_steps"] = {(): float(total)}
        self._values["heartbeat_timestamp_seconds"] = {(): now}
        self._began = now if self._began is None else self._began
        used = (now - self._began) * self._devices / 3600
        self._values["device_hours_used"] = {(self._device,): used}

    def start(self, event: Mapping[str, Any]) -> None:
        """Notes what the run is made of; `event` is the journal's event `start`.

        A resumed run has its verdict from the first step on.
        """
        self._values["run_info"] = {(str(event["world_size"]), event["precision"]): 1.0}
        self._judged(event["verdict"], event["cause"])
        self._since_go(event)

    def steps(self, event: Mapping[str, Any]) -> None:
        """Adds steps up; `event` is the journal's event `steps`."""
        count, seconds = event["count"], event["seconds"] * event["count"]
        waited = event["data_wait_s"] * count
        self._add("steps_total", (), count)
        self._add("images_total", (), event["images"])
        self._add("step_phase_seconds_total", ("data",), waited)
        self._add("step_phase_seconds_total", ("compute",), seconds - waited)

    def checkpoint(self, step: int, now: float) -> None:
        self._values["checkpoint_step"] = {(): float(step)}
        self._values["checkpoint_timestamp_seconds"] = {(): now}
        self._values["checkpoints_failed_in_a_row"] = {(): 0.0}

    def checkpoint_fault(self, fault: str) -> None:
        """Counts a checkpoint that failed, was skipped, or was found damaged."""
        self._add("checkpoint_faults_total", (fault,), 1.0)
        if fault == "failed":
            self._add("checkpoints_failed_in_a_row", (), 1.0)

    def error(self, cause: str, now: float) -> None:
        """An error ended the trial; it keeps the time of the first that was heard of."""
        self._values.setdefault("error_timestamp_seconds", {(cause,): now})

    def stopped(self, step: int) -> None:
        """The trial was stopped at `step`: what the rest would have cost is saved."""
        if "global_step" in self._values:
            self._values["global_step"] = {(): float(step)}
        total = self._values.get("total_steps", {}).get(())
        spent = sum(self._values["step_phase_seconds_total"].values())
        count = self._values["steps_total"][()]
        if total is None or not count:
            return
        saved = (total - step) * spent / count * self._devices / 3600
        self._values["device_hours_saved"] = {(self._device,): saved}

    def health(self, report: HealthReport) -> None:
        self._values.update(health_values(report))

    def decision(self, event: Mapping[str, Any], now: float) -> None:
        """Counts a decision; its time is that of the last of its kind.

        event: `Decision.to_dict()`, with what the policy remembers since GO where that is known.
        """
        key = (_VERDICT_GATE, str(event["verdict"]))
        self._judged(event["verdict"], event["cause"])
        self._since_go(event)
        self._values.setdefault("gate_decision_timestamp_seconds", {})[key] = now
        counts = self._values.setdefault("gate_decisions_total", {})
        counts[key] = counts.get(key, 0.0) + 1.0

    def restart(self) -> None:
        """The workers were started again, so no error has ended the trial."""
        self._add("restarts_total", (), 1.0)
        self._values.pop("error_timestamp_seconds", None)

    def sink_failures(self, failures: Mapping[str, int]) -> None:
        """How many calls of each of the run's sinks failed so far."""
        self._values["sink_failures_total"] = {(sink,): float(n) for sink, n in failures.items()}

    def _judged(self, verdict: str, cause: str) -> None:
        named = "none" if cause == Cause.NONE else str(cause)
        self._values["verdict_info"] = {(str(verdict), named): 1.0}
        self._values["gate_state"] = {(_VERDICT_GATE,): float(_STATES[str(verdict)])}

    def _since_go(self, event: Mapping[str, Any]) -> None:
        for name, line in _SINCE_GO.items():
            if event.get(name) is not None:
                self._values[line] = {(): float(event[name])}

    def _add(self, name: str, key: tuple[str, ...], amount: float) -> None:
        """Into a new mapping, so that snapshots that were handed out stay as they are."""
        self._values[name] = {**self._values[name], key: self._values[name][key] + amount}
