"""The command `crossreid`: reads words, calls one room of the service, shows what came of it.

Results go to standard output, progress and errors to standard error. Everything heavy is imported
by the command that needs it, so that help and config checks answer at once.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from service import __version__
from service.cli_data import add_data, data_answer
from service.cli_doctor import add_doctor, add_explain, answer, explanation
from service.cli_export import add_export, exported
from service.cli_jobs import add_jobs, looked
from service.cli_submit import add_submit, submitted
from service.cli_watch import add_watch
from service.cli_words import Answer, Run, add_checkpoint
from service.errors import ConfigError, CrossReidError, ExitCode

_EPILOG = """\
exit codes: 0 done, 1 a fault of the program, or a job that was lost, 2 something to put right,
3 NO_GO, 4 paused, 5 a number became NaN or infinite, 130 interrupted. CONFIG takes overrides as
further words: train.max_steps=100
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    stray = [word for word in rest if word.startswith("-") or not hasattr(args, "words")]
    if stray:
        parser.error(f"unknown arguments: {' '.join(stray)}")
    if rest:
        args.words += rest
    try:
        return int(args.run(args))
    except CrossReidError as error:
        if args.debug:
            raise
        return _complain(error)
    except KeyboardInterrupt:
        _say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return ExitCode.OK


def _complain(error: CrossReidError) -> int:
    from service.telemetry.logs import redacted

    _say(f"{type(error).__name__}: {redacted(str(error))}")
    return int(error.exit_code)


