"""The control plane's state, and the driver's monitor, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from service.causes import Cause
from service.decisions import Action, Decision, Directive, PolicyState, Verdict
from service.orchestration.control import ControlClient, ControlReader, ControlState, News
from service.orchestration.monitor import Monitor
from service.orchestration.progress import PlainProgress, Update
from service.settings import override
from tests.reports import CONFIG, HEALTHY, config


def directive(number: int, sdm_weight: float | None = None, stop: bool = False) -> dict[str, Any]:
    acts = (Action("sdm_weight", sdm_weight),) if sdm_weight is not None else ()
    return Directive(number, 0, acts + (Action("stop"),) * stop).to_dict()


def test_a_trial_gets_only_directives_above_the_one_it_applied():
    state = ControlState()
    assert state.get("a", 0) is None
    state.put("a", directive(1, sdm_weight=0.1))
    assert state.get("a", 0) == directive(1, sdm_weight=0.1)
    assert state.get("a", 1) is None
    assert state.get("b", 0) is None


def test_older_and_repeated_directives_change_nothing():
    state = ControlState()
    state.put("a", directive(2, sdm_weight=0.3))
    state.put("a", directive(1, sdm_weight=0.1))
    state.put("a", directive(2, sdm_weight=0.2))
    assert state.get("a", 0) == directive(2, sdm_weight=0.3)


def test_a_stop_is_obeyed_whatever_its_number_and_whatever_else_is_said():
    state = ControlState()
    state.put("a", directive(1, sdm_weight=0.1))
    state.put("a", directive(1, stop=True))
    assert state.get("a", 0) == directive(1, stop=True)
    state.put("a", directive(2, sdm_weight=0.3))
    assert state.get("a", 4) == directive(5, stop=True)
    restarted = ControlState()
    restarted.put("a", directive(0, stop=True))
    assert restarted.get("a", 7) == directive(8, stop=True)


def test_the_driver_reads_echo_progress_and_each_event_once():
    state = ControlState()
    state.get("a", 3)
    state.tell("a", {"step": 5})
    state.report("a", {"n": 1})
    state.report("a", {"n": 2})
    life, found = state.read("", {})
    assert found["a"] == (3, {"step": 5}, [(1, {"n": 1}), (2, {"n": 2})])
    state.report("a", {"n": 3})
    assert state.read(life, {"a": 2})[1]["a"][2] == [(3, {"n": 3})]


def test_a_restarted_actor_gives_all_it_has():
    first, second = ControlState(), ControlState()
    life, _ = first.read("", {})
    second.report("a", {"n": 1})
    assert second.read(life, {"a": 7})[1]["a"][2] == [(1, {"n": 1})]


def test_events_that_nobody_reads_do_not_pile_up():
    state = ControlState()
    for n in range(1000):
        state.report("a", {"n": n})
    events = state.read("", {})[1]["a"][2]
    assert len(events) < 1000
    assert events[-1] == (1000, {"n": 999})


class FakeControl:
    """An actor whose calls fail while it is dead. No Ray: `ray.get` is replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: ControlState | None = ControlState()
        self.read = SimpleNamespace(remote=lambda *given: ("read", *given))
        self.get = SimpleNamespace(remote=lambda *given: ("get", *given))
        self.announced = SimpleNamespace(remote=lambda *given: ("announced", *given))
        self.is_silent = False
        monkeypatch.setattr(ray, "get", self._answer)
        monkeypatch.setattr(ray, "wait", self._wait)

    def _wait(self, calls: Any, timeout: float) -> Any:
        assert timeout == 0
        return ([], calls) if self.is_silent else (calls, [])

    def _answer(self, call: Any, timeout: float | None = None) -> Any:
        if self.state is None:
            raise ActorDiedError()
        name, *given = call
        return getattr(self.state, name)(*given)


def test_a_control_plane_that_does_not_answer_is_said_once(monkeypatch: pytest.MonkeyPatch):
    control = FakeControl(monkeypatch)
    reader, said = ControlReader(control), list[Update]()
    monitor = Monitor(CONFIG, on_progress=said.append)
    for control.state in (None, None, ControlState(), *[None] * 10):
        monitor.look(reader)
    assert [update.messages[0][:39] for update in said] == [
        "the control plane does not answer: prog"
    ]


