"""The words of `crossreid watch`, and what its terminal shows."""

import argparse
import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.cli_words import Command
from service.errors import ConfigError, ExitCode, WatchError

_PAGE_S = 15.0
"""Seconds between two drawings of the page."""
_LOOK_S = 1.0
_EPILOG = """\
Starts Prometheus and Alertmanager on this machine with the rules of deploy/ and tells every alert
here. Runs of --storage on this machine are found by themselves. Ctrl-C ends both programs; the
history stays and is there again the next time.
"""


# -- the words -------------------------------------------------------------------------------------


def add_watch(commands: Any, command: Command) -> None:
    """The subparser of `watch`."""
    parser = command(commands, "watch", _watch, "see runs and alerts on this machine, no Grafana")
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--storage", default="runs", metavar="FOLDER", help="the runs' folder (%(default)s)")
    add(
        "--target",
        action="append",
        default=[],
        type=_host_port,
        metavar="HOST:PORT",
        help="an exporter to scrape as well; may be repeated",
    )
    add(
        "--every",
        type=_seconds,
        default=5,
        metavar="S",
        help="seconds between scrapes (%(default)s)",
    )
    add("--port", type=_port, default=9090, help="of Prometheus; 0 is any free one (%(default)s)")
    add("--alertmanager-port", type=_port, default=9093, metavar="PORT", help="(%(default)s)")
    add("--listen", default="127.0.0.1", metavar="HOST", help="address of both (%(default)s)")
    add("--data", metavar="FOLDER", help="where the history is kept (STORAGE/watch)")
    add("--rules", type=Path, metavar="FOLDER", help="of rule files (deploy/prometheus/rules)")
    add("--webhook", type=_url, metavar="URL", help="tell alerts there as well")
    page = parser.add_argument_group("a page of one run, in one HTML file")
    page.add_argument("--page", type=Path, metavar="FILE", help="draw it every 15 s")
    page.add_argument(
        "--prometheus",
        type=_url,
        metavar="URL",
        help="with --page: draw it once from this Prometheus and start nothing",
    )
    page.add_argument("--run", dest="run_name", metavar="RUN", help="the newest without this")
    page.add_argument("--trial", help="one trial of a sweep")
    page.add_argument("--hours", type=_hours, help="how much of the past (6)")


def _host_port(word: str) -> str:
    parts = urlsplit(f"//{word}")
    try:
        is_place = bool(parts.hostname and parts.port) and parts.netloc == word
    except ValueError:
        is_place = False
    if not is_place or "@" in word:
        raise argparse.ArgumentTypeError(
            f"expected HOST:PORT, as in 127.0.0.1:9109; found {word!r}"
        )
    return word


def _url(word: str) -> str:
    parts = urlsplit(word)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"expected http://... or https://..., found {word!r}")
    return word


def _port(word: str) -> int:
    number = int(word) if word.isdecimal() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, found {word!r}")
    return number


def _seconds(word: str) -> int:
    number = int(word) if word.isdecimal() else 0
    if not 1 <= number <= 120:
        raise argparse.ArgumentTypeError(f"expected whole seconds from 1 to 120, found {word!r}")
    return number


