"""What a diagnosis looks like, and the exit code it means."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.causes import Cause
from service.doctor.check import Check, Diagnosis, Status, Table, judged, listed, spread
from service.errors import ExitCode
from service.views_doctor import diagnosis

GOOD = Check("short", Status.OK, "as it should be")
POOR = Check("a longer name", Status.WARN, "odd", "even", "add one")
BAD = judged("third", False, "0.1", "0.8 or more", cause=Cause.NOT_PAIRING)


def test_the_status_stands_first_and_what_was_found_is_aligned():
    text = diagnosis(Diagnosis("x", (GOOD, POOR, BAD)))
    lines = [line for line in text.splitlines() if line[:4].strip() in ("ok", "warn", "fail")]
    assert [line.split()[0] for line in lines] == ["ok", "warn", "fail"]
    places = {line.index(check.found) for line, check in zip(lines, (GOOD, POOR, BAD), strict=True)}
    assert len(places) == 1


def test_only_what_is_not_ok_says_what_was_expected_and_what_to_try():
    silent = replace(POOR, status=Status.OK)
    assert "even" not in diagnosis(Diagnosis("x", (silent,)))
    text = diagnosis(Diagnosis("x", (POOR,)))
    assert "expected: even" in text
    assert "try: add one" in text
    assert "crossreid explain sampler_not_pairing" in diagnosis(Diagnosis("x", (BAD,)))


def test_a_check_with_a_cause_and_no_remedy_takes_the_remedy_of_the_cause():
    assert "sampler.on_unpairable" in BAD.remedy


@pytest.mark.parametrize(
    ("checks", "code", "line"),
    [
        ((GOOD,), ExitCode.OK, "1 check: 1 ok"),
        ((GOOD, POOR), ExitCode.OK, "2 checks: 1 ok, 1 warn"),
        ((GOOD, POOR, BAD), ExitCode.NO_GO, "3 checks: 1 ok, 1 warn, 1 fail"),
    ],
)
def test_the_last_line_counts_and_only_a_failed_check_fails(
    checks: tuple[Check, ...], code: ExitCode, line: str
):
    found = Diagnosis("x", checks)
    assert found.exit_code == code
    assert diagnosis(found).splitlines()[-1] == line


def test_a_verdict_has_the_last_word_on_the_exit_code():
    assert Diagnosis("x", (GOOD,), code=ExitCode.PAUSED).exit_code == ExitCode.PAUSED


@given(st.text("ab /._-", max_size=300), st.integers(60, 200))
def test_no_line_is_wider_than_the_terminal_unless_a_word_is(found: str, width: int):
    longest = max((len(word) for word in found.split()), default=0)
    check = Check("name", Status.WARN, found, found, found)
    text = diagnosis(Diagnosis("x", (check,)), width)
    assert max(len(line) for line in text.splitlines()) <= max(width, longest + 40)


def test_tables_have_columns_with_numbers_to_the_right():
    table = Table("Counts", ("who", "rows"), (("anna", "5"), ("bo", "1,234")))
    text = diagnosis(Diagnosis("x", (GOOD,), (table,)))
    assert "Counts\n  who    rows\n  anna      5\n  bo    1,234\n" in text


def test_everything_is_json():
    values = json.loads(json.dumps(Diagnosis("x", (BAD,), (Table("t", ("a",), ()),)).to_dict()))
    assert values["checks"][0]["cause"] == "sampler_not_pairing"
    assert values["checks"][0]["status"] == "fail"
    assert values["exit_code"] == ExitCode.NO_GO


@given(st.integers(0, 500), st.integers(1, 60))
def test_spread_positions_are_distinct_rise_and_reach_both_ends(number: int, limit: int):
    found = spread(number, limit).tolist()
    assert len(found) == min(number, limit)
    assert found == sorted(set(found))
    if found and limit > 1:
        assert (found[0], found[-1]) == (0, number - 1)


def test_long_lists_are_cut_with_their_count():
    assert listed([1, 2, 3], 5) == "1, 2, 3"
    assert listed(range(7), 2) == "0, 1 and 5 more"
