"""Where samples come from: as many at a time as there is room for, the same again after a loss."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Experiment

from service.config import Config
from service.errors import ConfigError
from service.orchestration.search import check_search, make_search
from service.orchestration.space import param_space
from service.settings import load_text

SPACE = "{optim.neck_lr: {loguniform: [1e-5, 1e-2]}, loss.sdm.form: {choice: [ce, kl]}}"


class Gate:
    """A gate with a number of places."""

    def __init__(self, places: int = 99) -> None:
        self.places = places
        self.is_closed = False

    def has_room(self) -> bool:
        return self.places > 0 and not self.is_closed


def config(*settings: str, space: str = SPACE) -> Config:
    text = f"{{data: {{records: r}}, tune: {{samples: 4, space: {space}}}}}"
    return load_text(text, settings)


def searching(settings: Config, gate: Gate, folder: Path, sweep: str = "s") -> Any:
    """A search as Tune sets it up."""
    search = make_search(settings, sweep, gate)
    space = param_space(settings)
    assert search.set_search_properties(None, None, space)
    experiment = Experiment("tune", _nothing, config=space, num_samples=4, storage_path=str(folder))
    search.add_configurations([experiment])
    return search


def _nothing(config: dict[str, Any]) -> None:
    tune.report({})


def all_of(search: Any) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    while (trial := search.next_trial()) is not None:
        found.append((trial.trial_id, trial.config))
    return found


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_no_trial_is_made_without_room_and_none_once_the_sweep_is_closed(kind: str, tmp_path: Path):
    gate = Gate(places=0)
    search = searching(config(f"tune.search={kind}"), gate, tmp_path)
    assert search.next_trial() is None
    assert not search.is_finished()
    gate.places = 1
    assert search.next_trial() is not None
    gate.is_closed = True
    assert search.next_trial() is None
    assert search.is_finished()
    gate.is_closed = False
    assert not search.is_finished()


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_the_same_seed_draws_the_same_samples_and_another_one_others(kind: str, tmp_path: Path):
    def samples(seed: int) -> list[dict[str, Any]]:
        settings = config(f"tune.search={kind}", f"run.seed={seed}")
        return [sample for _, sample in all_of(searching(settings, Gate(), tmp_path))]

    assert len(samples(0)) == 4
    assert samples(0) == samples(0)
    assert samples(0) != samples(1)


def test_random_trials_have_the_same_names_when_a_sweep_starts_over(tmp_path: Path):
    first, again = (all_of(searching(config(), Gate(), tmp_path)) for _ in range(2))
    assert first == again
    other = all_of(searching(config(), Gate(), tmp_path, sweep="another"))
    assert {name for name, _ in first}.isdisjoint(name for name, _ in other)


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_restored_search_goes_on_where_it_was_with_the_new_drivers_gate(
    kind: str, tmp_path: Path
):
    settings = config(f"tune.search={kind}")
    search = searching(settings, Gate(), tmp_path)
    names = [search.next_trial().trial_id for _ in range(2)]
    search.on_trial_result(names[0], {"ce_fraction": 0.5, "step": 20, "training_iteration": 1})
    search.save_to_dir(str(tmp_path), session_str="x")
    gate = Gate(places=0)
    again = make_search(settings, "s", gate)
    again.set_search_properties(None, None, param_space(settings))
    again.restore_from_dir(str(tmp_path))
    assert again.next_trial() is None
    gate.places = 1
    left = all_of(again)
    assert len(left) == 2
    assert set(names).isdisjoint(name for name, _ in left)
    again.on_trial_complete(names[0], {"outcome": "{}"})
    if kind == "optuna":
        (done,) = again.searcher._ot_study.get_trials(states=None)[:1]
        assert done.value == 0.5


def test_optuna_learns_from_the_last_report_and_not_from_the_final_one(tmp_path: Path):
    search = searching(config("tune.search=optuna", "tune.metric=top1"), Gate(), tmp_path)
    name = search.next_trial().trial_id
    for step, top1 in ((20, 0.1), (40, 0.3)):
        search.on_trial_result(name, {"top1": top1, "step": step, "training_iteration": 1})
    search.on_trial_result(name, {"outcome": "{}"})
    search.on_trial_complete(name, {"outcome": "{}"})
    search.on_trial_complete(name, {"outcome": "{}"})
    (trial,) = search.searcher._ot_study.trials
    assert trial.value == 0.3
    assert trial.intermediate_values == {20: 0.1, 40: 0.3}
    assert search.metric is None


def test_a_trial_that_the_search_does_not_know_is_lost_to_it_only(tmp_path: Path):
    search = searching(config("tune.search=optuna"), Gate(), tmp_path)
    search.on_trial_result("stranger", {"ce_fraction": 0.1, "step": 1})
    search.on_trial_complete("stranger", {})


def test_optuna_refuses_a_grid_with_the_reason():
    space = "{optim.neck_lr: {grid: [1e-3]}}"
    with pytest.raises(ConfigError, match=r"tune.space.optim.neck_lr: optuna .*write it as"):
        check_search(config("tune.search=optuna", space=space))
    check_search(config(space=space))


def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'crossreid\[optuna\]'"):
        check_search(config("tune.search=optuna"))
