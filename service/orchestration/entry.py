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
from service.orchestration.interrupts import terminated_as_interrupted
from service.orchestration.job import ACCEPTED
from service.orchestration.passwords import refuse_passwords
from service.orchestration.preflight import preflight, preflight_records
from service.orchestration.progress import OnProgress, PlainProgress, Update, rows_progress
from service.orchestration.runs import check_run_id, is_run, open_run
from service.orchestration.versions import REFUSED
from service.orchestration.words import parse_size, split_words, take_flag, take_option
from service.settings import load_config, override
from service.telemetry import logs

Write = Callable[[str], None]


class _Told:
    """What a job says, and what it has accepted: the folder that it works on, or nothing yet."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self._folder: str | None = None

    def accept(self, folder: str, more: str = "") -> None:
        """Says that nothing more stands in the job's way."""
        if self._folder is None:
            self._folder = folder
            self.write(f"{ACCEPTED}{folder}{more}")

    @property
    def has_begun(self) -> bool:
        """Whether there is something to look at; a run that came to nothing leaves no folder."""
        return self._folder is not None and Path(self._folder).exists()


def train_entry(words: list[str]) -> int:
    """CONFIG [a.b=c ...] [--run-id ID [--new]], or [CONFIG] --resume RUN [a.b=c ...]: trains; the
    exit code says how it ended."""
    return _guarded(lambda told: _train(words, told))


def tune_entry(words: list[str]) -> int:
    """The same words: runs the sweep of CONFIG, or goes on with it."""
    return _guarded(lambda told: _tune(words, told))


def evaluate_entry(words: list[str]) -> int:
    """RUN [--checkpoint last|best|STEP]: evaluates a checkpoint of the run, by itself the last."""
    return _guarded(lambda told: _evaluate(words, told))


def ingest_entry(words: list[str]) -> int:
    """FOLDER RECORDS HEIGHTxWIDTH: makes records of an ORBench-format folder."""
    return _guarded(lambda told: _ingest(words, told))


def status_entry(words: list[str]) -> int:
    """RUN_FOLDER [--job ID --state STATE]: prints where the run stands as one line of JSON, which
    is null where there is no run."""
    return _guarded(lambda told: _status(words))


def kill_entry(words: list[str]) -> int:
    """JOB: kills the processes of a job on this machine."""
    return _guarded(lambda told: _kill(words))


def _train(words: list[str], told: _Told) -> int:
    asked = _asked(words, is_run)
    preflight(asked.config, asked.storage, told.write)
    # Seconds of imports, which a refusal does not wait for.
    from service.orchestration.train import launch_training

    run, outcome = launch_training(
        asked.config,
        run_id=None if asked.resume else asked.run_id,
        resume=asked.resume,
        on_progress=_accepting(told),
    )
    told.write(logs.verdict_line(outcome.verdict, outcome.words, outcome.remedy))
    told.write(f"run folder {run.path}")
    return outcome.exit_code


def _tune(words: list[str], told: _Told) -> int:
    from service.orchestration.sweeps import is_sweep

    asked = _asked(words, is_sweep)
    preflight(asked.config, asked.storage, told.write)
    from service.orchestration.tune import launch_tuning

    sweep = launch_tuning(
        asked.config,
        experiment_id=None if asked.resume else asked.run_id,
        resume=asked.resume,
        on_progress=_accepting(told),
    )
    for row in sweep.rows:
        verdict = logs.verdict_line(row.verdict, row.told, row.remedy)
        told.write(f"{row.trial} {row.sample} {verdict}")
    told.write(f"steps {sweep.steps}, saved by stopping early {sweep.steps_saved}")
    told.write(f"sweep folder {sweep.path}")
    return sweep.exit_code


def _evaluate(words: list[str], told: _Told) -> int:
    words, checkpoint = take_option(words, "--checkpoint")
    if len(words) != 1:
        raise ConfigError(f"expected one run, found {words}")
    run = open_run(words[0])
    from service.orchestration.evaluating import evaluate_there

    summary = evaluate_there(run, checkpoint or "last", told.accept, told.write)
    mean: dict[str, Any] = summary["mAP"]
    told.write(f"{run.run_id}: mean mAP {mean['mean']:.4f}")
    return ExitCode.OK


def _ingest(words: list[str], told: _Told) -> int:
    from service.data.ingest import ingest

    if len(words) != 3:
        raise ConfigError(f"expected FOLDER RECORDS HEIGHTxWIDTH, found {words}")
    refuse_passwords({"FOLDER": words[0], "RECORDS": words[1]})
    if not Path(words[0]).is_dir():
        raise DataError(f"there is no folder {words[0]} on this machine")
    size = parse_size(words[2])
    preflight_records(words[1], told.write)
    told.accept(words[0], f" into {words[1]}")
    show = rows_progress(PlainProgress(told.write), words[0])
    manifest = ingest(words[0], words[1], image_size=size, progress=show)
    told.write(f"{words[1]}: {manifest.num_classes} people to train on, {manifest.counts}")
    return ExitCode.OK


def _status(words: list[str]) -> int:
    from service.orchestration.reading import ANSWER, is_there, read_standing
    from service.orchestration.standing import Life

    words, job = take_option(words, "--job")
    words, state = take_option(words, "--state")
    if len(words) != 1:
        raise ConfigError(f"expected one run folder, found {words}")
    folder = Path(words[0])
    life = Life(job=state, job_id=job or "")
    found = read_standing(folder, life).to_dict() if is_there(folder) else None
    sys.stdout.write(f"{ANSWER}{json.dumps(found)}\n")
    return ExitCode.OK


def _kill(words: list[str]) -> int:
    from service.orchestration.ending_jobs import kill_job

    if len(words) != 1:
        raise ConfigError(f"expected JOB, found {words}")
    kill_job(words[0])
    return ExitCode.OK


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a training or sweep is to do. resume: the run to continue, by id or folder; None for a
    new one. storage: the folder that the run lies in, or will."""

    config: Config
    run_id: str | None
    resume: str | None
    storage: str


def _asked(words: list[str], is_there: Callable[[Path], bool]) -> _Asked:
    """is_there: whether a folder holds something that these words may continue."""
    words, resume = take_option(words, "--resume")
    words, is_new = take_flag(words, "--new")
    if resume is not None:
        config, path = _resumed(words, resume)
        return _Asked(config, None, str(path), str(path.parent))
    config, run_id = _read(words)
    folder = None if run_id is None else _folder(config, run_id)
    again = folder is not None and is_there(folder) and not is_new
    return _Asked(config, run_id, str(folder) if again else None, config.run.storage)


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


def _accepting(told: _Told) -> OnProgress:
    """Passes updates on, and says once that nothing more stands in the way."""
    show = PlainProgress(told.write)

    def heard(update: Update) -> None:
        show(update)
        if update.folder:
            told.accept(update.folder)

    return heard


def _folder(config: Config, run_id: str) -> Path:
    return Path(config.run.storage).expanduser() / check_run_id(run_id)


def _guarded(call: Callable[[_Told], int]) -> int:
    """Runs `call` with what says its lines; a user's error is one line and its exit code, and that
    of a job that has not begun says so."""
    logger = logs.setup_logging()
    told = _Told(logger.info)
    try:
        with terminated_as_interrupted():
            return int(call(told))
    except CrossReidError as error:
        mark = "" if told.has_begun else REFUSED
        logger.error("%s%s: %s", mark, type(error).__name__, error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
