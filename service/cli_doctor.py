"""The words and answers of `crossreid doctor` and `crossreid explain`."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.cli_words import Answer, Command, Run
from service.errors import ConfigError, ExitCode, RunError

_THRESHOLD = re.compile(r"(policy\.)?[a-z_0-9]+=")


# -- the words -------------------------------------------------------------------------------------


def add_doctor(commands: Any, command: Command, run: Run) -> None:
    """The subparsers of `doctor`; each calls `run`, which asks `answer`."""
    doctor = commands.add_parser("doctor", help="look at data, model, sampler, cluster and runs")
    kinds = doctor.add_subparsers(dest="kind", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        parser = command(kinds, name, run, text)
        parser.add_argument("--output", type=Path, metavar="FILE", help="write it there as well")
        return parser

    data = add("data", "who has what, do names and files belong together, can it be read")
    data.add_argument("words", nargs="*", metavar="CONFIG|RECORDS [a.b=c ...]")
    data.add_argument("--sheet", type=Path, metavar="PNG", help="also draw a few people")
    data.add_argument("--people", type=_positive, default=8, help="on the sheet")
    _add_config(add("model", "what learns, and do gradients arrive; one batch on the CPU"))
    _add_config(add("sampler", "what the batches hold, and what plainer samplers would give"))
    overfit = add("overfit", "can a few people be learned by heart: cross-entropy only")
    _add_config(overfit)
    overfit.add_argument("--samples", type=_positive, default=256, help="rows, fixed")
    overfit.add_argument("--epochs", type=_positive, default=10)
    _add_config(add("cluster", "is the Ray cluster reached, alike and large enough"))
    _add_config(add("smoke", "all checks, then some hundred steps on your own data"))
    past = add("run", "replay a run's journal through the policy and explain its verdict")
    past.usage = "%(prog)s [options] RUN [--policy k=v ...]"
    past.add_argument("words", nargs="+", metavar="RUN", help="its id or folder, or a trial's")
    past.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="k=v",
        help="another threshold; more k=v may follow, or --policy again",
    )
    past.add_argument("--storage", default="runs", help="where ids are looked for")


def add_explain(commands: Any, command: Command, run: Run) -> None:
    """The subparser of `explain`."""
    parser = command(commands, "explain", run, "one page on a cause; without one, the list")
    parser.add_argument("cause", nargs="?", metavar="CAUSE")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="CONFIG [a.b=c ...]", help="YAML, overrides")


def _positive(word: str) -> int:
    number = int(word) if word.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {word!r}")
    return number


# -- the answers -----------------------------------------------------------------------------------


def answer(args: argparse.Namespace) -> Answer:
    """What the doctor says; the text is also in `--output` then, as it is printed.

    Raises:
        CrossReidError: a mistake in the words, or nothing there to look at.
    """
    import json

    from service import views_doctor

    found = _LOOKS[args.kind](args)
    values, text = found.to_dict(), views_doctor.diagnosis(found)
    if args.output is not None:
        plain = views_doctor.diagnosis(found, width=120)
        shown = json.dumps(values, indent=1, ensure_ascii=False) + "\n" if args.json else plain
        _write(args.output, shown)
    return Answer(values, text, found.exit_code)


def explanation(args: argparse.Namespace) -> Answer:
    """A cause's page, or the list of causes."""
    from service import explain
    from service.pages import PAGES

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    if args.cause is None:
        values = {"causes": [explain.to_dict(cause) for cause in PAGES]}
        return Answer(values, explain.listing(width), ExitCode.OK)
    cause = explain.find(args.cause)
    return Answer(explain.to_dict(cause), explain.page(cause, width), ExitCode.OK)


def _write(file: Path, text: str) -> None:
    from service.training.files import write_text

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}; name another --output") from error


def _data(args: argparse.Namespace) -> Any:
    from service.data.records import Records
    from service.doctor.data import diagnose_data
    from service.doctor.sheet import records_sheet

    url, config = _records_or_config(args.words)
    found = diagnose_data(url, config)
    if args.sheet is not None:
        from dataclasses import replace

        sheet = records_sheet(Records.open(url, "train"), args.sheet, args.people)
        found = replace(found, notes=(*found.notes, f"sheet of {args.people} people: {sheet}"))
    return found


def _model(args: argparse.Namespace) -> Any:
    from service.doctor.model import diagnose_model

    return diagnose_model(_config(args.words))


def _sampler(args: argparse.Namespace) -> Any:
    from service.doctor.sampler import diagnose_sampler

    return diagnose_sampler(_config(args.words))


def _overfit(args: argparse.Namespace) -> Any:
    from service import views
    from service.doctor.overfit import diagnose_overfit

    config = _config(args.words)
    with views.progress() as show:
        return diagnose_overfit(config, samples=args.samples, epochs=args.epochs, on_progress=show)


def _cluster(args: argparse.Namespace) -> Any:
    from service.doctor.cluster import diagnose_cluster

    return diagnose_cluster(_config(args.words))


def _smoke(args: argparse.Namespace) -> Any:
    from service import views
    from service.doctor.smoke import diagnose_smoke

    config = _config(args.words)
    with views.progress() as show:
        return diagnose_smoke(config, on_progress=show)


def _run(args: argparse.Namespace) -> Any:
    from service.doctor.replay import diagnose_run

    runs = [word for word in args.words if not _THRESHOLD.match(word)]
    if len(runs) != 1:
        raise ConfigError(
            f"expected one run, found {', '.join(runs) or 'none'}; other thresholds look like "
            "--policy go=0.93"
        )
    thresholds = [word for word in args.words if _THRESHOLD.match(word)]
    return diagnose_run(runs[0], [*args.policy, *thresholds], storage=args.storage)


_LOOKS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "data": _data,
    "model": _model,
    "sampler": _sampler,
    "overfit": _overfit,
    "cluster": _cluster,
    "smoke": _smoke,
    "run": _run,
}


def _config(words: list[str]) -> Any:
    from service.orchestration.words import split_words
    from service.settings import load_config

    file, overrides = split_words(words)
    if file is None:
        raise ConfigError("expected a config file, as in configs/demo.yaml")
    return load_config(file, overrides)


def _records_or_config(words: list[str]) -> tuple[str, Any]:
    """The records to look at, and the config if a config was named."""
    from service.orchestration.words import split_words

    target, overrides = split_words(words)
    if target is None:
        raise ConfigError("expected a config or a records folder, as in runs/data/records")
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        config = _config(words)
        return config.data.records, config
    if overrides:
        raise ConfigError(f"{target} is no config, so {', '.join(overrides)} has nothing to change")
    return target, None
