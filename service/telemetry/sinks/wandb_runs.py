"""Runs of Weights & Biases. Its WANDB_ variables are obeyed: WANDB_MODE=offline sends nothing."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.telemetry.sinks.sink import Entry, Numbers, Status, Subject, Text

_INIT_S = 20.0
"""Seconds to reach the server in; wandb holds the command's end up as long."""
_COLUMNS = ("step", "kind", "words")


class WeightsAndBiases:
    """The project that WANDB_PROJECT names, else `crossreid`; a run's or sweep's id is a group."""

    def __init__(self, patience_s: float) -> None:
        """patience_s: how long the last upload of a run may take."""
        self._patience_s = patience_s

    def open(self, subject: Subject) -> "WandbRun":
        """Raises whatever wandb raises when it cannot be reached."""
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb: Any = importlib.import_module("wandb")
        settings = wandb.Settings(
            # About this machine and its shell, neither of which the trial need run on.
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            console="off",
            silent=True,
            init_timeout=_INIT_S,
            finish_timeout=self._patience_s,
            finish_timeout_raises=True,
        )
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "crossreid"),
            group=subject.group,
            name=subject.name,
            dir=os.environ.get("WANDB_DIR", str(subject.folder)),
            config=dict(subject.settings),
            reinit="create_new",
            settings=settings,
        )
        return WandbRun(run, wandb.Table)


class WandbRun:
    """One run of Weights & Biases: a `Sink`. Texts are the table `events`."""

    def __init__(self, run: Any, table: Any) -> None:
        self._run = run
        self._table = table
        self._unsent: list[Entry] = []
        self._rows: list[tuple[int, str, str]] = []
        self._has_news = False
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")

    @property
    def where(self) -> str:
        return str(Path(self._run.dir).parent if self._run.offline else self._run.url)

    @property
    def changed(self) -> Mapping[str, int]:
        return {}

    def put(self, entry: Entry) -> None:
        self._unsent.append(entry)

    def flush(self) -> None:
        while self._unsent:
            entry = self._unsent[0]
            if isinstance(entry, Numbers):
                line = {"step": entry.step, "time": entry.time, **entry.values}
                self._run.log(line)
            else:
                self._text(entry)
            del self._unsent[0]
        if self._has_news:
            rows = [list(row) for row in self._rows]
            self._run.log({"events": self._table(columns=list(_COLUMNS), data=rows)})
            self._has_news = False

    def close(self, status: Status) -> None:
        if status is Status.SUPERSEDED:
            self._run.tags = (*(self._run.tags or ()), "superseded")
        self._run.finish(exit_code=0 if status is Status.FINISHED else 1)

    def _text(self, text: Text) -> None:
        for name, value in text.facts.items():
            self._run.summary[name] = value
        self._rows.append((text.step, text.kind, text.words))
        self._has_news = True
