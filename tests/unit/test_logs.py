"""Log lines in the documents' formats, and nothing secret in them."""

import pytest

from service.causes import Cause
from service.decisions import Action, Decision, Directive, Finding, Verdict
from service.telemetry import logs
from tests.reports import HEALTHY, healthy


def test_the_sdm_line_shows_the_weight_as_applied():
    assert logs.sdm_line(2, 0.1) == "[sdm] epoch=2 weight=0.100 use_sdm=True"
    off = logs.sdm_line(1, 0.0, "SDM waits for GO")
    assert off == "[sdm] epoch=1 weight=0.000 use_sdm=False reason=SDM waits for GO"


def test_the_health_lines_are_the_documents_own():
    text = "\n".join(logs.health_lines(HEALTHY))
    assert "head |w|=7.0000 |g|=0.0800 lr=0.01" in text
    assert "[dbg] pair_coverage_mavg=1.000" in text
    assert "step=200/100000 epoch=1 ce=5.4600 chance=5.9915 ce/chance=0.911" in text
    assert "top1=1.00%" in text
    assert "[sdm]" not in text


def test_sdm_has_a_line_once_it_is_on():
    on = {"sdm_weight": 0.1, "sdm": 1.9, "sdm_chance": 2.1, "sdm_rows": 64, "sdm_positives": 4.0}
    lines = logs.health_lines(healthy(2000, sdm_gradient_share=0.25, **on))
    line = "[sdm] loss=1.900 chance=2.100 rows=64 positives=4.0 gradient=25% memory=0"
    assert line in lines


def test_a_batch_without_positives_has_one_line():
    assert logs.unpaired_line(7, 3, 24) == "[sampler] step=7 no positive: 3 of 24 rows (12.5%)"


def test_a_decision_says_verdict_cause_and_action_in_one_line():
    stop = Decision(300, Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL, actions=(Action("stop"),))
    line = logs.decision_line(stop.to_dict())
    assert line == (
        "[verdict] step=300 NO_GO: the head's learning rate is too small to move the head"
    )
    found = (Finding("ce_fraction", 0.96, 0.951, 900, 800),)
    hold = Decision(900, Verdict.HOLD, Cause.CE_REBOUND, found, reason="SDM waits")
    assert logs.decision_line(hold.to_dict()) == (
        "[verdict] step=900 HOLD: cross-entropy came back up from its best "
        "(ce_fraction 0.96, bound 0.951 since step 800): SDM waits"
    )
    raised = Decision(1863, Verdict.RAISE, actions=(Action("sdm_weight", 0.1),))
    assert logs.decision_line(raised.to_dict()) == "[verdict] step=1863 RAISE [sdm_weight=0.1]"


def test_a_directive_says_what_it_changed():
    line = logs.directive_line(
        40, Directive(1, 0, (Action("sdm_weight", 0.0),), "collapse").to_dict()
    )
    assert line == "[control] step=40 sdm_weight=0: collapse"
    assert "stop" in logs.directive_line(40, Directive.to_stop(2, "").to_dict())


def test_an_audit_says_what_the_coming_batches_hold():
    event = {"step": 900, "batches": 20, "ids": 160, "unpaired_ids": 3}
    line = logs.audit_line({**event, "repeated_ids": 0, "repeated_rows": 1})
    assert line == (
        "[sampler] step=900 audit of 20 batches: 160 ids, 3 of them unpaired, 0 repeated; 1 rows "
        "repeated"
    )


def test_the_verdict_line_names_cause_and_remedy():
    assert logs.verdict_line("GO", "", "") == "GO"
    assert logs.verdict_line("NO_GO", "it stands", "move it") == "NO_GO: it stands - move it"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m")]
)
def test_durations_are_short(seconds: float, text: str):
    assert logs.duration(seconds) == text


def test_secrets_and_logins_are_taken_out():
    environ = {"RAY_AUTH_TOKEN": "abcdef123456", "HOME": "/home/someone", "EMPTY_TOKEN": ""}
    text = "token abcdef123456 at s3://key:very-secret@store/bucket for /home/someone"
    assert logs.redacted(text, environ) == (
        "token <RAY_AUTH_TOKEN> at s3://<login>@store/bucket for /home/someone"
    )


@pytest.mark.parametrize("name", ["DB_PASS", "PGPASSWORD", "MY_PWD", "A_TOKEN", "secret", "A_KEY"])
def test_what_is_named_like_a_secret_is_taken_out(name: str):
    assert logs.redacted("so abcdef.", {name: "abcdef"}) == f"so <{name}>."


def test_the_folder_in_PWD_is_no_secret():
    assert logs.redacted("/srv/x", {"PWD": "/srv/x", "OLDPWD": "/srv/x"}) == "/srv/x"


def test_a_secret_that_holds_another_is_taken_out_whole():
    environ = {"A_KEY": "abcdef", "B_KEY": "abcdefgh"}
    assert logs.redacted("abcdefgh", environ) == "<B_KEY>"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://key:ab/cd@e/f@store/b x@y", "s3://<login>@store/b x@y"),
        ("'https://me:p/w@host/p' and a@b", "'https://<login>@host/p' and a@b"),
        ("https://host/path", "https://host/path"),
    ],
)
def test_a_login_with_slashes_is_taken_out_up_to_the_last_at(text: str, told: str):
    assert logs.redacted(text, {}) == told
