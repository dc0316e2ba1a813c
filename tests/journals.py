"""Journals as runs leave them, event files as TensorBoard reads them."""

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event as Record  # pyright: ignore
from tensorboardX.record_writer import masked_crc32c

from service.decisions import Decision, Verdict
from service.training.journal import Event, Journal
from tests.reports import healthy

STEPS_PER_EPOCH = 7
LOG_EVERY = 2
HEALTH_EVERY = 3
CHECKPOINT_EVERY = 6

Scalars = dict[str, list[tuple[int, float]]]
"""Tag to its steps and values, in the order of the file."""


@dataclass
class Trainer:
    """Writes journal lines as the loop does. `now` is the time of the next line, in Unix seconds.

    decides: as in a run of its own; in a sweep the scheduler does.
    """

    folder: Path
    attempt: int = 0
    now: float = 1000.0
    decides: bool = True

    def begin(self, after_step: int) -> None:
        self.attempt += 1
        made_of = {"world_size": 2, "precision": "fp32", "num_classes": 400}
        plan = {"plan": "400 ids", "schedule": ["100 steps"]}
        self.write({"event": "start", "step": after_step, **made_of, **plan})
        if after_step % STEPS_PER_EPOCH:
            self._epoch(after_step)

    def train(self, first: int, last: int, offset: float = 0.0) -> None:
        """Steps `first` to `last`; `offset` marks what this attempt measures."""
        for step in range(first, last + 1):
            if (step - 1) % STEPS_PER_EPOCH == 0:
                self._epoch(step - 1)
            if step % LOG_EVERY == 0:
                self.write(steps_event(step, offset))
            if step % HEALTH_EVERY == 0:
                self.report(step, offset)
            if step % CHECKPOINT_EVERY == 0:
                self.write({"event": "checkpoint", "step": step})

    def report(self, step: int, offset: float = 0.0) -> None:
        health = healthy(step, ce=5.0 + step / 100 + offset).to_dict()
        self.write({"event": "health", "step": step, "health": health})
        if self.decides:
            self.write(decision_event(step))

    def end(self, step: int, verdict: str = "GO", **summary: Any) -> None:
        told = {"verdict": verdict, "cause": "", "words": "", "remedy": "", "exit_code": 0}
        self.write({"event": "end", "step": step, **told, "summary": summary})

    def write(self, event: Event) -> None:
        journal = Journal(self.folder, self.attempt, now=lambda: self.now)
        journal.append(event)
        journal.close()
        self.now += 1.0

    def _epoch(self, after_step: int) -> None:
        number = after_step // STEPS_PER_EPOCH + 1
        weight = {"sdm_weight": number / 10, "use_sdm": True, "sdm_reason": "notch"}
        told = {"event": "epoch", "epoch": number, "step": after_step, "head_lr": 1e-2}
        self.write({**told, **weight})


def steps_event(step: int, offset: float = 0.0) -> Event:
    means = {"ce": 6.0 - step / 100 + offset, "top1": 0.25, "sdm": 0.5, "seconds": 0.125}
    return {
        "event": "steps",
        "step": step,
        **means,
        "data_wait_s": 0.0,
        "images": 80.0,
        "count": LOG_EVERY,
    }


def decision_event(step: int) -> Event:
    verdict = Verdict.WAIT if step < 10 else Verdict.GO
    return {"event": "decision", **Decision(step, verdict).to_dict()}


def records(folder: Path) -> list[Any]:
    """Every record of the event files in `folder`, whose checksums must be right."""
    found: list[Any] = []
    for file in sorted(folder.glob("*tfevents*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = struct.unpack_from("<Q", data, at)[0]
            body = data[at + 12 : at + 12 + length]
            sums = (
                struct.unpack_from("<I", data, at + 8),
                struct.unpack_from("<I", data, at + 12 + length),
            )
            assert sums == ((masked_crc32c(data[at : at + 8]),), (masked_crc32c(body),))
            found.append(Record.FromString(body))
            at += 16 + length
    return found


def scalars(folder: Path) -> Scalars:
    found: Scalars = defaultdict(list)
    for record in records(folder):
        for value in record.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found[value.tag].append((record.step, value.simple_value))
    return dict(found)


def texts(folder: Path) -> list[tuple[str, int, str]]:
    """Tag, step and words of every text."""
    return [
        (value.tag.removesuffix("/text_summary"), record.step, value.tensor.string_val[0].decode())
        for record in records(folder)
        for value in record.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    ]
