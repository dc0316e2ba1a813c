"""What the benchmarks make of their measurements."""

from tests.bench.bench_checkpoint import WARM_UP, held_ms
from tests.bench.bench_operate import ratio, steps_per_second


def test_a_ratio_is_that_of_runs_side_by_side():
    """A machine that slows down between blocks changes both sides of a pair, not their ratio."""
    assert ratio([10.0, 5.0, 2.0], [10.0, 5.0, 2.0]) == (1.0, [1.0, 1.0])
    assert ratio([9.0, 5.0, 2.2], [10.0, 5.0, 2.0]) == (1.0, [0.9, 1.1])
    assert ratio([9.0, 9.5, 1.0], [10.0, 10.0, 4.0]) == (0.9, [0.25, 0.95])


def test_steps_of_the_warm_up_do_not_count():
    slow = {"event": "steps", "step": 20, "count": 10, "seconds": 9.0}
    fast = {"event": "steps", "step": 30, "count": 10, "seconds": 0.5}
    assert steps_per_second([slow, fast, {"event": "report", "step": 30}]) == 2.0


def test_a_save_holds_the_loop_for_all_that_it_asks_for():
    """Also the last question, which no save follows, is no reason to pair them otherwise."""
    n = WARM_UP + 2
    found = held_ms([1.0] * (n + 1), [5.0] * n, [3.0] * n)
    assert found == {"whole": [6.0] * 2, "copy": [3.0] * 2, "rest": [3.0] * 2}
