"""Runs of MLflow, on the server that MLFLOW_TRACKING_URI names or in a file next to the runs."""

import html
import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.telemetry.sinks.sink import Entry, Status, Subject, Text

DATABASE = "mlflow.db"
"""File in the storage, where no server is named: mlflow ui --backend-store-uri sqlite:///FILE"""

_BATCH_METRICS = 1000
_BATCH_PARAMS = 100
_LONGEST_PARAM = 6000
_LONGEST_NOTE = 5000
"""Limits of MLflow's servers, of which the last differs between versions."""
_QUIETLY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow tells nobody of its use, prints nothing, and leaves trying again to us; what the user has
set stands."""
_INFINITE = "infinite numbers, which MLflow keeps as 1.8e308"
_CUT = f"settings, of which MLflow keeps {_LONGEST_PARAM} characters"
_STATUS = {Status.FINISHED: "FINISHED", Status.FAILED: "FAILED"}


class Mlflow:
    """MLflow's tracking server. A sweep is an experiment; runs of their own share one."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._client: Any = None

    def open(self, subject: Subject) -> "MlflowRun":
        """Raises whatever MLflow raises when it cannot be reached."""
        if self._client is None:
            self._client = self._connect()
        return MlflowRun(self._client, self._experiment(subject), subject)

    def _connect(self) -> Any:
        for name, value in _QUIETLY.items():
            os.environ.setdefault(name, value)
        return importlib.import_module("mlflow").MlflowClient(tracking_uri=self._uri)

    @property
    def _uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._storage / DATABASE}"

    def _experiment(self, subject: Subject) -> str:
        """The id of the subject's experiment."""
        own = subject.group if subject.trial else "crossreid"
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", own)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        here = self._uri.startswith("sqlite:")
        place = (self._storage / "mlartifacts").as_uri() if here else None
        return self._client.create_experiment(name, artifact_location=place)


class MlflowRun:
    """One run of MLflow: a `Sink`. Texts stand in its description, verdict and cause are tags."""

    def __init__(self, client: Any, experiment: str, subject: Subject) -> None:
        self._client = client
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._tags = {"crossreid.run": subject.group, "crossreid.trial": subject.trial or "main"}
        self._changed: dict[str, int] = {}
        self._metrics: list[Any] = []
        self._texts: list[Text] = []
        self._has_news = False
        run = client.create_run(
            experiment,
            start_time=round(1000 * subject.began),
            tags={**self._tags, "crossreid.attempt": str(subject.attempt)},
            run_name=subject.name,
        )
        self._id: str = run.info.run_id
        self._experiment = experiment
        self._send_settings(subject)
        self._supersede()

    @property
    def where(self) -> str:
        return f"run {self._id} in {self._client.tracking_uri}"

    @property
    def changed(self) -> Mapping[str, int]:
        return self._changed

    def put(self, entry: Entry) -> None:
        if isinstance(entry, Text):
            self._texts.append(entry)
            self._has_news = True
            return
        at = round(1000 * entry.time)
        for tag, value in entry.values.items():
            if math.isinf(value):
                self._count(_INFINITE, 1)
            self._metrics.append(self._entities.Metric(metric_name(tag), value, at, entry.step))

    def flush(self) -> None:
        """A part that is sent twice, since its answer was lost, stands there once."""
        while self._metrics:
            part = self._metrics[:_BATCH_METRICS]
            self._client.log_batch(self._id, metrics=part)
            del self._metrics[: len(part)]
        if self._has_news:
            self._send_texts()
            self._has_news = False

    def close(self, status: Status) -> None:
        self._client.set_terminated(self._id, _STATUS.get(status, "KILLED"))

    def _send_settings(self, subject: Subject) -> None:
        values = {name: str(value) for name, value in subject.settings.items()}
        cut = sum(len(value) > _LONGEST_PARAM for value in values.values())
        self._count(_CUT, cut)
        params = [
            self._entities.Param(name, value[:_LONGEST_PARAM]) for name, value in values.items()
        ]
        for first in range(0, len(params), _BATCH_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + _BATCH_PARAMS])

    def _send_texts(self) -> None:
        self._client.set_tag(self._id, "mlflow.note.content", note(self._texts))
        facts = {name: value for text in self._texts for name, value in text.facts.items()}
        for name, value in facts.items():
            self._client.set_tag(self._id, f"crossreid.{name}", value)

    def _supersede(self) -> None:
        """Older runs of the same trial count no more, and say which one does."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in self._tags.items())
        for old in self._client.search_runs([self._experiment], filter_string=wanted):
            is_told = "crossreid.superseded_by" in old.data.tags
            if old.info.run_id == self._id or is_told:
                continue
            self._client.set_tag(old.info.run_id, "crossreid.superseded_by", self._id)
            if old.info.status == "RUNNING":
                self._client.set_terminated(old.info.run_id, "KILLED")

    def _count(self, what: str, times: int) -> None:
        if times:
            self._changed[what] = self._changed.get(what, 0) + times


def metric_name(tag: str) -> str:
    """`tag` in the characters that MLflow allows: NIR+CP becomes NIR_CP."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in tag)


def note(texts: list[Text]) -> str:
    """A run's description: its newest texts, as many as a tag can hold."""
    told = [html.escape(text.words, quote=False).replace("\n", "  \n  ") for text in texts]
    lines = [f"- step {text.step}: {line}" for text, line in zip(texts, told, strict=True)]
    kept: list[str] = []
    for line in reversed(lines):
        if sum(len(each) + 1 for each in kept) + len(line) > _LONGEST_NOTE - 100:
            break
        kept.insert(0, line)
    left_out = len(lines) - len(kept)
    head = [f"({left_out} earlier texts are in journal.jsonl)"] if left_out else []
    return "\n".join([*head, *kept])
