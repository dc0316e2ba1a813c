import os
import threading
import time
from pathlib import Path

import pytest

from service.data.threads import in_order, usable_cpus


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("in-order")]


def test_results_come_in_the_order_of_the_items_whatever_finishes_first():
    def slow_if_even(i: int) -> int:
        time.sleep(0.01 if i % 2 == 0 else 0.0)
        return i

    assert list(in_order(slow_if_even, range(20), threads=4, ahead=3)) == list(range(20))


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (2, 0), (2, 3)])
def test_no_more_is_begun_than_threads_and_ahead_allow(threads: int, ahead: int):
    begun = 0

    def count(i: int) -> int:
        nonlocal begun
        begun += 1
        return i

    results = in_order(count, range(50), threads, ahead)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.002)
        assert begun <= taken - 1 + threads + ahead
    results.close()


def test_an_exception_surfaces_where_its_result_would_have_come():
    def fail_at_three(i: int) -> int:
        if i == 3:
            raise ZeroDivisionError("three")
        return i

    results = in_order(fail_at_three, range(10), threads=2, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(results)
    assert not own_threads()


def test_closing_early_ends_the_threads_and_drops_what_has_not_begun():
    begun, released = [], threading.Event()

    def block_after_the_first(i: int) -> None:
        begun.append(i)
        if i:
            released.wait(10)

    results = in_order(block_after_the_first, range(1000), threads=2, ahead=50)
    next(results)
    threading.Timer(0.1, released.set).start()
    results.close()
    assert not own_threads()
    assert len(begun) <= 3


def test_an_iterator_that_was_never_started_starts_nothing():
    results = in_order(str, range(3), threads=2)
    assert not own_threads()
    results.close()
    assert not own_threads()


def test_items_are_drawn_in_the_callers_thread():
    seen = set()

    def items():
        for i in range(5):
            seen.add(threading.current_thread())
            yield i

    assert list(in_order(str, items(), threads=3)) == list("01234")
    assert seen == {threading.current_thread()}


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        ("600000 100000\n", 6),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("max 100000\n", 32),
        ("9900000 100000\n", 32),
        ("", 32),
    ],
)
def test_a_containers_limit_counts_and_not_the_machines_cpus(
    limit: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(limit)
    assert usable_cpus(file) == wanted
    assert usable_cpus(tmp_path / "none") == 32