# -- the words -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crossreid",
        description="Find a person in RGB images from any query.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"crossreid {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_data(commands, _command, _shows(data_answer))
    _add_train(commands)
    _add_tune(commands)
    _add_evaluate(commands)
    _add_config(commands)
    add_doctor(commands, _command, _shows(answer))
    add_explain(commands, _command, _shows(explanation))
    add_watch(commands, _command)
    add_export(commands, _command, _shows(exported))
    add_submit(commands, _command, _shows(submitted))
    add_jobs(commands, _command, _shows(looked))
    return parser


def _command(commands: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    """A subparser with the options that every command has."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_config_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="CONFIG [a.b=c ...]", help="YAML, overrides")


def _add_train(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a run, judge it and evaluate it")
    _add_config_words(train)
    train.add_argument("--resume", metavar="RUN", help="continue this run: its id or folder")
    train.add_argument("--run-id", metavar="ID", help="name of the new run")
    train.add_argument("--no-ray", action="store_true", help="one process, without Ray")


def _add_tune(commands: Any) -> None:
    tune = _command(commands, "tune", _tune, "run the sweep of a config")
    _add_config_words(tune)
    tune.add_argument("--run-id", metavar="ID", help="name of the sweep")
    tune.add_argument(
        "--resume",
        metavar="SWEEP",
        help="continue this sweep of your own, by id or folder: Tune's files in it are unpickled",
    )
    tune.add_argument("--dry-run", action="store_true", help="show the cost, start nothing")
    tune.add_argument(
        "--seconds-per-step", type=float, metavar="S", help="with --dry-run, of one trial"
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = _command(commands, "evaluate", _evaluate, "evaluate a checkpoint of a run")
    evaluate.add_argument("run_name", metavar="RUN", help="its id or folder")
    evaluate.add_argument("--storage", default="runs", help="where ids are looked for")
    add_checkpoint(evaluate)


def _add_config(commands: Any) -> None:
    config = commands.add_parser("config", help="check and show configs")
    kinds = config.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    show = _command(kinds, "show", _show_config, "show a config with all its defaults")
    _add_config_words(show)


# -- the commands ----------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from service import views
    from service.orchestration.words import split_words
    from service.telemetry.logs import verdict_line

    if args.resume is not None and args.run_id is not None:
        raise ConfigError("--resume goes on with a run that has a name; leave --run-id out")
    file, overrides = split_words(args.words)
    config = _train_config(file, overrides, args.resume)
    if args.no_ray:
        from service.orchestration.local import train_here as launch
    else:
        from service.orchestration.train import launch_training as launch
    with views.progress() as show:
        run, outcome = launch(config, run_id=args.run_id, resume=args.resume, on_progress=show)
    if os.environ.get("RANK", "0") != "0":
        return outcome.exit_code
    values = {
        "run_id": run.run_id,
        "run_dir": str(run.path),
        "verdict": outcome.verdict,
        "cause": outcome.cause,
        "words": outcome.words,
        "remedy": outcome.remedy,
        "exit_code": outcome.exit_code,
        "summary": outcome.summary,
    }
    where = f"everything is in {run.path} (summary.json, journal.jsonl, checkpoints)\n"
    told = verdict_line(outcome.verdict, outcome.words, outcome.remedy)
    _result(args, values, f"{views.evaluation(outcome.summary)}{where}{told}\n")
    return outcome.exit_code


def _train_config(file: str | None, overrides: list[str], resume: str | None) -> Any:
    """The config to train; None means that of the run to resume."""
    from service.settings import load_config

    if file is not None:
        return load_config(file, overrides)
    if resume is None:
        raise ConfigError("train needs a config, as in `crossreid train configs/demo.yaml`")
    return _resumed_config(resume, overrides)


def _resumed_config(name: str, overrides: list[str]) -> Any:
    """The config of a run or sweep to resume, with overrides, of which `run.storage` also says
    where its id is looked for; None without any."""
    if not overrides:
        return None
    from service.orchestration.runs import open_run
    from service.settings import given, override

    storage = given(overrides, "run.storage")
    found = open_run(name, "runs" if storage is None else str(storage))
    return override(found.config, overrides)


def _tune(args: argparse.Namespace) -> int:
    from service.orchestration.space import check_space

    _check_pace(args)
    config = _tune_config(args)
    if config is not None:
        check_space(config)
    if args.dry_run:
        return _dry_run(args, config)
    from service import views_sweep
    from service.orchestration.tune import BEST_FILE, launch_tuning

    with views_sweep.sweep_progress() as show:
        found = launch_tuning(
            config, experiment_id=args.run_id, resume=args.resume, on_progress=show
        )
    best = f"train the best again: crossreid train {found.path / BEST_FILE}\n" if found.best else ""
    again = (
        f"continue it with crossreid tune --resume {found.path}\n"
        if found.exit_code == ExitCode.INTERRUPTED
        else ""
    )
    where = f"everything is in {found.path}\n"
    _result(args, found.to_dict(), f"{views_sweep.final(found)}{where}{best}{again}")
    return found.exit_code


def _check_pace(args: argparse.Namespace) -> None:
    seconds = args.seconds_per_step
    if seconds is None:
        return
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"--seconds-per-step must be above 0 and finite; found {seconds:g}")
    if not args.dry_run:
        raise ConfigError("--seconds-per-step is for --dry-run, which counts the hours; add it")


def _tune_config(args: argparse.Namespace) -> Any:
    """The sweep's config; None means that of the sweep to resume."""
    from service.orchestration.words import split_words

    if args.resume is None:
        return _required_config(args.words)
    if args.run_id is not None or args.dry_run:
        raise ConfigError(
            "--resume goes on with a sweep that has a name; leave --run-id and --dry-run out"
        )
    file, overrides = split_words(args.words)
    if file is not None:
        return _required_config(args.words)
    return _resumed_config(args.resume, overrides)


def _dry_run(args: argparse.Namespace, config: Any) -> int:
    from dataclasses import replace

    from service.orchestration.budget import Pace, check_here, measured_pace
    from service.orchestration.runs import plan_run
    from service.orchestration.tune import check_sweep

    if args.seconds_per_step is not None and args.seconds_per_step <= 0:
        raise ConfigError(f"--seconds-per-step must be above 0; found {args.seconds_per_step:g}")
    given = args.seconds_per_step
    plan_run(config, args.run_id, can_resume=False)
    check_here(config)
    pace = Pace(given, "as given") if given else measured_pace(config)
    found = replace(check_sweep(config), pace=pace)
    space = {
        name: distribution.model_dump(exclude_none=True)
        for name, distribution in config.tune.space.items()
    }
    lines = [*found.lines(), *(f"{name}: {json.dumps(values)}" for name, values in space.items())]
    _result(args, {**found.to_dict(), "space": space}, "\n".join(lines) + "\n")
    return ExitCode.OK


def _evaluate(args: argparse.Namespace) -> int:
    from service import views
    from service.orchestration.evaluate import evaluate_run

    run, summary = evaluate_run(args.run_name, storage=args.storage, checkpoint=args.checkpoint)
    done = f"checkpoint of step {summary['evaluated_step']}, written to {run.path}/summary.json\n"
    text = views.evaluation(summary) + done
    _result(args, summary, text)
    return ExitCode.OK


def _show_config(args: argparse.Namespace) -> int:
    config = _required_config(args.words)
    _result(args, config.model_dump(mode="json"), config.to_yaml())
    return ExitCode.OK


def _required_config(words: list[str]) -> Any:
    from service.orchestration.words import split_words
    from service.settings import load_config

    file, overrides = split_words(words)
    if file is None:
        raise ConfigError("expected a config file, as in configs/demo.yaml")
    return load_config(file, overrides)


# -- the output ------------------------------------------------------------------------------------


def _shows(answer: Callable[[argparse.Namespace], Answer]) -> Run:
    """A command that shows the answer and ends with its exit code."""

    def run(args: argparse.Namespace) -> int:
        found = answer(args)
        _result(args, found.values, found.text)
        return found.exit_code

    return run


def _result(args: argparse.Namespace, values: dict[str, Any], text: str) -> None:
    """The command's result on standard output: JSON for machines, else text."""
    sys.stdout.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n" if args.json else text)
    sys.stdout.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"crossreid: {line}\n")
