"""Entrypoints of Ray jobs: the same launches as the command line, with plain log lines.

A job is started again after its driver was lost, with the same words. So a run id that exists
means: continue that training, or that sweep.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.config import Config
from service.errors import ConfigError, CrossReidError, ExitCode
from service.orchestration.progress import OnProgress, PlainProgress, rows_progress
from service.orchestration.runs import check_run_id, is_run
from service.orchestration.words import parse_size, split_words
from service.settings import load_config
from service.telemetry import logs

Write = Callable[[str], None]


def train_entry(words: list[str]) -> int:
    """CONFIG [a.b=c ...] [--run-id ID]: trains; the exit code says how it ended."""
    return _guarded(lambda write: _train(words, write))


def tune_entry(words: list[str]) -> int:
    """CONFIG [a.b=c ...] [--run-id ID]: runs the sweep of CONFIG, or goes on with it."""
    return _guarded(lambda write: _tune(words, write))


def evaluate_entry(words: list[str]) -> int:
    """RUN: evaluates the run's newest checkpoint."""
    return _guarded(lambda write: _evaluate(words, write))


def ingest_entry(words: list[str]) -> int:
    """FOLDER RECORDS HEIGHTxWIDTH: makes records of an ORBench-format folder."""
    return _guarded(lambda write: _ingest(words, write))


def _train(words: list[str], write: Write) -> int:
    from service.orchestration.train import launch_training

    config, run_id = _read(words)
    again = run_id is not None and _exists(config, run_id)
    progress: OnProgress = PlainProgress(write)
    run, outcome = launch_training(
        config,
        run_id=None if again else run_id,
        resume=run_id if again else None,
        on_progress=progress,
    )
    write(logs.verdict_line(outcome.verdict, outcome.words, outcome.remedy))
    write(f"run folder {run.path}")
    return outcome.exit_code


def _tune(words: list[str], write: Write) -> int:
    from service.orchestration.sweeps import is_sweep
    from service.orchestration.tune import launch_tuning

    config, run_id = _read(words)
    again = run_id is not None and is_sweep(_folder(config, run_id))
    sweep = launch_tuning(
        config,
        experiment_id=None if again else run_id,
        resume=str(_folder(config, run_id)) if again and run_id else None,
        on_progress=PlainProgress(write),
    )
    for row in sweep.rows:
        write(f"{row.trial} {row.sample} {logs.verdict_line(row.verdict, row.told, row.remedy)}")
    write(f"steps {sweep.steps}, saved by stopping early {sweep.steps_saved}")
    write(f"sweep folder {sweep.path}")
    return sweep.exit_code


def _evaluate(words: list[str], write: Write) -> int:
    from service.orchestration.evaluate import evaluate_run

    if len(words) != 1:
        raise ConfigError(f"expected one run, found {words}")
    run, summary = evaluate_run(words[0])
    mean: dict[str, Any] = summary["mAP"]
    write(f"{run.run_id}: mean mAP {mean['mean']:.4f}")
    return ExitCode.OK


def _ingest(words: list[str], write: Write) -> int:
    from service.data.ingest import ingest

    if len(words) != 3:
        raise ConfigError(f"expected FOLDER RECORDS HEIGHTxWIDTH, found {words}")
    show = rows_progress(PlainProgress(write), words[0])
    manifest = ingest(words[0], words[1], image_size=parse_size(words[2]), progress=show)
    write(f"{words[1]}: {manifest.num_classes} people to train on, {manifest.counts}")
    return ExitCode.OK


def _read(words: list[str]) -> tuple[Config, str | None]:
    words, run_id = list(words), None
    if "--run-id" in words:
        at = words.index("--run-id")
        if at + 1 == len(words):
            raise ConfigError("--run-id needs a name")
        run_id = words[at + 1]
        del words[at : at + 2]
    file, overrides = split_words(words)
    if file is None:
        raise ConfigError("expected a config file")
    return load_config(file, overrides), run_id


def _exists(config: Config, run_id: str) -> bool:
    return is_run(_folder(config, run_id))


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
