"""The rules' tests notice what is changed in the rules."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.alerting import needs, read_rules
from tests.mutants import Mutant, is_noticed, mutants

pytestmark = needs("promtool")
STEP = 23
"""In the short form every so many-th mutant is tried."""


def noticed(chosen: Sequence[Mutant], folder: Path) -> list[bool]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(is_noticed, chosen, [folder / str(i) for i in range(len(chosen))]))


def unnoticed(chosen: Sequence[Mutant], folder: Path) -> list[str]:
    found = zip(chosen, noticed(chosen, folder), strict=True)
    return [f"{m.rule.name} ({m.kind}): {m.change}" for m, is_seen in found if not is_seen]


def test_mutants_change_thresholds_durations_comparisons_and_conjunctions():
    kinds = Counter(mutant.kind for mutant in mutants())
    assert set(kinds) == {"threshold", "duration", "comparison", "conjunction"}
    changed = {mutant.rule.name for mutant in mutants()}
    assert {rule.name for rule in read_rules() if rule.kind == "alert"} - changed == {"Watchdog"}


def test_a_rule_that_was_not_changed_is_accepted(tmp_path: Path):
    rules = read_rules()[:: STEP // 4]
    same = [Mutant(rule, rule.values, "none", "none") for rule in rules]
    assert noticed(same, tmp_path) == [False] * len(same)


def test_some_of_the_changes_are_noticed(tmp_path: Path):
    assert unnoticed(mutants()[::STEP], tmp_path) == []


@pytest.mark.prove
@pytest.mark.timeout(1200)
def test_every_change_is_noticed(tmp_path: Path):
    chosen = mutants()
    missed = unnoticed(chosen, tmp_path)
    kinds = Counter(mutant.kind for mutant in chosen)
    told = ", ".join(f"{count} {kind}s" for kind, count in kinds.items())
    print(f"rule mutants noticed: {len(chosen) - len(missed)} of {len(chosen)} ({told})")
    assert missed == []
