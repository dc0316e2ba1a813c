"""`crossreid watch` with the real Prometheus and Alertmanager, against the real exporter."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.telemetry.series import Series, Server
from service.watching.deployment import read_deployment
from service.watching.listener import Listener, Message
from service.watching.settings import prometheus_yaml
from tests.alerting import needs, run
from tests.watch.prometheus import Prometheus
from tests.watch.watching import (
    Watch,
    eventually,
    is_alive,
    is_open,
    only,
    refused,
    started,
)

pytestmark = needs("prometheus", "promtool", "prometheus-alertmanager", "amtool")

RULES = """
groups:
  - name: own
    rules:
      - alert: StepsGone
        expr: reid_train_global_step < 0
        labels: {severity: critical, signal: life, action: restart}
        annotations:
          summary: "{{ $labels.run }}/{{ $labels.trial }} went backwards"
          runbook_url: deploy/README.md#stepsgone
      - alert: Watchdog
        expr: vector(1)
        labels: {severity: info, signal: watchdog, action: none}
"""
FIRES = "critical  StepsGone  night-1/main went backwards  deploy/README.md#stepsgone"
IS_OVER = "resolved  StepsGone  night-1/main"


class Exporter:
    """The product's own, with one trial."""

    def __init__(self, run_id: str) -> None:
        self._series, self._run = Series(), run_id
        self._series.lease(run_id, 600.0)
        self._server = Server(self._series, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.port}"
        self.step(1)

    def step(self, step: int) -> None:
        values = {
            "running": {(): 1.0},
            "global_step": {(): float(step)},
            "heartbeat_timestamp_seconds": {(): time.time()},
        }
        self._series.push(self._run, "main", values, linger_s=60.0)

    def end(self) -> None:
        self._series.release(self._run)
        self._series.end(self._run, "main")

    def close(self) -> None:
        self._server.close()


@contextmanager
def exporting(run_id: str) -> Iterator[Exporter]:
    exporter = Exporter(run_id)
    try:
        yield exporter
    finally:
        exporter.close()


def rules(folder: Path) -> Path:
    """A folder of rule files in `folder`: one that fires at once."""
    made = folder / "rules"
    made.mkdir()
    (made / "own.yml").write_text(RULES)
    return made


