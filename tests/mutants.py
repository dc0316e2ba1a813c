"""Slightly wrong rules: one threshold, duration, comparison or conjunction of each is changed.

A test that does not notice such a change does not test it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.alerting import Rule, as_yaml, promtool, read_rules, read_tests, tokens

_NEAR = 0.05
"""By how much a number is changed; one up to `_COUNT` without a point is changed by 1 instead."""
_COUNT = 10
_TIMES = (0.75, 1.25)
"""What a duration is multiplied with."""
_COMPARISONS = {
    ">": (">=", "<"),
    ">=": (">", "<"),
    "<": ("<=", ">"),
    "<=": ("<", ">"),
    "==": ("!=",),
    "!=": ("==",),
}
_WORDS = {"and": "unless", "unless": "and", "or": "and"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule with one change, told in words."""

    rule: Rule
    values: dict[str, Any]
    kind: str
    change: str


def mutants() -> list[Mutant]:
    """Every mutant of every rule, in the files' order."""
    return [mutant for rule in read_rules() for mutant in _of(rule)]


def is_noticed(mutant: Mutant, folder: Path) -> bool:
    """Whether the rule's own tests fail on it: an alert's are those of its name, a recorded line's
    those that ask for it. `folder` is the mutant's alone."""
    groups = [_group("trial-lines", _records(mutant))]
    if mutant.rule.kind == "alert":
        groups.append(_group(mutant.rule.group, [mutant.values]))
    (folder / "rules").mkdir(parents=True)
    (folder / "rules/rules.yml").write_text(as_yaml({"groups": groups}))
    chosen = [(head, test) for head, test in read_tests() if _is_for(test, mutant.rule)]
    assert chosen, f"{mutant.rule.name} has no test"
    order = [group["name"] for group in groups]
    head = {**chosen[0][0], "group_eval_order": order}
    return not promtool(folder, head, [test for _, test in chosen])[0]


def _of(rule: Rule) -> Iterator[Mutant]:
    for kind, change, expr in _expressions(rule.expr):
        yield Mutant(rule, {**rule.values, "expr": expr}, kind, change)
    if rule.kind == "record":
        return
    for key in ("for", "keep_firing_for"):
        if key in rule.values:
            for text in _durations(rule.values[key]):
                change = f"{key}: {rule.values[key]} -> {text}"
                yield Mutant(rule, {**rule.values, key: text}, "duration", change)
    if "for" not in rule.values and rule.expr != "vector(1)":
        yield Mutant(rule, {**rule.values, "for": "1m"}, "duration", "for: none -> 1m")


def _expressions(expr: str) -> Iterator[tuple[str, str, str]]:
    """Kind, change and expression of each mutation. The number in `vector(1)` means nothing."""
    for kind, text, begin, end in tokens(expr):
        named, others = kind, ()
        match kind:
            case "number" if not expr[:begin].endswith("vector("):
                named, others = "threshold", _numbers(text)
            case "range" | "offset":
                named, others = "duration", _durations(text)
            case "compare":
                named, others = "comparison", _COMPARISONS[text]
            case "word" if text in _WORDS:
                named, others = "conjunction", (_WORDS[text],)
            case "text" if expr[:begin].endswith(("gate_threshold{gate=", "steps{setting=")):
                named, others = "threshold", ('"another"',)
        for other in others:
            place = expr[max(begin - 30, 0) : begin].replace("\n", " ")
            yield named, f"...{place}[{text} -> {other}]", expr[:begin] + other + expr[end:]


def _numbers(text: str) -> tuple[str, ...]:
    number = float(text)
    if "." not in text and number <= _COUNT:
        return f"{number - 1:g}", f"{number + 1:g}"
    return f"{number * (1 - _NEAR):g}", f"{number * (1 + _NEAR):g}"


def _durations(text: str) -> tuple[str, ...]:
    parts = re.findall(r"(\d+)([smhd])", text)
    seconds = sum(int(count) * _UNITS[unit] for count, unit in parts)
    return tuple(f"{seconds * times:.0f}s" for times in _TIMES)


def _is_for(test: dict[str, Any], rule: Rule) -> bool:
    if rule.kind == "alert":
        return test["name"] == rule.name
    return any(rule.name in check["expr"] for check in test["promql_expr_test"])


def _records(mutant: Mutant) -> list[dict[str, Any]]:
    """All recorded lines, with the mutant in its own place."""
    records = [rule for rule in read_rules() if rule.kind == "record"]
    return [mutant.values if r.name == mutant.rule.name else r.values for r in records]


def _group(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "rules": rules}
