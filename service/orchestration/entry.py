"""Entrypoints of Ray jobs: the same launches as the command line, with plain log lines.

A job may be started again after its driver was lost, with the same words. So a run id that exists
means: continue that training, or that sweep; unless `--new` says that it must not exist.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.config import Config
from service.errors import ConfigError, CrossReidError, DataError, ExitCode
from service.orchestration.preflight import preflight
from service.orchestration.progress import OnProgress, PlainProgress, Update, rows_progress
from service.orchestration.runs import check_run_id, is_run, open_run
from service.orchestration.words import parse_size, split_words, take_flag, take_option
from service.settings import load_config, override
from service.telemetry import logs

Write = Callable[[str], None]

ACCEPTED = "accepted: "
"""How the line begins by which a job says that nothing more stands in its way."""


def train_entry(words: list[str]) -> int:
    """CONFIG [a.b=c ...] [--run-id ID [--new]], or [CONFIG] --resume RUN [a.b=c ...]: trains; the
    exit code says how it ended."""
    return _guarded(lambda write: _train(words, write))


def tune_entry(words: list[str]) -> int:
    """The same words: runs the sweep of CONFIG, or goes on with it."""
    return _guarded(lambda write: _tune(words, write))


def evaluate_entry(words: list[str]) -> int:
    """RUN [--checkpoint last|best|STEP]: evaluates a checkpoint of the run, by itself the last."""
    return _guarded(lambda write: _evaluate(words, write))


def ingest_entry(words: list[str]) -> int:
    """FOLDER RECORDS HEIGHTxWIDTH: makes records of an ORBench-format folder."""
    return _guarded(lambda write: _ingest(words, write))


def status_entry(words: list[str]) -> int:
    """RUN_FOLDER [--since S] [--job STATE]: prints where the run stands as one line of JSON."""
    return _guarded(lambda write: _status(words))


def kill_entry(words: list[str]) -> int:
    """PID RUN: kills the process of a job that works on the run."""
    return _guarded(lambda write: _kill(words))


def _train(words: list[str], write: Write) -> int:
    asked = _asked(words, is_run)
    preflight(asked.config)
    # Seconds of imports, which a refusal does not wait for.
    from service.orchestration.train import launch_training

    run, outcome = launch_training(
        asked.config,
        run_id=None if asked.resume else asked.run_id,
        resume=asked.resume,
        on_progress=_accepting(PlainProgress(write), asked.folder, write),
    )
    write(logs.verdict_line(outcome.verdict, outcome.words, outcome.remedy))
    write(f"run folder {run.path}")
    return outcome.exit_code


def _tune(words: list[str], write: Write) -> int:
    from service.orchestration.sweeps import is_sweep

    asked = _asked(words, is_sweep)
    preflight(asked.config)
    from service.orchestration.tune import launch_tuning

    sweep = launch_tuning(
        asked.config,
        experiment_id=None if asked.resume else asked.run_id,
        resume=asked.resume,
        on_progress=_accepting(PlainProgress(write), asked.folder, write),
    )
    for row in sweep.rows:
        write(f"{row.trial} {row.sample} {logs.verdict_line(row.verdict, row.told, row.remedy)}")
    write(f"steps {sweep.steps}, saved by stopping early {sweep.steps_saved}")
    write(f"sweep folder {sweep.path}")
    return sweep.exit_code


def _evaluate(words: list[str], write: Write) -> int:
    from service.orchestration.evaluate import evaluate_run

    words, checkpoint = take_option(words, "--checkpoint")
    if len(words) != 1:
        raise ConfigError(f"expected one run, found {words}")
    write(f"{ACCEPTED}{open_run(words[0]).path}")
    run, summary = evaluate_run(words[0], checkpoint=checkpoint or "last")
    mean: dict[str, Any] = summary["mAP"]
    write(f"{run.run_id}: mean mAP {mean['mean']:.4f}")
    return ExitCode.OK


def _ingest(words: list[str], write: Write) -> int:
    from service.data.ingest import ingest

    if len(words) != 3:
        raise ConfigError(f"expected FOLDER RECORDS HEIGHTxWIDTH, found {words}")
    if not Path(words[0]).is_dir():
        raise DataError(f"there is no folder {words[0]} on this machine")
    size = parse_size(words[2])
    write(f"{ACCEPTED}{words[0]} into {words[1]}")
    show = rows_progress(PlainProgress(write), words[0])
    manifest = ingest(words[0], words[1], image_size=size, progress=show)
    write(f"{words[1]}: {manifest.num_classes} people to train on, {manifest.counts}")
    return ExitCode.OK


def _status(words: list[str]) -> int:
    from service.orchestration.reading import ANSWER, read_standing
    from service.orchestration.standing import Life

    words, since = take_option(words, "--since")
    words, job = take_option(words, "--job")
    if len(words) != 1:
        raise ConfigError(f"expected one run folder, found {words}")
    found = read_standing(Path(words[0]), Life(job=job, since=float(since or 0)))
    sys.stdout.write(f"{ANSWER}{json.dumps(found.to_dict())}\n")
    return ExitCode.OK


def _kill(words: list[str]) -> int:
    from service.orchestration.ending_jobs import kill_process

    if len(words) != 2 or not words[0].isdecimal():
        raise ConfigError(f"expected PID RUN, found {words}")
    kill_process(int(words[0]), words[1])
    return ExitCode.OK


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a training or sweep is to do. resume: the run to continue, by id or folder; None for a
    new one. folder: where the run will lie, None when its name is yet to be made."""

    config: Config
    run_id: str | None
    resume: str | None
    folder: Path | None


def _asked(words: list[str], is_there: Callable[[Path], bool]) -> _Asked:
    """is_there: whether a folder holds something that these words may continue."""
    words, resume = take_option(words, "--resume")
    words, is_new = take_flag(words, "--new")
    if resume is not None:
        config, path = _resumed(words, resume)
        return _Asked(config, None, str(path), path)
    config, run_id = _read(words)
    folder = None if run_id is None else _folder(config, run_id)
    again = folder is not None and is_there(folder) and not is_new
    return _Asked(config, run_id, str(folder) if again else None, folder)


def _resumed(words: list[str], resume: str) -> tuple[Config, Path]:
    """The config to continue a run with, its own where none is given, and its folder."""
    file, overrides = split_words(words)
    if file is not None:
        config = load_config(file, overrides)
        return config, open_run(resume, config.run.storage).path
    run = open_run(resume)
    return override(run.config, overrides), run.path


def _read(words: list[str]) -> tuple[Config, str | None]:
    words, run_id = take_option(words, "--run-id")
    file, overrides = split_words(words)
    if file is None:
        raise ConfigError("expected a config file")
    return load_config(file, overrides), run_id


def _accepting(on_progress: OnProgress, folder: Path | None, write: Write) -> OnProgress:
    """Passes updates on, and says once that the run's folder is there."""
    told = folder is None

    def heard(update: Update) -> None:
        nonlocal told
        on_progress(update)
        if not told and folder is not None and is_run(folder):
            told = True
            write(f"{ACCEPTED}{folder}")

    return heard


def _folder(config: Config, run_id: str) -> Path:
    return Path(config.run.storage).expanduser() / check_run_id(run_id)


def _guarded(call: Callable[[Write], int]) -> int:
    """Runs `call` with the logger to write to; a user's error is one line and its exit code."""
    logger = logs.setup_logging()
    try:
        return int(call(logger.info))
    except CrossReidError as error:
        logger.error("%s: %s", type(error).__name__, error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
