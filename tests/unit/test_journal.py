"""The journal survives a crash in mid-line."""

from pathlib import Path

from service.training.journal import FILE_NAME, Journal, last_attempt, read_journal


def test_events_come_back_in_order_with_their_attempt_and_their_time(tmp_path: Path):
    times = iter((5.0, 6.12345))
    journal = Journal(tmp_path, 1, now=lambda: next(times))
    journal.append({"event": "start", "step": 0})
    journal.append({"event": "health", "step": 5, "note": "größer\u2028"})
    journal.close()
    assert read_journal(tmp_path) == [
        {"attempt": 1, "time": 5.0, "event": "start", "step": 0},
        {"attempt": 1, "time": 6.123, "event": "health", "step": 5, "note": "größer\u2028"},
    ]


def test_a_line_cut_by_a_crash_loses_only_itself(tmp_path: Path):
    first = Journal(tmp_path, 1)
    first.append({"event": "start", "step": 0})
    first.close()
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"attempt": 1, "event": "gr\u00f6')
    torn = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(torn[:-1])
    second = Journal(tmp_path, 2)
    second.append({"event": "start", "step": 0})
    second.close()
    found = read_journal(tmp_path)
    assert [e["attempt"] for e in found] == [1, 2]
    assert last_attempt(found) == 2


def test_no_journal_is_no_events(tmp_path: Path):
    assert read_journal(tmp_path) == []
    assert last_attempt([]) == 0