def test_nobody_waits_for_an_announcement(monkeypatch: pytest.MonkeyPatch):
    control = FakeControl(monkeypatch)
    client = ControlClient(control, "a")
    assert control.state is not None
    control.state.announce("a", "the number of workers changes to 2")
    assert client.announced() == ""
    control.is_silent = True
    assert client.announced() == ""
    control.is_silent = False
    assert client.announced() == "the number of workers changes to 2"
    control.state = None
    assert client.announced() == ""


def test_a_worker_logs_once_that_no_directives_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    control = FakeControl(monkeypatch)
    client = ControlClient(control, "a")
    control.state = None
    for _ in range(20):
        assert client.poll(0) is None
    assert len(caplog.records) == 1
    assert "no directives come any more" in caplog.text


def test_log_lines_that_nobody_read_in_time_are_counted(monkeypatch: pytest.MonkeyPatch):
    control = FakeControl(monkeypatch)
    reader, said = ControlReader(control), list[Update]()
    monitor = Monitor(CONFIG, on_progress=said.append)
    assert control.state is not None
    for n in (3, 300, 2):
        for _ in range(n):
            control.state.report("a", {"event": "end"})
        monitor.look(reader)
    assert [update.messages for update in said] == [
        (),
        ("44 log lines were lost: they were not read in time",),
        (),
    ]


class FakeLease:
    def __init__(self) -> None:
        self.pushed: dict[str, dict[str, Any]] = {}
        self.renewals = 0
        self.trouble = ""

    def push(self, trial: str, values: dict[str, Any]) -> None:
        self.pushed[trial] = values

    def renew(self) -> None:
        self.renewals += 1

    def end(self, trial: str) -> None:
        self.pushed.pop(trial, None)


@pytest.fixture
def lease() -> Any:
    return FakeLease()


def news(*events: dict[str, Any], step: int = 0) -> News:
    line = {"verdict": "WAIT", "ce_fraction": 0.9}
    progress = {"step": step, "total": 100, "line": line} if step else {}
    return News("a", 0, progress, events)


WORKERS = {"event": "workers", "world_size": 2}


def test_health_and_decisions_reach_the_exporter_and_the_screen(lease: Any):
    said: list[Update] = []
    monitor = Monitor(CONFIG, lease, said.append, now=lambda: 7.0)
    decision = Decision(200, Verdict.GO).to_dict()
    monitor.hear(
        news(
            WORKERS,
            {"event": "health", "health": HEALTHY.to_dict()},
            {"event": "decision", **decision},
            {"event": "checkpoint", "step": 200},
            step=200,
        )
    )
    values = lease.pushed["a"]
    assert values["cross_entropy_nats"] == {(): 5.46}
    assert values["heartbeat_timestamp_seconds"] == {(): 7.0}
    assert values["gate_decisions_total"] == {("verdict", "GO"): 1.0}
    assert said[-1].messages[-1] == "[verdict] step=200 GO"
    assert monitor.started == ["a"]


def test_steps_checkpoints_and_a_stop_reach_the_exporter(lease: Any):
    monitor = Monitor(config(num_workers=2, gpus_per_worker=1.0), lease, now=lambda: 7.0)
    steps = {"event": "steps", "count": 25, "images": 2000.0, "seconds": 3.6, "data_wait_s": 0.4}
    monitor.hear(news(WORKERS, steps, {"event": "checkpoint", "step": 25}, step=25))
    no_go = Decision(40, Verdict.NO_GO, Cause.NO_GRADIENT).to_dict()
    monitor.hear(news({"event": "decision", **no_go}, step=40))
    values = lease.pushed["a"]
    assert values["images_total"] == {(): 2000.0}
    assert values["checkpoint_step"] == {(): 25.0}
    assert values["verdict_info"] == {("NO_GO", "no_gradient"): 1.0}
    assert values["device_hours_saved"]["gpu",] == pytest.approx(60 * 3.6 * 2 / 3600)