def _hours(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number <= 24 * 365:
        raise argparse.ArgumentTypeError(
            f"expected hours above 0, at most a year of them; found {word!r}"
        )
    return number


# -- the command -----------------------------------------------------------------------------------


def _watch(args: argparse.Namespace) -> int:
    if args.page is None:
        for option, value in _page_options(args).items():
            if value is not None:
                raise ConfigError(f"{option} says what --page FILE draws; add that")
    if args.prometheus is not None:
        return _draw_once(args)
    return _watch_here(args)


def _draw_once(args: argparse.Namespace) -> int:
    run = _draw(args, args.prometheus, again_s=0.0)
    values = {"page": str(args.page.absolute()), "run": run}
    sys.stdout.write(json.dumps(values) + "\n" if args.json else f"{args.page}: run {run}\n")
    return ExitCode.OK


def _watch_here(args: argparse.Namespace) -> int:
    """Watches until Ctrl-C or SIGTERM, which is how this ends well."""
    from service.watching.interrupts import Interrupts
    from service.watching.session import watching

    asked = _asked(args)
    with Interrupts() as interrupts:
        with watching(asked, _tell, interrupts) as session:
            if not interrupts.wait(0):
                _show(args, session.to_dict())
            page = _Page(args, session.url)
            while not interrupts.wait(_LOOK_S):
                for line in session.look():
                    _tell(line)
                page.draw_in_time()
        _tell(f"ended; the history stays in {asked.data}")
    return ExitCode.OK


def _asked(args: argparse.Namespace) -> Any:
    from service.watching.session import Asked

    if "://" in args.storage:
        raise ConfigError(f"--storage is a folder of this machine; found the URL {args.storage}")
    storage = Path(args.storage).expanduser().absolute()
    data = storage / "watch" if args.data is None else Path(args.data).expanduser().absolute()
    return Asked(
        storage=storage,
        data=data,
        rules=args.rules,
        targets=tuple(dict.fromkeys(args.target)),
        every_s=args.every,
        listen=args.listen,
        port=args.port,
        alertmanager_port=args.alertmanager_port,
        webhook=args.webhook,
    )


# -- the page --------------------------------------------------------------------------------------


class _Page:
    """The page that is drawn again and again; what it shows, or why there is none, is said once."""

    def __init__(self, args: argparse.Namespace, url: str) -> None:
        self._args, self._url = args, url
        self._next = time.monotonic()
        self._said = ""

    def draw_in_time(self) -> None:
        """Draws it if there is one and its time has come."""
        if self._args.page is None or time.monotonic() < self._next:
            return
        try:
            run = _draw(self._args, self._url, again_s=_PAGE_S)
            line = f"{'page':<8}  {self._args.page} shows {run}"
        except WatchError as error:
            line = f"no page yet: {error}"
        if line != self._said:
            _tell(line)
        self._said = line
        self._next = time.monotonic() + _PAGE_S


def _draw(args: argparse.Namespace, url: str, again_s: float) -> str:
    """Writes the page, which a browser loads again after `again_s`; the name of its run."""
    from service.watching.page import write_page

    return write_page(
        url,
        args.page,
        run=args.run_name,
        trial=args.trial,
        hours=args.hours or 6.0,
        every_s=again_s,
    )


def _page_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "--prometheus": args.prometheus,
        "--run": args.run_name,
        "--trial": args.trial,
        "--hours": args.hours,
    }


# -- the output ------------------------------------------------------------------------------------


def _show(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Where everything is, on standard output: one line of JSON for machines, else a table."""
    if args.page is not None:
        values["page"] = str(args.page.absolute())
    sys.stdout.write((json.dumps(values) if args.json else _table(values)) + "\n")
    sys.stdout.flush()


def _table(values: dict[str, Any]) -> str:
    from service.watching.orders import KEPT

    alertmanager, folder = values["alertmanager"], Path(values["rules"][0]).parent
    targets = f"what the runs name in {values['target_files']}"
    rows = {
        "Prometheus": f"{values['prometheus']['url']}  (its menu has Alerts and Targets)",
        "Alertmanager": f"{alertmanager['url']}  (for amtool --alertmanager.url)"
        if alertmanager
        else "none, so alerts are not told here",
        "scrapes": f"{' and '.join([*values['targets'], targets])}, every {values['every_s']} s",
        "rules": f"{folder} ({len(values['rules'])} files)",
        "history": f"{values['data']} (at most {KEPT['time']} or {KEPT['size']})",
        "page": values.get("page", ""),
    }
    wide = max(map(len, rows))
    lines = [f"{name:<{wide}}  {text}" for name, text in rows.items() if text]
    told = "Alerts are told below. " if alertmanager else ""
    lines.append(f"{told}Ctrl-C ends this; the history stays.")
    return "\n".join(lines)


def _tell(line: str) -> None:
    """A line with its time on standard error. Labels are others' words: they move no cursor."""
    from service.telemetry.logs import redacted

    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in redacted(line))
    sys.stderr.write(f"{datetime.now():%H:%M:%S}  {plain}\n")
    sys.stderr.flush()
