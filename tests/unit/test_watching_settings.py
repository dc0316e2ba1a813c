"""The settings for watching against the deployed ones, from which they are taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.errors import WatchError
from service.orchestration.serving import TARGETS
from service.watching.deployment import Deployment, read_deployment
from service.watching.session import TARGET_FILES
from service.watching.settings import alertmanager_yaml, prometheus_yaml

DEPLOYED = read_deployment(None)
JOB: dict[str, Any] = DEPLOYED.prometheus["scrape_configs"][0]
LISTENER = "http://127.0.0.1:1234/alerts"


def prometheus(deployed: Deployment = DEPLOYED, **changed: Any) -> dict[str, Any]:
    asked = {
        "every_s": 5,
        "targets": ["127.0.0.1:9109"],
        "target_files": Path("/storage/exporters"),
        "rules": deployed.rules,
        "alertmanager": "127.0.0.1:9093",
        **changed,
    }
    return yaml.safe_load(prometheus_yaml(deployed.prometheus, **asked))


def alertmanager(**changed: Any) -> dict[str, Any]:
    text = alertmanager_yaml(DEPLOYED.alertmanager, listener=LISTENER, **changed)
    return yaml.safe_load(text)


def routes(route: dict[str, Any]) -> list[dict[str, Any]]:
    return [route, *(deeper for below in route.get("routes", []) for deeper in routes(below))]


@given(st.integers(1, 120), st.lists(st.from_regex(r"[a-z]+:[1-9][0-9]{3}", fullmatch=True)))
def test_the_scrape_keeps_the_deployed_limits_and_takes_what_was_asked(
    every_s: int, targets: list[str]
):
    found = prometheus(every_s=every_s, targets=targets)
    (job,) = found["scrape_configs"]
    found_limits = {key: job[key] for key in job if "limit" in key}
    assert found_limits == {key: JOB[key] for key in JOB if "limit" in key} != {}
    assert job["job_name"] == JOB["job_name"]
    assert job["static_configs"] == [{"targets": targets}]
    assert job["file_sd_configs"][0]["files"] == ["/storage/exporters/*.json"]
    assert found["global"] == dict.fromkeys(
        ("scrape_interval", "evaluation_interval"), f"{every_s}s"
    )


def test_every_deployed_rule_file_is_loaded_by_its_whole_path():
    found = [Path(path) for path in prometheus()["rule_files"]]
    assert found == sorted(Path("deploy/prometheus/rules").absolute().glob("*.yml"))
    assert DEPLOYED.has_watchdog


def test_without_an_alertmanager_alerts_are_sent_nowhere():
    assert "alerting" not in prometheus(alertmanager=None)


def test_target_files_are_looked_for_where_drivers_write_them():
    assert TARGET_FILES == TARGETS


def test_a_folder_whose_name_prometheus_would_misread_is_refused():
    with pytest.raises(WatchError, match=r"/a\*b/exporters"):
        prometheus(target_files=Path("/a*b/exporters"))


def test_settings_without_our_scrape_are_refused():
    other = replace(DEPLOYED, prometheus={"scrape_configs": [{"job_name": "other"}]})
    with pytest.raises(WatchError, match="job_name: crossreid"):
        prometheus(deployed=other)


def test_every_receiver_is_the_terminals_listener():
    found = alertmanager()["receivers"]
    names = [receiver["name"] for receiver in DEPLOYED.alertmanager["receivers"]]
    hook = {"url": LISTENER, "send_resolved": True}
    assert found == [{"name": name, "webhook_configs": [hook]} for name in names]


def test_routes_and_inhibition_are_the_deployed_ones_without_their_waits():
    found = alertmanager()
    waits = ("group_wait", "group_interval")
    for here, there in zip(
        routes(found["route"]), routes(DEPLOYED.alertmanager["route"]), strict=True
    ):
        same = {key for key in there if key not in (*waits, "routes")}
        assert {key: here[key] for key in same} == {key: there[key] for key in same}
    assert [key for route in routes(found["route"]) for key in waits if key in route] == [*waits]
    assert (found["route"]["group_wait"], found["route"]["group_interval"]) == ("2s", "5s")
    assert found["inhibit_rules"] == DEPLOYED.alertmanager["inhibit_rules"]


def test_a_webhook_gets_every_alert_once_before_the_terminal_does():
    url = "https://chat.example.org/hook?a=b&c: d"
    found = alertmanager(webhook=url)
    name = found["receivers"][-1]["name"]
    hooks = [(r["name"], h["url"]) for r in found["receivers"] for h in r["webhook_configs"]]
    assert [hook for hook in hooks if hook[1] == url] == [(name, url)]
    first, *others = found["route"]["routes"]
    assert first == {"receiver": name, "matchers": ["signal != watchdog"], "continue": True}
    assert others == alertmanager()["route"]["routes"]


def test_rules_of_a_copy_bring_that_copys_scrape_and_routes(tmp_path: Path):
    copy(Path("deploy"), tmp_path)
    (tmp_path / "prometheus/prometheus.yml").write_text(
        "scrape_configs: [{job_name: crossreid, sample_limit: 7}]"
    )
    found = read_deployment(tmp_path / "prometheus/rules")
    assert prometheus(found)["scrape_configs"][0]["sample_limit"] == 7
    assert all(path.is_relative_to(tmp_path) for path in found.rules)


def test_rules_elsewhere_keep_the_scrape_of_this_checkout(tmp_path: Path):
    (tmp_path / "own.yml").write_text("groups: []")
    found = read_deployment(tmp_path)
    assert found.rules == (tmp_path / "own.yml",)
    assert found.prometheus == DEPLOYED.prometheus
    assert not found.has_watchdog


def test_a_folder_without_rules_is_named(tmp_path: Path):
    with pytest.raises(WatchError, match=f"{tmp_path} holds no rule file"):
        read_deployment(tmp_path)


def test_without_a_checkout_the_option_that_helps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As if the package were installed without the folder beside it."""
    monkeypatch.setattr("service.__file__", str(tmp_path / "site/service/__init__.py"))
    with pytest.raises(WatchError, match=rf"{tmp_path}/site/deploy lack.*--rules FOLDER"):
        read_deployment(None)


@pytest.mark.parametrize("text", ["a: [", "- a list", ""])
def test_deployed_settings_that_are_none_are_named(tmp_path: Path, text: str):
    copy(Path("deploy"), tmp_path)
    (tmp_path / "alertmanager/alertmanager.yml").write_text(text)
    with pytest.raises(WatchError, match=r"alertmanager/alertmanager\.yml"):
        read_deployment(tmp_path / "prometheus/rules")


def copy(deploy: Path, to: Path) -> None:
    for name in ("prometheus/prometheus.yml", "alertmanager/alertmanager.yml"):
        (to / name).parent.mkdir(parents=True)
        (to / name).write_text((deploy / name).read_text())
    (to / "prometheus/rules").mkdir()
    (to / "prometheus/rules/alive.yml").write_text("groups: []")