def test_the_heartbeat_stands_while_no_step_is_made(lease: Any):
    clock = [0.0]
    monitor = Monitor(CONFIG, lease, now=lambda: clock[0])
    beats = []
    for clock[0], heard in (
        (1.0, news(WORKERS, step=5)),
        (2.0, news(step=5)),
        (3.0, news(step=6)),
        (4.0, news(WORKERS, step=6)),
        (5.0, news(step=6)),
    ):
        monitor.hear(heard)
        beats.append(lease.pushed["a"]["heartbeat_timestamp_seconds"][()])
    assert beats == [1.0, 1.0, 3.0, 4.0, 4.0]


START: dict[str, Any] = {
    "event": "start",
    "step": 0,
    "world_size": 2,
    "precision": "fp32",
    "verdict": "WAIT",
    "cause": "",
    "plan": "400 ids",
    "schedule": [],
}


def test_how_long_steps_take_is_known_from_the_first_one_on():
    clock = [0.0]
    monitor = Monitor(CONFIG, clock=lambda: clock[0])
    took = []
    for clock[0], heard in (
        (1.0, news(WORKERS)),
        (5.0, news({**START, "step": 10})),
        (35.0, news(step=11)),
        (36.0, news(step=11)),
        (55.0, news(step=13)),
        (60.0, news(WORKERS, {**START, "step": 10}, step=13)),
        (62.0, news(step=11)),
    ):
        monitor.hear(heard)
        took.append(monitor.step_s)
    assert took == [0.0, 0.0, 30.0, 30.0, 10.0, 10.0, 2.0]


DIRECTIVE = {"event": "directive", "step": 7}


@pytest.mark.parametrize(
    ("heard", "is_saving"),
    [
        (news(WORKERS), False),
        (news(WORKERS, step=7), False),
        (news(WORKERS, {**DIRECTIVE, "directive": directive(1)}, step=7), False),
        (news(WORKERS, {**DIRECTIVE, "directive": directive(1, stop=True)}, step=7), True),
        (news(WORKERS, {"event": "decision", **Decision(7, Verdict.NO_GO).to_dict()}), True),
        (news(WORKERS, step=100), True),
        (news(WORKERS, {"event": "checkpoint", "step": 50}, step=100), True),
        # What comes then is the evaluation.
        (news(WORKERS, {"event": "checkpoint", "step": 100}, step=100), False),
        (news({**DIRECTIVE, "directive": directive(1, stop=True)}, WORKERS, step=7), False),
    ],
)
def test_a_trial_that_has_made_its_last_step_is_known_to_save(heard: News, is_saving: bool):
    monitor = Monitor(CONFIG)
    monitor.hear(heard)
    assert monitor.is_saving is is_saving
    monitor.ended("a")
    assert not monitor.is_saving


def test_an_ended_trial_is_told_once_and_pushed_no_more(lease: Any):
    monitor = Monitor(CONFIG, lease)
    monitor.hear(news(step=5))
    for _ in range(2):
        monitor.ended("a")
        monitor.hear(news(step=5))
        monitor.decided("a", Decision(50, Verdict.GO), PolicyState())
        reader: Any = SimpleNamespace(read=list, failures=0)
        monitor.look(reader)
    assert lease.pushed == {}


def test_a_decision_is_said_once_until_it_changes(lease: Any):
    said: list[Update] = []
    monitor = Monitor(CONFIG, lease, said.append)
    for step in (200, 300):
        monitor.hear(news({"event": "decision", **Decision(step, Verdict.GO).to_dict()}))
    assert [len(update.messages) for update in said] == [1, 0]
    assert lease.pushed["a"]["gate_decisions_total"]["verdict", "GO"] == 2


def test_workers_that_start_again_are_counted_and_said(lease: Any):
    said: list[Update] = []
    monitor = Monitor(CONFIG, lease, said.append)
    monitor.hear(news(WORKERS))
    monitor.hear(news(WORKERS))
    assert said[-1].restarts == 1
    assert "one was lost" in said[-1].messages[0]
    assert lease.pushed["a"]["restarts_total"] == {(): 1.0}


