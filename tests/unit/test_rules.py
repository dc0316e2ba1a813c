"""The rule files against the table of metrics, the policy's settings and the runbook."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.bounds import MIN_SDM_STEPS
from service.config import Config
from service.telemetry.lines import BY_NAME, GATES, LABELS, PREFIX, STEPS, threshold_values
from tests.alerting import ALERTMANAGER, PROMETHEUS, RUNBOOK, Rule, read_rules, read_tests, tokens
from tests.reports import CONFIG

RULES = read_rules()
ALERTS = [rule for rule in RULES if rule.kind == "alert"]
RECORDS = {rule.name for rule in RULES if rule.kind == "record"}
OF_THE_SCRAPE = {"job", "instance"}
OF_PROMETHEUS = {"up", "scrape_samples_post_metric_relabeling"}
WORDS = {
    *("and", "or", "unless", "on", "ignoring", "by", "without", "group_left", "offset"),
    *("ln", "abs", "time", "rate", "sum", "max", "count", "vector"),
    *("min_over_time", "last_over_time", "changes", "increase"),
}
FLEET = {"ExporterDown", "SeriesNearLimit", "Watchdog"}


def words(rule: Rule) -> set[str]:
    return {text for kind, text, *_ in tokens(rule.expr) if kind == "word"}


def selectors(rule: Rule) -> list[tuple[str, set[str]]]:
    """Every metric of the table in the rule, with the labels that it is chosen by."""
    found = re.findall(rf"\b{PREFIX}(\w+)(?:\{{([^}}]*)\}})?(?![\w:])", rule.expr)
    of_table = [(name, labels) for name, labels in found if f":{PREFIX}{name}:" not in rule.expr]
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|=|!=)", labels))) for name, labels in of_table]


def by_name(rules: list[Rule]) -> Any:
    return pytest.mark.parametrize("rule", rules, ids=[rule.name for rule in rules])


@by_name(RULES)
def test_a_rule_asks_only_for_metrics_and_labels_that_exist(rule: Rule):
    labels = {label for line in BY_NAME.values() for label in line.labels}
    known = WORDS | OF_PROMETHEUS | RECORDS | OF_THE_SCRAPE | {*LABELS} | labels
    known |= {PREFIX + name for name in BY_NAME}
    assert words(rule) <= known
    for name, chosen in selectors(rule):
        assert chosen <= {*LABELS, *BY_NAME[name].labels}
    gates = set(re.findall(r'gate_threshold\{gate="(\w+)"\}', rule.expr))
    assert gates <= set(GATES)
    steps = set(re.findall(r'configured_steps\{setting="([\w.]+)"\}', rule.expr))
    assert steps <= set(STEPS)


def test_names_are_unique():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)


@by_name([rule for rule in RULES if rule.kind == "record"])
def test_a_recorded_line_is_named_by_what_it_is_kept_by(rule: Rule):
    level = r"trial|trial_kind"
    assert re.fullmatch(rf"({level}):{PREFIX}[a-z_]+:[a-z0-9_]+", rule.name)


@by_name(ALERTS)
def test_an_alert_says_how_grave_it_is_what_it_is_and_where_to_read_on(rule: Rule):
    labels, notes = rule.values["labels"], rule.values["annotations"]
    assert set(labels) == {"severity", "signal", "action"}
    assert labels["severity"] in ("critical", "warning", "info")
    assert labels["action"] in ("stop", "pause", "restart", "look", "none")
    assert set(notes) == {"summary", "runbook_url"}
    assert notes["runbook_url"] == f"{RUNBOOK}#{rule.name.lower()}"
    if rule.name not in FLEET:
        assert notes["summary"].startswith("{{ $labels.run }}/{{ $labels.trial }}")


def entries() -> dict[str, str]:
    """The runbook's entries: name to text."""
    text = RUNBOOK.read_text().split("\n# Runbook\n")[1]
    parts = re.split(r"^### (\w+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert():
    assert sorted(entries()) == sorted(rule.name for rule in ALERTS)


@by_name(ALERTS)
def test_an_entry_says_meaning_look_deed_and_silence(rule: Rule):
    lines = re.split(r"^#", entries()[rule.name], maxsplit=1, flags=re.MULTILINE)[0].split("\n- ")
    heads = [line.split("**")[1] for line in lines[1:]]
    assert heads == ["Means:", "Look at:", "Do:", "Silence:"]
    assert re.search(rf"amtool silence add .* alertname={rule.name}\b", lines[-1])


def test_settings_that_the_runbook_names_exist():
    for section, field in Config.model_fields.items():
        named = set(re.findall(rf"`{section}\.(\w+)`", RUNBOOK.read_text()))
        known = getattr(field.annotation, "model_fields", {})
        assert named <= set(known)


def test_every_limit_of_the_policy_is_watched():
    used = set(re.findall(r'gate_threshold\{gate="(\w+)"\}', " ".join(r.expr for r in RULES)))
    # `margin` only keeps a verdict from flapping; `learning` only weighs a flat stretch before GO.
    assert set(GATES) - used == {"margin", "learning"}


def test_a_line_that_has_a_limit_is_held_against_that_and_not_against_a_number():
    limited = [rule for rule in ALERTS if "gate_threshold" in rule.expr]
    numbers = {rule.name: re.findall(r"[<>]=?\s*(\d[\d.]*)", rule.expr) for rule in limited}
    told = {name: found for name, found in numbers.items() if set(found) - {"0"}}
    assert told == {"Memorised": ["0.5"]}


def test_steps_are_held_against_the_runs_own_and_not_against_a_number():
    counts = r"_steps?(?:_total)?\s*[<>]=?\s*([1-9]\d*)"
    found = {rule.name: re.findall(counts, rule.expr) for rule in RULES}
    told = {name: numbers for name, numbers in found.items() if numbers}
    assert told == {"SdmNotApplied": [str(MIN_SDM_STEPS)]}


def test_the_whole_runs_have_the_default_limits_and_every_one_of_them():
    expected = threshold_values(CONFIG)
    whole = [test for _, test in read_tests() if test["name"] not in {r.name for r in ALERTS}]
    runs = [test for test in whole if any("(ALERTS" in c["expr"] for c in test["promql_expr_test"])]
    assert len(runs) == 4
    for run in runs:
        for name, label in (("gate_threshold", "gate"), ("configured_steps", "setting")):
            told = {
                (found[1],): float(series["values"].split("x")[0])
                for series in run["input_series"]
                if (found := re.search(rf'{PREFIX}{name}{{.*{label}="([\w.]+)"', series["series"]))
            }
            assert told == expected[name]


def test_every_alert_and_every_recorded_line_has_a_test():
    asked = " ".join(
        check["expr"] for _, test in read_tests() for check in test["promql_expr_test"]
    )
    assert {rule.name for rule in RULES} - set(re.findall(r"[\w:]+", asked)) == set()


@by_name([rule for rule in ALERTS if rule.name != "Watchdog"])
def test_an_alert_is_tested_firing_and_silent(rule: Rule):
    mine = [test for _, test in read_tests() if test["name"] == rule.name]
    fired = [check["exp_samples"] for test in mine for check in test["promql_expr_test"]]
    trials = {s["series"] for test in mine for s in test["input_series"]}
    assert any(fired)
    assert len(trials) > max(len(samples) for samples in fired)


def test_the_alert_before_the_sample_limit_stands_at_four_fifths_of_it():
    (expr,) = (rule.expr for rule in ALERTS if rule.name == "SeriesNearLimit")
    for path in ("prometheus.yml", "kubernetes.yml"):
        scrape = yaml.safe_load((PROMETHEUS / path).read_text())["scrape_configs"]
        assert [f"> {job['sample_limit'] * 4 // 5} " in expr for job in scrape] == [True]


@pytest.mark.parametrize("path", [PROMETHEUS / "prometheus.yml", ALERTMANAGER], ids=str)
def test_nothing_listens_or_sends_beyond_loopback_and_no_secret_stands_in_a_file(path: Path):
    text = path.read_text()
    live = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\b(?:\d+\.){3}\d+(?=:\d)", live)) == {"127.0.0.1"}
    assert set(re.findall(r"https?://([^:/]+)", live)) <= {"127.0.0.1"}
    assert not re.search(r"(?i)\b(password|credentials|token|api_key|secret|\w+_key):", text)
