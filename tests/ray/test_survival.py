"""One run on Ray that suffers what can happen, and ends as one that nothing happened to."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.config import Config
from service.decisions import Action, Directive
from service.distributed import Distributed
from service.errors import ExitCode
from service.launch import launch
from service.orchestration import train as train_module
from service.orchestration.control import ControlReader, find_control
from service.orchestration.progress import MAIN_TRIAL, Update
from service.orchestration.runs import create_run
from service.orchestration.train import launch_training
from service.orchestration.tune import launch_tuning
from service.settings import override
from service.training.journal import read_journal
from service.training.loop import train
from service.training.ports import Ports
from tests.ray.processes import pids_of
from tests.small import small_config
from tests.states import checkpoints, read_checkpoint, same, without_clock

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    # Ray Data, which Ray Train imports, warns of its own settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


def config(records: Path, folder: Path) -> Config:
    return override(
        small_config(records),
        [
            f"run.storage={folder}",
            "cluster.num_workers=2",
            "cluster.collective_timeout_s=20",
            "train.max_steps=200",
            "train.checkpoint_every=10",
            "telemetry.enabled=false",
        ],
    )


def one_trial(records: Path, folder: Path) -> Config:
    space = "tune.space={optim.head_lr: {grid: [0.003]}}"
    return override(config(records, folder), [space, "tune.max_concurrent=1"])


class Fate:
    """An `on_progress` that does to the run what is next, once its time has come.

    plan: (least step, word that some message must hold, what to do), in order.
    """

    def __init__(self, *plan: tuple[int, str, Callable[[], object]]) -> None:
        self.plan = list(plan)
        self.messages: list[str] = []
        self.restarts = 0

    def __call__(self, update: Update) -> None:
        self.messages += update.messages
        self.restarts = update.restarts
        if not self.plan:
            return
        step, word, do = self.plan[0]
        if update.step >= step and any(word in message for message in self.messages):
            self.plan.pop(0)
            do()


def stop_rank_1() -> None:
    os.kill(pids_of("RayTrainWorker")[1], signal.SIGSTOP)


def kill(name: str) -> None:
    for pid in pids_of(f"ray::{name}"):
        os.kill(pid, signal.SIGKILL)


class AtStart(threading.Thread):
    """Strikes one worker as soon as it does what is named, before its training begins."""

    def __init__(self, doing: str, sign: signal.Signals) -> None:
        super().__init__(daemon=True)
        self.doing = doing
        self.sign = sign
        self.struck = 0

    def run(self) -> None:
        while not (found := [pid for pid in pids_of(self.doing) if pid != os.getpid()]):
            time.sleep(0.02)
        self.struck = found[-1]
        os.kill(self.struck, self.sign)


MEETING = "execute._setup_torch_process_group"
"""What Ray calls a worker that waits for the others."""
WORKER = "ray::RayTrainWorker"
UNSTARTED = "another follows|before all had begun to train"


@pytest.mark.prove
@pytest.mark.parametrize(
    ("doing", "sign", "word"),
    [
        pytest.param(MEETING, signal.SIGKILL, UNSTARTED, id="dies-in-the-meeting"),
        pytest.param(MEETING, signal.SIGSTOP, "to train", id="hangs-in-the-meeting"),
        pytest.param(WORKER, signal.SIGSTOP, "did not begin to train", id="hangs-before-it"),
    ],
)
def test_a_worker_that_dies_or_hangs_before_it_trains_is_replaced_where_it_was(
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    doing: str,
    sign: signal.Signals,
    word: str,
):
    """What it held is all that the cluster has. One that hangs where the ranks' store is lets the
    others wait in the meeting without limit. Of a death either Ray hears first, which then starts
    others, or the others do, which were lost to one another."""
    if sign is signal.SIGSTOP:
        monkeypatch.setattr(train_module, "START_S", 60.0)
    strike = AtStart(doing, sign)
    strike.start()
    fate = Fate()
    settings = override(config(records, tmp_path), ["train.max_steps=20"])
    run, outcome = launch_training(settings, on_progress=fate)
    assert strike.struck
    assert outcome.summary["steps"] == 20
    lost = [event["words"] for event in read_journal(run.path) if event["event"] == "lost"]
    assert any(re.search(word, message) for message in fate.messages)
    assert all(any(words in message for message in fate.messages) for words in lost)
    assert [e["step"] for e in read_journal(run.path) if e["event"] == "start"] == [0]
    assert strike.struck not in pids_of("")


def undisturbed(world: Distributed, settings: Config, folder: Path, directive: Directive) -> None:
    """The same run without Ray, told of the directive at once."""

    def poll(applied: int) -> Directive | None:
        return None if applied else directive

    train(settings, folder, world, Ports(poll=poll))


def final_state(folder: Path) -> dict[str, Any]:
    return without_clock(read_checkpoint(checkpoints(folder)[-1]))


@pytest.mark.prove
def test_a_hung_rank_a_lost_control_plane_and_a_lost_controller_change_nothing(
    records: Path, tmp_path: Path, record_property: Any
):
    """A directive that is sent while the control plane is down is obeyed all the same."""
    settings = config(records, tmp_path)
    lower = Directive(1, actions=(Action("head_lr", 5e-4),), reason="lowered")

    def lose_control_and_send() -> None:
        kill("ControlState")
        ControlReader(find_control("suffers")).put(MAIN_TRIAL, lower)

    fate = Fate(
        (20, "", stop_rank_1),
        (60, "are back", lose_control_and_send),
        (90, "lowered", lambda: kill("TrainController")),
    )
    run, outcome = launch_training(settings, run_id="suffers", on_progress=fate)
    assert fate.plan == []
    assert outcome.exit_code == ExitCode.OK
    assert fate.restarts >= 2
    hung = next(message for message in fate.messages if "hangs" in message)
    assert re.match(r"\[workers\] rank \d \(pid \d+ on \S+\) did not come within 20 s", hung)
    assert any("controller of the training was lost" in message for message in fate.messages)

    told = read_journal(run.path)
    lost = [event for event in told if event["event"] == "lost"]
    assert {len(event["ranks"]) for event in lost} == {0, 1}
    starts = [event["time"] for event in told if event["event"] == "start"]
    record_property(
        "seconds_from_loss_to_training",
        [round(s - e["time"], 1) for e, s in zip(lost, starts[1:], strict=False)],
    )
    assert pids_of("RayTrainWorker") == []

    applied = next(event["step"] for event in told if event["event"] == "directive")
    quiet = create_run(settings)
    launch(undisturbed, 2, settings, quiet.path, replace(lower, apply_at_step=applied + 1))
    assert same(final_state(run.path), final_state(quiet.path))


@pytest.mark.prove
def test_a_trial_whose_controller_is_lost_goes_on_in_the_same_process(
    records: Path, tmp_path: Path
):
    settings = one_trial(records, tmp_path)
    processes: list[int] = []

    def look() -> None:
        processes.extend(pids_of("ImplicitFunc"))

    fate = Fate((60, "", lambda: (look(), kill("TrainController"))), (120, "are back", look))
    sweep = launch_tuning(settings, on_progress=fate)
    assert [row.verdict for row in sweep.rows] == ["GO"]
    before, after = processes
    assert before == after
    told = read_journal(sweep.path / sweep.rows[0].trial)
    assert [event["attempt"] for event in told if event["event"] == "start"] == [1, 2]
    assert len([event for event in told if event["event"] == "lost"]) == 1


@pytest.mark.prove
def test_a_trial_whose_process_is_lost_is_tried_again_where_its_workers_were(
    records: Path, tmp_path: Path
):
    """What its controller leaves behind would hold all CPUs for ever."""
    settings = one_trial(records, tmp_path)
    fate = Fate((60, "", lambda: kill("ImplicitFunc")))
    sweep = launch_tuning(settings, on_progress=fate)
    assert fate.plan == []
    assert [row.verdict for row in sweep.rows] == ["GO"]
    told = read_journal(sweep.path / sweep.rows[0].trial)
    starts = [event["step"] for event in told if event["event"] == "start"]
    assert len(starts) == 2
    assert starts[1] >= 50
    assert pids_of("RayTrainWorker") == []