def up(watch: Watch) -> dict[str, float]:
    """Whether each target is up."""
    found = Prometheus(watch.url, watch.pids[0]).at("up", time.time())
    return {labels["instance"]: pairs[0][1] for labels, pairs in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watch")


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with exporting("night-1") as one:
        yield one


@pytest.fixture(scope="module")
def hooked() -> Iterator[tuple[str, list[Message]]]:
    """A chat's webhook: its URL, and what it was sent."""
    messages: list[Message] = []
    chat = Listener(messages.append)
    chat.start()
    yield chat.url, messages
    chat.close()


@pytest.fixture(scope="module")
def watch(folder: Path, exporter: Exporter, hooked: tuple[str, list[Message]]) -> Iterator[Watch]:
    """One that most tests look at; it scrapes `exporter`."""
    words = ("--target", exporter.target, "--rules", str(rules(folder)), "--webhook", hooked[0])
    with started(folder, *words, "--page", str(folder / "page.html")) as one:
        yield one


def test_both_programs_are_ready_when_their_addresses_are_told(watch: Watch):
    for name in ("prometheus", "alertmanager"):
        assert watch.facts[name]["url"].startswith("http://127.0.0.1:")
    assert all(map(is_open, watch.ports))
    assert all(map(is_alive, watch.pids))
    # Ctrl-C in a terminal reaches the command and not its children, which it ends itself.
    assert os.getsid(watch.process.pid) not in map(os.getsid, watch.pids)
    Prometheus(watch.url, watch.pids[0]).get("status/runtimeinfo")


def test_a_named_target_is_scraped_and_its_run_is_told(watch: Watch, exporter: Exporter):
    assert eventually(lambda: up(watch).get(exporter.target) == 1.0)
    assert eventually(lambda: watch.lines("night-1") and watch.lines("running"))
    assert "running   night-1" in watch.lines("night-1")


def test_a_run_that_starts_later_is_found_by_its_file_and_told_when_it_is_over(
    watch: Watch, folder: Path
):
    file = folder / "runs/exporters/late-2.json"
    with exporting("late-2\x1b[2J") as late:
        file.write_text(json.dumps([{"targets": [late.target]}]))
        assert eventually(lambda: up(watch).get(late.target) == 1.0)
        assert eventually(lambda: watch.lines("late-2"))
        late.end()
        assert eventually(lambda: watch.lines("over"))
    # The name is another's words: it must not reach the terminal as a command.
    name = "late-2\N{REPLACEMENT CHARACTER}[2J"
    told = [f"running   {name}", f"over      {name} has ended"]
    assert [line for line in watch.lines("late-2") if "page" not in line] == told


def test_an_alert_reaches_terminal_and_webhook_once_and_so_does_its_end(
    watch: Watch, exporter: Exporter, hooked: tuple[str, list[Message]]
):
    exporter.step(-1)
    assert eventually(lambda: watch.lines("StepsGone"))
    # It goes to two receivers, oncall and controller: both have been told by then.
    time.sleep(1.0)
    exporter.step(2)
    assert eventually(lambda: len(watch.lines("StepsGone")) > 1)
    time.sleep(1.0)
    assert watch.lines("StepsGone") == [FIRES, IS_OVER]
    assert "Watchdog" not in watch.said()

    def sent() -> list[tuple[str, str]]:
        return [(a["labels"]["alertname"], a["status"]) for m in hooked[1] for a in m["alerts"]]

    assert eventually(lambda: len(sent()) > 1)
    assert sent() == [("StepsGone", "firing"), ("StepsGone", "resolved")]


def test_the_settings_are_what_promtool_and_amtool_accept(watch: Watch):
    data = Path(watch.facts["data"])
    for words in (
        ("promtool", "check", "config", str(data / "prometheus.yml")),
        ("amtool", "check-config", str(data / "alertmanager.yml")),
    ):
        is_content, said = run(*words)
        assert is_content, said


def test_a_folder_with_signs_of_a_pattern_in_its_name_is_read_as_it_is(tmp_path: Path):
    folder = tmp_path / "a [b] c? d\\e"
    (folder / "exporters").mkdir(parents=True)
    (folder / "exporters/one.json").write_text('[{"targets": ["127.0.0.1:9110"]}]')
    settings = prometheus_yaml(
        read_deployment(None).prometheus,
        every_s=5,
        targets=[],
        target_files=folder / "exporters",
        rules=list(rules(folder).iterdir()),
        alertmanager=None,
    )
    (tmp_path / "prometheus.yml").write_text(settings)
    is_content, said = run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    assert is_content, said
    assert "1 rule files found" in said
    assert "WARNING" not in said


def test_the_page_is_drawn_as_soon_as_there_is_a_run_and_that_is_said_once(
    watch: Watch, folder: Path
):
    file = folder / "page.html"
    assert eventually(lambda: watch.lines("page ") and "night-1" in watch.lines("page ")[-1])
    assert "night-1" in file.read_text()
    said = watch.lines("page ")
    assert said[-1] == f"page      {file} shows night-1"
    assert len(set(said)) == len(said)


def test_a_page_of_a_prometheus_that_runs_is_drawn_once(
    watch: Watch, exporter: Exporter, tmp_path: Path
):
    assert eventually(lambda: up(watch).get(exporter.target) == 1.0)
    file = tmp_path / "once.html"
    words = ("--prometheus", watch.url, "--page", str(file), "--run", "night-1", "--hours", "1")
    # A proxy of the environment knows nothing of this machine's loopback.
    env = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
    done = refused(tmp_path, *words, "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"page": str(file), "run": "night-1"}
    assert "night-1" in file.read_text()
    done = refused(tmp_path, "--prometheus", watch.url, "--page", str(file), "--run", "none")
    assert done.returncode == 2
    assert "knows no run 'none'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_second_watch_on_the_same_history_is_refused(watch: Watch, folder: Path):
    done = refused(folder, "--port", "0", "--alertmanager-port", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"another crossreid watch keeps its history in {folder}/runs/watch" in done.stderr
    assert "--data FOLDER" in done.stderr
    assert all(map(is_alive, watch.pids))


@pytest.mark.parametrize("option", ["--port", "--alertmanager-port"])
def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path, option: str):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = ("--port", "0", "--alertmanager-port", "0", option, port)
        done = refused(tmp_path, *words)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} is taken" in done.stderr
    assert f"{option} 0" in done.stderr
    assert not (tmp_path / "runs/watch/prometheus").exists()


def test_ctrl_c_leaves_no_process_and_no_port_but_the_history(tmp_path: Path):
    own = rules(tmp_path)
    with exporting("night-1") as exporter:
        words = ("--target", exporter.target, "--rules", str(own))
        exporter.step(-1)
        with started(tmp_path, *words) as first:
            assert eventually(lambda: first.lines("StepsGone"))
            before = time.time()
            assert first.end(signal.SIGINT) == 0
            assert not any(map(is_alive, first.pids))
            assert not any(map(is_open, first.ports))
            assert "ended; the history stays" in first.said()
        with started(tmp_path, *words) as second:
            past = Prometheus(second.url, second.pids[0]).at("reid_train_global_step", before)
            assert [pairs[0][1] for _, pairs in past] == [-1.0]
            # A new terminal has not been told yet.
            assert eventually(lambda: second.lines("StepsGone") == [FIRES])
            second.process.send_signal(signal.SIGTERM)
            assert second.end(signal.SIGINT) == 0
            assert not any(map(is_alive, second.pids))


def test_kill_9_of_the_command_ends_its_children(tmp_path: Path):
    with started(tmp_path) as watch:
        assert watch.end(signal.SIGKILL) == -signal.SIGKILL
        assert eventually(lambda: not any(map(is_alive, watch.pids)))
        assert eventually(lambda: not any(map(is_open, watch.ports)))


def test_a_program_that_dies_ends_the_command_with_its_last_words(tmp_path: Path):
    with started(tmp_path) as watch:
        os.kill(watch.pids[0], signal.SIGKILL)
        assert watch.process.wait(timeout=60) == 2
        assert "WatchError: Prometheus ended by itself with signal 9" in watch.said()
        assert watch.facts["prometheus"]["log"] in watch.said()
        assert not any(map(is_alive, watch.pids))


def test_rules_that_prometheus_refuses_are_shown_in_its_own_words(tmp_path: Path):
    own = rules(tmp_path)
    (own / "wrong.yml").write_text("groups: [{name: w, rules: [{alert: A, expr: 'up =='}]}]")
    done = refused(tmp_path, "--port", "0", "--alertmanager-port", "0", "--rules", str(own))
    assert done.returncode == 2
    assert "wrong.yml" in done.stderr
    assert "parse error" in done.stderr


def test_without_prometheus_it_says_what_to_install(tmp_path: Path):
    done = refused(tmp_path, env=only(tmp_path / "bin"))
    assert done.returncode == 2
    assert "no prometheus on the PATH" in done.stderr
    assert "Debian's package prometheus" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prometheus_that_is_too_old_is_named_with_its_version(tmp_path: Path):
    env = only(tmp_path / "bin", prometheus="echo 'prometheus, version 2.37.9 (branch: x)'")
    done = refused(tmp_path, env=env)
    assert done.returncode == 2
    assert f"{tmp_path}/bin/prometheus is 2.37.9" in done.stderr
    assert "2.42 or newer" in done.stderr


def test_without_alertmanager_it_goes_on_and_says_so(tmp_path: Path):
    prometheus = shutil.which("prometheus")
    assert prometheus
    env = only(tmp_path / "bin", prometheus=Path(prometheus))
    with started(tmp_path, env=env) as watch:
        assert watch.facts["alertmanager"] is None
        assert "no alertmanager or prometheus-alertmanager" in watch.facts["alertmanager_lacks"]
        assert "without Alertmanager alerts are seen on Prometheus' page only" in watch.said()
        Prometheus(watch.url, watch.pids[0]).get("status/runtimeinfo")
        assert watch.end() == 0


def test_people_are_shown_where_everything_is_and_how_to_stop(tmp_path: Path):
    with started(tmp_path, as_json=False) as watch:
        heads = [line.split("  ")[0] for line in watch.shown]
        assert heads[:5] == ["Prometheus", "Alertmanager", "scrapes", "rules", "history"]
        assert f"{tmp_path}/runs/exporters" in watch.shown[2]
        assert f"{tmp_path}/runs/watch" in watch.shown[4]
        assert "Ctrl-C ends this" in watch.shown[-1]
        assert watch.end() == 0
