"""Prometheus' own checks of the configuration, and its tests of every rule."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alerting import PROMETHEUS, needs, promtool, read_rules, read_tests, run

pytestmark = needs("promtool")
ALERTS = [rule for rule in read_rules() if rule.kind == "alert"]


def test_the_configuration_and_its_rules_are_read():
    is_content, said = run("promtool", "check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert is_content, said
    assert "3 rule files found" in said


def test_the_scrape_for_kubernetes_is_read(tmp_path: Path):
    """Debian's Prometheus knows no Kubernetes, so another discovery stands in for it."""
    config = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [
        {"role": "pod", "namespaces": {"names": ["crossreid"]}}
    ]
    job["static_configs"] = [{"targets": ["127.0.0.1:9109"]}]
    config["rule_files"] = []
    (tmp_path / "p.yml").write_text(yaml.safe_dump(config))
    is_content, said = run("promtool", "check", "config", str(tmp_path / "p.yml"))
    assert is_content, said


def test_the_example_of_more_targets_is_read(tmp_path: Path):
    (tmp_path / "targets").mkdir()
    example = (PROMETHEUS / "targets/clusters.yml.example").read_text()
    (tmp_path / "targets/clusters.yml").write_text(example)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (tmp_path / "p.yml").write_text(yaml.safe_dump({**config, "rule_files": []}))
    is_content, said = run("promtool", "check", "config", str(tmp_path / "p.yml"))
    assert is_content, said
    assert "WARNING" not in said


@pytest.mark.parametrize("path", sorted(PROMETHEUS.glob("tests/*.yml")), ids=lambda p: p.name)
def test_rules_do_what_their_tests_say(path: Path):
    is_content, said = run("promtool", "test", "rules", str(path))
    assert is_content, said


def test_every_summary_can_be_written(tmp_path: Path):
    """promtool prints what fires where nothing was expected, with its texts filled in."""
    (tmp_path / "rules").symlink_to((PROMETHEUS / "rules").resolve())
    tests = [expecting_nothing(test) for _, test in read_tests() if fired(test)]
    head, _ = next(read_tests())
    is_content, said = promtool(tmp_path, head, tests)
    assert not is_content
    texts = dict(re.findall(r'alertname="(\w+)".*?summary="(.*?)"\}', said, re.DOTALL))
    assert set(texts) == {rule.name for rule in ALERTS}
    unread = [f"{name}: {text}" for name, text in texts.items() if re.search(r"<|%!|\{\{", text)]
    assert unread == []


def fired(test: dict[str, Any]) -> list[str]:
    """The times at which the test's alert fires; none for a test of no alert."""
    if test["name"] not in {rule.name for rule in ALERTS}:
        return []
    return [c["eval_time"] for c in test["promql_expr_test"] if c["exp_samples"]]


def expecting_nothing(test: dict[str, Any]) -> dict[str, Any]:
    silent = {"alertname": test["name"], "eval_time": fired(test)[0], "exp_alerts": []}
    return {
        "interval": test["interval"],
        "input_series": test["input_series"],
        "alert_rule_test": [silent],
    }
