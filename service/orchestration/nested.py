"""One trial of a sweep, in the process that Ray Tune starts for it: it nests a Ray Train run."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train._internal.session import get_session
from ray.tune.integration.ray_train import TuneReportCallback

from service.config import Config
from service.errors import CrossReidError, RunError
from service.orchestration.orphans import free_orphans
from service.orchestration.runs import Run, create_run, held, of_sweep, open_run
from service.orchestration.space import with_sample
from service.orchestration.train import ended, fit
from service.orchestration.trials import is_end
from service.orchestration.worker import Job, error_values
from service.training.journal import last_attempt, read_journal

_ALONE_S = 30.0
"""Seconds in which the processes of a lost driver are gone."""


class _ToTune(TuneReportCallback):
    """Passes reports on with the ids of the trial's process, in which it is made, and of the
    controller, in which it runs: whoever kills the trial ends the one and waits for both."""

    def __init__(self) -> None:
        super().__init__()
        self._process = ray.get_runtime_context().get_actor_id()

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        controller = ray.get_runtime_context().get_actor_id()
        told = [{**metrics[0], "process": self._process, "controller": controller}, *metrics[1:]]
        super().after_report(run_context, told, checkpoint)


def run_trial(sample: dict[str, Any], text: str, path: str, control: str) -> dict[str, Any] | None:
    """Trains the trial to its end; its final report is {"outcome": JSON text} and its steps.

    text: the sweep's config. path: the sweep's folder. control: the sweep whose
    control plane it uses. Returns that report where Tune has yet to hear it.
    """
    return _say_last(_outcome(sample, text, path, control))


def _outcome(sample: dict[str, Any], text: str, path: str, control: str) -> dict[str, Any]:
    from service.settings import load_text

    trial_id = tune.get_context().get_trial_id()
    try:
        config = of_sweep(with_sample(load_text(text), sample), Path(path).name)
        run = _trial_run(config, trial_id, Path(path))
        with _alone(run):
            outcome = past_end(run)
            if outcome is None:
                told = last_attempt(read_journal(run.path))
                if told:
                    # This trial's process was lost before, and with it who would free its workers.
                    free_orphans()
                text = run.config.to_yaml()
                job = Job(text, str(run.path), control, trial_id, told=told, decides=False)
                outcome = ended(run, fit(config, job, (_ToTune(),))).to_dict()
    except CrossReidError as error:
        return {"outcome": json.dumps({"error": error_values(error)})}
    steps = outcome["summary"].get("steps", 0)
    return {"outcome": json.dumps(outcome), "step": steps, "timesteps_total": steps}


def _trial_run(config: Config, trial_id: str, sweep: Path) -> Run:
    """The trial's run; Tune starts a trial again whose process was lost.

    Where it runs and on how many workers, the sweep's config says now; the rest is as it was.
    """
    if (sweep / trial_id).is_dir():
        found = open_run(str(sweep / trial_id))
        return Run(found.run_id, found.path, config)
    return create_run(config, trial_id, sweep)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Holds the run's folder; waits for a process of a lost driver that still does."""
    until = time.monotonic() + _ALONE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(run))
                break
            except RunError:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)
        yield


def past_end(run: Run) -> dict[str, Any] | None:
    """How the run ended before; None when it has not, or goes on from its checkpoint.

    Its own journal says so before anybody else has heard of it.
    """
    marks = [event for event in read_journal(run.path) if event.get("event") in ("start", "end")]
    if not marks or marks[-1]["event"] != "end":
        return None
    names = ("verdict", "cause", "words", "remedy", "exit_code", "summary")
    outcome = {name: marks[-1][name] for name in names}
    return outcome if is_end(outcome) else None


def _say_last(report: dict[str, Any]) -> dict[str, Any] | None:
    """Sends the final report behind the nested run's own ones, and waits until Tune has it.

    Tune's session has one place for a result. Its main thread, which empties that place, also fills
    it with the nested run's reports; if this thread filled it first while such a report is still on
    its way, which a busy driver makes likely, both would wait for each other for ever. So this
    thread reports nothing before the last of them is through.
    """
    session = get_session()
    if session is None or session._inter_actor_queue is None:
        return report
    is_heard, pass_on = threading.Event(), session.report

    def listen(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        pass_on(metrics, checkpoint)
        if "outcome" in metrics:
            is_heard.set()

    session.report = listen
    session._inter_actor_queue.put(report)
    is_heard.wait()
    session.report = pass_on
    return None
