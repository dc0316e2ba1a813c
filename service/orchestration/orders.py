"""What a job for a cluster is to do, settled where it is submitted and before anybody is asked.

A run's name is made here and travels with its resolved config, so that every later command, and
every later attempt, means the same run. Nothing here loads Ray: mistakes are told at once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from service.config import Config
from service.errors import ConfigError
from service.orchestration.job import Job, jobs_of
from service.orchestration.packing import CONFIG_FILE
from service.orchestration.passwords import refuse_passwords
from service.orchestration.runs import absolute, check_run_id, new_run_id, plan_run, resolved
from service.orchestration.space import check_space
from service.orchestration.words import parse_size
from service.redaction import shown_url
from service.settings import load_config, override

_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True)
class Order:
    """One job, settled but not sent.

    kind: train, tune, evaluate or ingest. words: the job's module and arguments. run: its name.
    folder: the run's, on the cluster; empty for an ingest. is_new: no run of that name may be
    there. config: that of the run, None where only the cluster knows it. places: folders that the
    cluster must see, by setting.
    """

    kind: str
    run: str
    words: tuple[str, ...]
    folder: str = ""
    is_new: bool = False
    config: Config | None = None
    places: tuple[tuple[str, str], ...] = ()


def order_new(kind: str, file: str, overrides: list[str], run_id: str | None) -> Order:
    """A new training or sweep.

    Raises:
        ConfigError, RunError: what is wrong with config, name or storage, as far as is seen here.
    """
    config = _fit_to_travel(load_config(file, overrides))
    if kind == "tune":
        check_space(config)
    run = plan_run(config, run_id, can_resume=kind == "train")
    words = (f"jobs.{kind}", CONFIG_FILE, "--run-id", run.run_id, "--new")
    places = _places(run.config)
    return Order(kind, run.run_id, words, str(run.path), True, run.config, places)


def order_resume(kind: str, run: str, file: str, overrides: list[str]) -> Order:
    """A training or sweep that goes on with a config given here. run: its id or folder.

    Raises:
        ConfigError: what is wrong with the config.
    """
    config = resolved(_fit_to_travel(load_config(file, overrides)))
    refuse_passwords(config.model_dump())
    check_run_id(Path(run).name)
    folder = absolute(run) if "/" in run else f"{config.run.storage}/{run}"
    words = (f"jobs.{kind}", CONFIG_FILE, "--resume", folder)
    return Order(kind, Path(folder).name, words, folder, False, config, _places(config))


def order_known(kind: str, folder: str, overrides: list[str]) -> Order:
    """A training or sweep in `folder` on the cluster, that goes on with the config it has there.

    Raises:
        ConfigError: an override holds a password.
    """
    refuse_passwords({name: value for name, _, value in (w.partition("=") for w in overrides)})
    words = (f"jobs.{kind}", "--resume", folder, *overrides)
    return Order(kind, Path(folder).name, words, folder)


def order_evaluation(folder: str, checkpoint: str) -> Order:
    """An evaluation of the run in `folder` on the cluster. checkpoint: last, best, or a step."""
    words = ("jobs.evaluate", folder, "--checkpoint", checkpoint)
    return Order("evaluate", Path(folder).name, words, folder)


def order_ingest(folder: str, records: str, size: str) -> Order:
    """An ingest of `folder` into `records`, both as the cluster sees them.

    Raises:
        ConfigError: the size is none, or a place holds a password.
    """
    parse_size(size)
    refuse_passwords({"FOLDER": folder, "RECORDS": records})
    source, target = absolute(folder), absolute(records)
    places = tuple(("folder", place) for place in (source, target) if "://" not in place)
    words = ("jobs.ingest", source, target, size)
    return Order("ingest", new_run_id("ingest"), words, places=places)


def find_folder(known: Sequence[Job], run: str, storage: str) -> str:
    """Where the cluster has `run`, an id or a folder: as its jobs say, else below `storage`.

    known: the cluster's jobs, oldest first.

    Raises:
        RunError: it is no run's name.
    """
    check_run_id(Path(run).name)
    if "/" in run:
        return absolute(run)
    return jobs_of(known, run).folder or f"{absolute(storage)}/{run}"


def check_address(address: str | None) -> str:
    """The dashboard's address: the one given, else what Ray's variables say.

    Raises:
        ConfigError: there is none, or it is no http address.
    """
    found = address or find_address()
    if not found:
        raise ConfigError(
            "which cluster? Give --address http://HEAD:8265, the address of its dashboard, or set "
            f"{_ADDRESSES[0]} to it; {_ADDRESSES[1]} counts too where it begins with http"
        )
    if not _is_http(found):
        raise ConfigError(
            f"--address {found} must be that of the dashboard, as in http://HEAD:8265; Ray's other "
            "ports take no jobs"
        )
    if not _is_host_and_port(found):
        raise ConfigError(
            f"--address {shown_url(found)} must be no more than http://HOST:PORT; the token is "
            "taken from RAY_AUTH_TOKEN or a file"
        )
    return found


def find_address() -> str:
    """The dashboard's address as Ray's variables say it; empty where they do not."""
    there = [os.environ.get(name, "") for name in _ADDRESSES]
    return next((value for value in there if _is_http(value)), "")


def _is_host_and_port(address: str) -> bool:
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_host and "@" not in parts.netloc and not parts.query


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _fit_to_travel(config: Config) -> Config:
    """Without the address of a cluster, since the job runs inside one, and with weights by their
    whole path."""
    changes = ["cluster.address=null"]
    weights = config.model.backbone.pretrained
    if weights is not None and os.path.isfile(os.path.expanduser(weights)):
        changes.append(f"model.backbone.pretrained={absolute(weights)!r}")
    return override(config, changes)


def _places(config: Config) -> tuple[tuple[str, str], ...]:
    """The folders and files that the cluster must see under the same path."""
    places = {
        "run.storage": config.run.storage,
        "data.records": config.data.records,
        "run.checkpoints": config.run.checkpoints,
        "model.backbone.pretrained": config.model.backbone.pretrained,
    }
    return tuple((name, place) for name, place in places.items() if place and place[0] == "/")
