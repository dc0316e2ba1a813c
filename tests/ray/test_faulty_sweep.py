"""Three faulty trials and a healthy one in one sweep: each is called by its name, and the healthy
one is left to learn."""

from pathlib import Path

import pytest

from service.causes import Cause
from service.decisions import Decision, Verdict
from service.orchestration.tune import launch_tuning
from service.settings import override
from service.training.journal import read_journal
from tests.ray.sweeping import check_nothing_decided_twice, lines_of
from tests.relabel import vis_only
from tests.small import make_records, small_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 people to train on, of whom 16 have photos only."""
    folder = tmp_path_factory.mktemp("unpairable")
    return vis_only(make_records(folder, people=36), folder / "photos", people=16)


@pytest.mark.prove
def test_three_faulty_trials_are_named_and_the_healthy_one_goes_on(people: Path, tmp_path: Path):
    settings = override(
        small_config(people),
        [
            f"run.storage={tmp_path}",
            "cluster.poll_s=0.1",
            "tune.space={optim.head_lr: {grid: [3e-3, 1e-6]}, "
            "sampler.on_unpairable: {grid: [replace, soft]}}",
            "tune.max_concurrent=2",
            "sampler.soft_share=0.75",
            "policy.final_look=80",
            "train.max_steps=160",
        ],
    )
    sweep = launch_tuning(settings)

    trials = {
        (row.sample["optim.head_lr"], row.sample["sampler.on_unpairable"]): row
        for row in sweep.rows
    }
    said = {
        key: [
            Decision.from_dict(line["decision"])
            for line in lines_of(sweep.path, "decision")
            if line["trial"] == row.trial
        ]
        for key, row in trials.items()
    }
    assert {key: row.verdict for key, row in trials.items()} == {
        (3e-3, "replace"): "GO",
        (3e-3, "soft"): "GO",
        (1e-6, "replace"): "NO_GO",
        (1e-6, "soft"): "NO_GO",
    }
    check_nothing_decided_twice(sweep.path)

    never = (Verdict.NO_GO, Verdict.PAUSE, Verdict.ROLLBACK, Verdict.HOLD)
    assert not [d for d in said[3e-3, "replace"] if d.verdict in never]
    for how in ("replace", "soft"):
        stop = said[1e-6, how][-1]
        assert (stop.verdict, stop.cause) == (Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL)
        assert stop.step <= 200
        assert trials[1e-6, how].steps < 160
        also_unpaired = "rows_without_positive" in {f.line for f in stop.findings}
        assert also_unpaired == (how == "soft")

    unpaired = said[3e-3, "soft"]
    first = next(d for d in unpaired if d.cause is Cause.NOT_PAIRING)
    assert (first.verdict, first.step <= 200) == (Verdict.HOLD, True)
    lowered = [a.value for d in unpaired for a in d.actions if a.name == "ids_per_batch"]
    assert len(lowered) == 1
    health = [
        event["health"]
        for event in read_journal(sweep.path / trials[3e-3, "soft"].trial)
        if event["event"] == "health"
    ]
    assert health[-1]["ids_per_batch"] == lowered[0] < 8
    assert health[-1]["rows_without_positive"] == 0