def test_an_announcement_stands_until_other_workers_come_up():
    state = ControlState()
    state.announce("a", "the number of workers changes to 2")
    state.report("a", {"event": "checkpoint", "step": 5})
    assert (state.announced("a"), state.announced("b")) == (
        "the number of workers changes to 2",
        "",
    )
    state.report("a", WORKERS)
    assert state.announced("a") == ""


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"event": "leaving", "step": 7, "machines": "a will be taken away"},
            "[workers] a will be taken away; what was trained up to step 7 is saved first",
        ),
        (
            {"event": "checkpoint_failed", "step": 7, "message": "full {0}"},
            "[checkpoint] the checkpoint of step 7 was not written: full {0}",
        ),
    ],
)
def test_what_happens_to_checkpoints_is_said(lease: Any, event: dict[str, Any], words: str):
    said: list[Update] = []
    Monitor(CONFIG, lease, said.append).hear(news(event))
    assert said[-1].messages == (words,)


def test_who_was_lost_is_said_before_the_workers_are_back(lease: Any):
    said: list[Update] = []
    monitor = Monitor(CONFIG, lease, said.append)
    words = "rank 1 (pid 7 on a) did not come within 30 s and does not answer: it hangs"
    for event in (WORKERS, {"event": "lost", "ranks": [1], "words": words}, WORKERS, WORKERS):
        monitor.hear(news(event))
    assert [update.messages for update in said] == [
        (),
        (f"[workers] {words}; all start again from the last checkpoint",),
        ("[workers] all 2 are back",),
        ("[workers] one was lost; all started again from the last checkpoint",),
    ]
    assert said[-1].restarts == 2


def test_another_number_of_workers_is_said(lease: Any):
    said: list[Update] = []
    config = override(CONFIG, ["cluster.num_workers=3", "cluster.min_workers=1"])
    monitor = Monitor(config, lease, said.append)
    for world in (2, 1, 3):
        monitor.hear(news({**WORKERS, "world_size": world}))
    assert [update.messages for update in said] == [
        ("[workers] 2 of 3: the cluster has no room for more now",),
        ("[workers] 1 now, 2 before, from the last checkpoint",),
        ("[workers] 3 now, 1 before, from the last checkpoint",),
    ]


def test_a_schedulers_verdict_replaces_that_of_a_loop_that_does_not_decide(lease: Any):
    said: list[Update] = []
    monitor = Monitor(CONFIG, lease, said.append)
    monitor.decided("a", Decision(50, Verdict.GO), PolicyState())
    assert said == []
    reader: Any = SimpleNamespace(read=lambda: [news(step=60)], failures=0)
    monitor.look(reader)
    assert said[0].messages == ("[verdict] step=50 GO",)
    assert said[-1].line["verdict"] == "GO"


def test_the_lease_is_renewed_while_the_driver_looks(lease: Any):
    clock = [0.0]
    monitor = Monitor(CONFIG, lease, clock=lambda: clock[0])
    reader: Any = SimpleNamespace(read=list, failures=0)
    for clock[0] in (1.0, 2.0, 5.9, 6.0, 10.9, 12.0):
        monitor.look(reader)
    assert lease.renewals == 3


def test_a_time_of_day_that_jumps_changes_no_renewal(lease: Any):
    """Back by an hour, as when a machine first hears of a time server: a lease lasts a minute."""
    clock, of_day = [0.0], [1e9]
    monitor = Monitor(CONFIG, lease, now=lambda: of_day[0], clock=lambda: clock[0])
    reader: Any = SimpleNamespace(read=list, failures=0)
    for clock[0], of_day[0] in ((0.0, 1e9), (5.0, 1e9 - 3600), (10.0, 1e9 + 3600), (10.5, 2e9)):
        monitor.look(reader)
    assert lease.renewals == 3


