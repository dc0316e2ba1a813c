"""Who hears of which alert, and which alerts silence others: asked of Alertmanager itself."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.alerting import ALERTMANAGER, Rule, needs, read_rules, run

pytestmark = needs("amtool", "prometheus-alertmanager")
ALERTS = {rule.name: rule for rule in read_rules() if rule.kind == "alert"}


def receivers(**labels: str) -> str:
    said = run(
        *("amtool", "config", "routes", "test", "--config.file", str(ALERTMANAGER)),
        *(f"{name}={value}" for name, value in labels.items()),
    )[1]
    return next(line for line in said.splitlines() if not line.startswith("Warning"))


def expected(rule: Rule) -> str:
    """The oracle: by signal, then by action and severity."""
    labels = rule.values["labels"]
    if labels["signal"] == "watchdog":
        return "deadman"
    by_severity = {"critical": "oncall", "warning": "team", "info": "log"}[labels["severity"]]
    acts = labels["action"] in ("stop", "pause", "restart")
    return f"controller,{by_severity}" if acts else by_severity


def test_the_configuration_is_read():
    is_content, said = run("amtool", "check-config", str(ALERTMANAGER))
    assert is_content, said


def test_every_alert_reaches_whom_it_should():
    kinds = {tuple(rule.values["labels"].values()): rule for rule in ALERTS.values()}
    found = {r.name: receivers(**r.values["labels"]) for r in kinds.values()}
    assert found == {rule.name: expected(rule) for rule in kinds.values()}


@pytest.mark.parametrize(
    ("name", "of_a_training", "of_a_sweep"),
    [
        ("NoGo", "team", "log"),
        ("TrainingError", "oncall", "team"),
        ("TrainingStalled", "controller,oncall", "controller,oncall"),
        ("Paused", "team", "team"),
    ],
)
def test_a_trial_of_a_sweep_that_ends_wakes_nobody(name: str, of_a_training: str, of_a_sweep: str):
    labels = ALERTS[name].values["labels"]
    assert receivers(alertname=name, run="r", trial="main", **labels) == of_a_training
    assert receivers(alertname=name, run="r", trial="trial_00001", **labels) == of_a_sweep


def test_an_alert_that_is_not_ours_reaches_the_team():
    assert receivers(alertname="Other") == "team"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An Alertmanager on loopback with our inhibition, which sends to nobody."""
    folder = tmp_path_factory.mktemp("alertmanager")
    config = yaml.safe_load(ALERTMANAGER.read_text())
    config["receivers"] = [{"name": receiver["name"]} for receiver in config["receivers"]]
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus-alertmanager",
                f"--config.file={folder / 'config.yml'}",
                f"--storage.path={folder}",
                f"--web.listen-address={place}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_ready(f"http://{place}", folder / "log")
        yield f"http://{place}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def wait_until_ready(address: str, log: Path) -> None:
    for _ in range(100):
        try:
            urlopen(f"{address}/-/ready", timeout=1).close()
        except URLError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def tell(address: str, instance: str, *alerts: tuple[str, str]) -> None:
    """Raise alerts of the run `instance`: name and trial, or `-` for none. The run's name is the
    exporter's address too, so that tests do not meet."""
    body = [
        {
            "labels": {
                "alertname": name,
                "job": "crossreid",
                "instance": instance,
                **({} if trial == "-" else {"run": instance, "trial": trial}),
                **ALERTS[name].values["labels"],
            }
        }
        for name, trial in alerts
    ]
    headers = {"Content-Type": "application/json"}
    request = Request(f"{address}/api/v2/alerts", json.dumps(body).encode(), headers)
    urlopen(request, timeout=5).close()


def unsilenced(address: str, instance: str) -> set[str]:
    with urlopen(f"{address}/api/v2/alerts?filter=instance={instance}", timeout=5) as answer:
        return {
            alert["labels"]["alertname"]
            for alert in json.load(answer)
            if not alert["status"]["inhibitedBy"]
        }


def heard(address: str, run_id: str, *names: str, **others: str) -> set[str]:
    """Which of these alerts of the main trial are not silenced. `others`: name to another trial, or
    to `-` for none.

    Alertmanager takes alerts in their order but silences in its own time: once a pair that was told
    after them is silenced, so is whatever of them will be.
    """
    tell(address, run_id, *((name, "main") for name in names), *others.items())
    tell(address, f"after-{run_id}", ("TrainingVanished", "main"), ("DataBound", "main"))
    for _ in range(300):
        if unsilenced(address, f"after-{run_id}") == {"TrainingVanished"}:
            return unsilenced(address, run_id)
        time.sleep(0.1)
    raise AssertionError("Alertmanager silences nothing")


@pytest.mark.parametrize(
    "life", sorted(name for name, r in ALERTS.items() if r.values["labels"]["signal"] == "life")
)
def test_a_trial_that_ended_died_or_stands_says_nothing_else(address: str, life: str):
    found = heard(address, f"life-{life}", life, "DataBound", "CrossEntropyAtChance", "NotFinite")
    assert found == {life}


def test_a_grave_alert_silences_the_lesser_of_its_signal_alone(address: str):
    found = heard(
        address, "grave", "CrossEntropyAtChance", "CrossEntropyRebound", "KindAtChance", "DataBound"
    )
    assert found == {"CrossEntropyAtChance", "DataBound"}


def test_a_dead_trial_does_not_silence_another_nor_the_exporter(address: str):
    found = heard(address, "others", "TrainingVanished", DataBound="second", ExporterDown="-")
    assert found == {"TrainingVanished", "DataBound", "ExporterDown"}


def test_without_a_graver_one_everything_is_heard(address: str):
    names = {"DataBound", "ThroughputFallen", "CrossEntropyRebound", "KindAtChance", "Rollback"}
    assert heard(address, "alone", *names) == names
