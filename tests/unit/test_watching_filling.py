"""Names in queries: whatever a trial is called, a query asks for it and for nothing else."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.telemetry.panels.run import RUN_VIEW
from service.watching.asking import natural, questions
from service.watching.filling import Filling, pattern, quoted

ODD = '试验 "3" \\ a'
LENGTHS = {"__range": 60.0, "__rate_interval": 60.0}
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@given(names)
@example(ODD)
@example('"} or vector(1) #')
@example("a\nb")
def test_a_quoted_name_reads_back_as_itself(name: str):
    # JSON's strings and PromQL's agree on what is escaped here.
    assert json.loads(f'"{quoted(name)}"', strict=False) == name


@given(names, names)
@example("a.b", "aXb")
@example("a|b", "a")
def test_a_pattern_matches_its_name_and_no_other(name: str, other: str):
    assert re.fullmatch(pattern(name), name)
    assert bool(re.fullmatch(pattern(name), other)) == (name == other)


def test_a_name_is_a_pattern_only_where_patterns_are_read():
    filling = Filling({"run": "a.b", "trial": "c+"}, {})
    query = 'x{run="$run",trial=~"$trial"} and y{run=~"$run|"}'
    assert filling.fill(query) == r'x{run="a.b",trial=~"c\\+"} and y{run=~"a\\.b|"}'


def test_any_trial_stands_for_every_name_that_is_not_empty():
    assert Filling({"trial": None}, {}).fill('x{trial=~"$trial"}') == 'x{trial=~".+"}'


def test_any_run_is_refused_where_one_name_is_needed():
    with pytest.raises(ValueError, match="any name"):
        Filling({"run": None}, {}).fill('x{run="$run"}')


def test_an_unknown_variable_is_noticed():
    with pytest.raises(KeyError, match="runs"):
        Filling({"run": "a"}, {}).fill('x{run="$runs"}')


def test_lengths_are_filled_as_durations():
    filling = Filling({}, {"__range": 90.5, "__rate_interval": 60.0})
    assert filling.fill("rate(x[$__rate_interval])") == "rate(x[60000ms])"
    assert filling.fill("max_over_time(x[$__range:15s])") == "max_over_time(x[90500ms:15s])"


def test_every_query_of_the_run_view_is_filled_completely():
    filling = Filling({"run": ODD, "trial": ODD}, LENGTHS)
    for one in questions(RUN_VIEW):
        assert "$" not in filling.fill(one.expr)


def test_names_are_sorted_as_people_count():
    names = ["t_10", "t_2", "lr_0.01", "lr_0.001", "", "t"]
    assert sorted(names, key=natural) == ["", "lr_0.001", "lr_0.01", "t", "t_2", "t_10"]