def test_an_exporter_that_cannot_serve_is_said_once(lease: Any):
    clock, said = [0.0], list[Update]()
    monitor = Monitor(CONFIG, lease, said.append, clock=lambda: clock[0])
    reader: Any = SimpleNamespace(read=list, failures=0)
    lease.trouble = "the exporter cannot serve at 127.0.0.1:9109: in use"
    for clock[0] in (0.0, 5.0, 10.0):
        monitor.look(reader)
    assert [update.messages for update in said] == [
        (f"{lease.trouble}; metrics wait, training itself goes on",)
    ]


def test_nothing_is_pushed_while_nothing_happens(lease: Any):
    monitor = Monitor(CONFIG, lease)
    monitor.hear(news(WORKERS, step=5))
    lease.pushed = {}
    monitor.hear(news(step=5))
    assert lease.pushed == {}


def test_workers_that_come_again_after_an_end_are_shown_again(lease: Any):
    monitor = Monitor(CONFIG, lease)
    monitor.hear(news(WORKERS, step=5))
    monitor.failed("a", "lost")
    assert set(lease.pushed["a"]["error_timestamp_seconds"]) == {("lost",)}
    monitor.ended("a")
    monitor.hear(news(WORKERS, step=6))
    assert lease.pushed["a"]["running"] == {(): 1.0}
    assert "error_timestamp_seconds" not in lease.pushed["a"]


def test_a_trials_limits_are_those_of_its_own_sample(lease: Any):
    monitor = Monitor(CONFIG, lease)
    monitor.sampled("a", {"policy.go": 0.92})
    monitor.hear(news(WORKERS, step=5))
    assert lease.pushed["a"]["gate_threshold"]["go",] == 0.92


def test_every_event_is_passed_on_with_its_trial(lease: Any):
    heard: list[tuple[str, str]] = []
    sinks: Any = SimpleNamespace(
        hear=lambda key, event: heard.append((key, event["event"])),
        failures={"mlflow": 2},
        messages=list,
    )
    monitor = Monitor(CONFIG, lease, sinks=sinks)
    monitor.hear(news(WORKERS, {"event": "checkpoint", "step": 5}, step=5))
    monitor.decided("b", Decision(50, Verdict.GO), PolicyState(best=0.9, head_limit=20.0))
    monitor.look(SimpleNamespace(read=list, failures=0))  # type: ignore[arg-type]
    assert heard == [("a", "workers"), ("a", "checkpoint"), ("b", "decision")]
    assert lease.pushed["b"]["cross_entropy_best_ratio"] == {(): 0.9}
    assert lease.pushed["b"]["classifier_weight_norm_limit"] == {(): 20.0}
    assert lease.pushed["a"]["sink_failures_total"] == {("mlflow",): 2.0}
    for key in ("a", "a", "of an earlier driver"):
        monitor.ended(key)
    assert heard[3:] == [("a", "end")]


LINE = {
    "verdict": "GO",
    "ce_fraction": 0.5,
    "top1": 0.25,
    "sdm_weight": 0.1,
    "images_per_second": 200.0,
}


def test_plain_progress_says_a_line_with_eta_every_few_seconds():
    clock, lines = [0.0], list[str]()
    show = PlainProgress(lines.append, every_s=5, clock=lambda: clock[0])
    for second in range(11):
        clock[0] = float(second)
        show(Update("main", step=1 + 10 * second, total=101, line=LINE))
    numbers = "CE/lnC 0.500  top-1 25.0%  SDM w=0.1  200 img/s  GO"
    assert lines == [
        f"step 1/101  {numbers}",
        f"step 51/101  {numbers}  ETA 5s",
        f"step 101/101  {numbers}  ETA 0s",
    ]


def test_plain_progress_says_nothing_new_while_no_step_is_made():
    clock, lines = [0.0], list[str]()
    show = PlainProgress(lines.append, every_s=5, clock=lambda: clock[0])
    for clock[0] in (0.0, 10.0, 20.0):
        show(Update("t1", step=3, total=10, messages=("hello",) if clock[0] == 0 else ()))
    assert lines == ["t1  hello", "t1  step 3/10"]
