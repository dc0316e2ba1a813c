"""The plain loop, one process: a run is judged, steered, stopped and resumed as it should be."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.config import Config
from service.decisions import Action, Directive, PolicyState, Verdict
from service.distributed import Distributed
from service.errors import CheckpointError, DataError, ExitCode, FrozenLayerError, NonFiniteError
from service.training import loop as loop_module
from service.training import parts as parts_module
from service.training.journal import read_journal
from service.training.loop import train
from service.training.ports import Outcome, Ports
from tests.relabel import vis_only
from tests.small import dies_after, make_records, small_config
from tests.states import (
    CLOCKS,
    checkpoints,
    read_checkpoint,
    same,
    step_of,
    without_clock,
)

Overrides = list[str]


def run(config: Config, folder: Path, ports: Ports | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    return train(config, folder, Distributed.single(), ports or Ports())


def state(folder: Path) -> dict[str, Any]:
    return read_checkpoint(checkpoints(folder)[-1])


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [e for e in read_journal(folder) if e["event"] == name]


def test_a_healthy_run_ends_go_and_leaves_its_files(records: Path, tmp_path: Path):
    config = small_config(records, ["eval.after_training=true"])
    outcome = run(config, tmp_path / "run")
    assert (outcome.verdict, outcome.exit_code) == ("GO", ExitCode.OK)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == outcome.summary
    assert summary["rows_without_positive"] == 0
    assert summary["memory_hash_equal"] is True
    assert summary["sdm_weight"] > 0
    assert summary["sdm_rows_used"] > 0
    assert summary["mAP"]["mean"] > summary["chance_mAP"]
    assert len(summary["mAP"]) == 32 + 5
    assert [step_of(p) for p in checkpoints(tmp_path / "run")] == [120]


def test_sdm_starts_at_an_epoch_boundary_after_go_and_is_logged_as_applied(
    records: Path, tmp_path: Path
):
    run(small_config(records), tmp_path)
    health = [e["health"] for e in events(tmp_path, "health")]
    per_epoch = health[0]["steps_per_epoch"]
    raised = [e for e in events(tmp_path, "decision") if e["verdict"] == "RAISE"]
    assert raised
    assert raised[0]["step"] % per_epoch == 0
    for line in health:
        assert (line["sdm_weight"] > 0) == (line["step"] > raised[0]["step"])
        assert line["sdm_weight"] == line["sdm_scheduled"] or line["step"] == raised[0]["step"]
    epochs = events(tmp_path, "epoch")
    assert [e["use_sdm"] for e in epochs] == [e["step"] >= raised[0]["step"] for e in epochs]
    assert epochs[0]["sdm_reason"]


def test_the_schedule_is_shown_before_the_first_step(records: Path, tmp_path: Path):
    run(small_config(records, ["train.max_steps=2"]), tmp_path)
    first = read_journal(tmp_path)[0]
    assert first["event"] == "start"
    assert any("SDM cannot start" in line for line in first["schedule"])
    assert first["trainable"]["head"] == 1


@pytest.mark.parametrize("cut", [7, 20, 41])
def test_a_resumed_run_equals_the_straight_run_bit_for_bit(records: Path, tmp_path: Path, cut: int):
    looks = ["policy.first_look=20", "policy.no_go_from=60", "policy.go=0.997", "policy.hold=0.999"]
    lengths = ["train.max_steps=60", f"train.checkpoint_every={cut}", "train.keep_checkpoints=99"]
    config = small_config(
        records,
        looks
        + lengths
        + ["policy.learning=0.99", "policy.min_fall=0"]
        + ["policy.collapse=0.9999"],
    )
    run(config, tmp_path / "straight")
    interrupted = tmp_path / "resumed"
    shutil.copytree(tmp_path / "straight", interrupted)
    for folder in checkpoints(interrupted):
        if step_of(folder) != cut:
            shutil.rmtree(folder)
    run(config, interrupted)
    assert events(interrupted, "start")[-1]["step"] == cut
    straight, resumed = (without_clock(state(tmp_path / n)) for n in ("straight", "resumed"))
    assert straight["progress"]["step"] == 60
    assert straight["progress"]["sdm"]["weight"] > 0
    for part in straight:
        assert same(straight[part], resumed[part]), part


@pytest.mark.parametrize("fault", [[], ["optim.head_lr=1e-6"]])
def test_a_run_continued_after_its_last_step_keeps_its_verdict(
    records: Path, tmp_path: Path, fault: Overrides
):
    config = small_config(records, fault)
    first = run(config, tmp_path)
    kept = state(tmp_path)
    (tmp_path / "summary.json").unlink()
    again = run(config, tmp_path)
    assert again.verdict == ("NO_GO" if fault else "GO")
    assert again.exit_code == first.exit_code
    assert again.words == first.words
    clock = {"wall_seconds": 0}
    assert again.summary | clock == first.summary | clock
    assert same(state(tmp_path), kept)


def test_a_run_is_not_continued_on_other_people(
    records: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    overrides = ["train.max_steps=10", "train.checkpoint_every=5"]
    run(small_config(records, overrides), tmp_path)
    others = make_records(tmp_path_factory.mktemp("others"), seed=1)
    with pytest.raises(CheckpointError, match="other records"):
        run(small_config(others, overrides), tmp_path)


def test_the_journal_of_two_equal_runs_is_equal_but_for_the_clock(records: Path, tmp_path: Path):
    config = small_config(records, ["train.max_steps=40"])
    for name in ("a", "b"):
        run(config, tmp_path / name)
    first, second = (
        [e["health"] for e in events(tmp_path / name, "health")] for name in ("a", "b")
    )
    assert first
    for a, b in zip(first, second, strict=True):
        assert {k: a[k] for k in a if k not in CLOCKS} == {k: b[k] for k in b if k not in CLOCKS}


def faulty_optimizer(groups: dict[str, Any], config: Any) -> Any:
    """An optimiser that forgot the head."""
    optimizer = _build(groups, config)
    optimizer.param_groups = [g for g in optimizer.param_groups if g["name"] != "head"]
    return optimizer


_build = parts_module.build_optimizer


def test_a_head_rate_too_small_is_named(records: Path, tmp_path: Path):
    outcome = run(small_config(records, ["optim.head_lr=1e-6"]), tmp_path)
    assert (outcome.verdict, outcome.cause) == ("NO_GO", "head_lr_too_small")
    assert outcome.exit_code == ExitCode.NO_GO
    assert outcome.summary["steps"] == 80
    assert "head" in outcome.words
    assert "optim.head_lr" in outcome.remedy
    assert not (tmp_path / "summary.json").read_text().count("mAP")


def test_a_head_outside_the_optimiser_is_named(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parts_module, "build_optimizer", faulty_optimizer)
    outcome = run(small_config(records, ["optim.backbone_lr=1e-6"]), tmp_path)
    assert (outcome.verdict, outcome.cause) == ("NO_GO", "head_not_in_optimizer")


def test_a_head_without_gradient_is_named(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build = parts_module.CrossReID

    def without_gradient(*args: Any) -> Any:
        model = build(*args)
        model.classifier.weight.register_hook(lambda grad: grad * 0)
        return model

    monkeypatch.setattr(parts_module, "CrossReID", without_gradient)
    outcome = run(small_config(records), tmp_path)
    assert (outcome.verdict, outcome.cause) == ("NO_GO", "no_gradient")


def sending(*directives: Directive) -> Callable[[int], Directive | None]:
    """A poll that offers each directive until it has been applied."""

    def poll(applied: int) -> Directive | None:
        return next((d for d in directives if d.number > applied), None)

    return poll


def test_directives_change_a_running_trial_and_are_applied_once(records: Path, tmp_path: Path):
    polls = sending(
        Directive(1, 11, (Action("sdm_weight", 0.25),), "rescaled"),
        Directive(2, 21, (Action("head_lr", 5e-4),)),
    )
    reports: list[dict[str, Any]] = []
    ports = Ports(report=reports.append, poll=polls, decides=False)
    outcome = run(small_config(records, ["train.max_steps=30"]), tmp_path, ports)
    assert outcome.verdict == "WAIT"
    applied = events(tmp_path, "directive")
    assert [(e["step"], e["directive"]["number"]) for e in applied] == [(10, 1), (20, 2)]
    by_step = {r["step"]: r for r in reports}
    assert by_step[20]["health"]["sdm_weight"] == 0.25
    assert by_step[30]["health"]["head_lr"] == 5e-4
    assert by_step[30]["directive"] == 2
    assert by_step[30]["decision"] is None
    assert by_step[30]["finished"]


def test_a_stop_directive_ends_the_run_with_a_checkpoint(records: Path, tmp_path: Path):
    ports = Ports(poll=sending(Directive.to_stop(1, "NO_GO")), decides=False)
    outcome = run(small_config(records), tmp_path, replace(ports, poll=_after(5, ports.poll)))
    assert (outcome.verdict, outcome.words) == ("STOPPED", "NO_GO")
    assert [step_of(p) for p in checkpoints(tmp_path)] == [outcome.summary["steps"]]


def _after(polls: int, poll: Callable[[int], Any]) -> Callable[[int], Any]:
    seen = 0

    def late(applied: int) -> Any:
        nonlocal seen
        seen += 1
        return poll(applied) if seen > polls else None

    return late


def test_a_run_stopped_at_any_step_and_continued_equals_the_straight_run(
    records: Path, tmp_path: Path
):
    config = small_config(records, ["train.max_steps=40"])
    run(config, tmp_path / "straight", Ports(decides=False))
    stop = Ports(poll=_after(13, sending(Directive.to_stop(1, ""))), decides=False)
    assert run(config, tmp_path / "stopped", stop).verdict == "STOPPED"
    assert state(tmp_path / "stopped")["progress"]["step"] == 13
    run(config, tmp_path / "stopped", Ports(decides=False))
    straight, again = (without_clock(state(tmp_path / n)) for n in ("straight", "stopped"))
    assert again["progress"].pop("directive") == 1
    assert straight["progress"].pop("directive") == 0
    for part in straight:
        assert same(straight[part], again[part]), part


def test_directives_given_after_the_checkpoint_are_replayed_where_they_were_applied(
    records: Path, tmp_path: Path
):
    overrides = ["train.max_steps=40", "train.checkpoint_every=10", "train.keep_checkpoints=99"]
    config = small_config(records, overrides)
    polls = sending(Directive(1, 26, (Action("sdm_weight", 0.25),), "rescaled"))
    run(config, tmp_path / "straight", Ports(poll=polls, decides=False))
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "straight", resumed)
    for folder in checkpoints(resumed):
        if step_of(folder) > 20:
            shutil.rmtree(folder)
    killed = replace(Ports(), poll=dies_after(2), decides=False)
    with pytest.raises(KeyboardInterrupt):
        run(config, resumed, killed)
    run(config, resumed, Ports(poll=polls, decides=False))
    straight, again = (without_clock(state(tmp_path / n)) for n in ("straight", "resumed"))
    assert all(same(straight[part], again[part]) for part in straight)


def test_a_pause_goes_on_with_the_next_command_and_not_with_a_restart_of_this_one(
    records: Path, tmp_path: Path
):
    """Its end stands in the journal before anybody has heard of it."""
    config = small_config(records, ["train.max_steps=12"])
    paused = Directive(1, 6, reason="paused", state=PolicyState(verdict=Verdict.PAUSE))
    polls = Ports(poll=sending(paused), decides=False)
    for attempt in (1, 2):
        outcome = train(config, tmp_path, Distributed.single(), polls, told=0)
        assert (outcome.verdict, outcome.summary["steps"]) == ("PAUSE", 6)
        assert [e["attempt"] for e in events(tmp_path, "end")] == list(range(1, attempt + 1))
    outcome = train(config, tmp_path, Distributed.single(), Ports(decides=False), told=2)
    assert (outcome.verdict, outcome.summary["steps"]) == ("GO", 12)


def test_a_non_finite_gradient_stops_the_run_before_it_changes_a_weight(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = small_config(records, ["train.checkpoint_every=10"])
    made: list[Any] = []
    prepare = loop_module.to_inputs

    def poisoned(batch: Any, model: Any, *args: Any) -> Any:
        inputs = prepare(batch, model, *args)
        made.append(model)
        if len(made) == 13:
            inputs.images[0] = torch.nan
            model.kept = {n: p.detach().clone() for n, p in model.named_parameters()}
        return inputs

    monkeypatch.setattr(loop_module, "to_inputs", poisoned)
    with pytest.raises(NonFiniteError, match="step 13"):
        run(config, tmp_path)
    assert all(torch.equal(p, made[-1].kept[n]) for n, p in made[-1].named_parameters())
    assert [step_of(p) for p in checkpoints(tmp_path)] == [10]
    assert events(tmp_path, "error")[-1]["kind"] == "NonFiniteError"


def test_records_of_another_size_are_refused(records: Path, tmp_path: Path):
    config = small_config(records, ["model.backbone.image_size=[64, 32]"])
    with pytest.raises(DataError, match=r"48x24.*64x32"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_transformer_computes_in_the_precision_asked_for(
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dtype: torch.dtype,
):
    seen: set[torch.dtype] = set()
    build = parts_module.CrossReID

    def watched(*args: Any) -> Any:
        model = build(*args)
        model.backbone.image_transformer.register_forward_hook(
            lambda module, given, out: seen.add(out.dtype)
        )
        return model

    monkeypatch.setattr(parts_module, "CrossReID", watched)
    run(small_config(records, [f"train.precision={precision}", "train.max_steps=3"]), tmp_path)
    assert seen == {dtype}
    assert {p.dtype for p in state(tmp_path)["model"].values()} == {torch.float32}


def test_clipping_does_not_hide_the_gradient_of_the_head(records: Path, tmp_path: Path):
    run(small_config(records, ["optim.clip_norm=1e-6", "train.max_steps=20"]), tmp_path)
    assert events(tmp_path, "health")[-1]["health"]["head_grad_norm"] > 0.01


def steering(*told: Directive) -> Ports:
    return Ports(poll=sending(*told), decides=False)


def test_lowering_p_waits_for_the_epoch_and_lengthens_it(records: Path, tmp_path: Path):
    lower = Directive(1, 6, (Action("ids_per_batch", 5),))
    config = small_config(records, ["train.max_steps=100", "log.health_every=5"])
    run(config, tmp_path, steering(lower))
    health = [e["health"] for e in events(tmp_path, "health")]
    first = health[0]["steps_per_epoch"]
    (changed,) = events(tmp_path, "plan")
    assert changed["step"] == first
    for line in health:
        assert line["ids_per_batch"] == (8 if line["step"] <= first else 5)
    later = [line for line in health if line["step"] > first]
    assert later[0]["epoch"] == 2
    assert later[0]["step_in_epoch"] == later[0]["step"] - first
    assert {line["steps_per_epoch"] for line in later} == {-(-first * 8 // 5)}
    ends = [line["step"] for line in later if line["step_in_epoch"] == line["steps_per_epoch"]]
    assert [e["step"] for e in events(tmp_path, "epoch")][2:4] == ends[:2]
    assert health[-1]["step"] == 100


@pytest.mark.parametrize("cut", [10, 16, 30])
def test_a_run_with_a_lowered_p_resumes_bit_for_bit(records: Path, tmp_path: Path, cut: int):
    lower = Directive(1, 6, (Action("ids_per_batch", 5),))
    overrides = ["train.max_steps=40", f"train.checkpoint_every={cut}", "train.keep_checkpoints=99"]
    config = small_config(records, overrides)
    run(config, tmp_path / "straight", steering(lower))
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for folder in checkpoints(tmp_path / "resumed"):
        if step_of(folder) != cut:
            shutil.rmtree(folder)
    run(config, tmp_path / "resumed", steering(lower))
    straight, resumed = (without_clock(state(tmp_path / n)) for n in ("straight", "resumed"))
    assert straight["progress"]["ids"]
    for part in straight:
        assert same(straight[part], resumed[part]), part


def test_flushing_empties_the_memory_and_it_fills_again(records: Path, tmp_path: Path):
    flush = Directive(1, 15, (Action("flush_memory"), Action("audit_sampler")))
    config = small_config(records, ["train.max_steps=24", "log.health_every=1"])
    run(config, tmp_path, steering(flush))
    rows = {e["step"]: e["health"]["memory_rows"] for e in events(tmp_path, "health")}
    full = rows[14]
    assert full == 6 * 8
    assert [rows[step] for step in range(15, 24)] == [8, 16, 24, 32, 40, 48, 48, 48, 48]
    (audit,) = events(tmp_path, "audit")
    assert (audit["step"], audit["unpaired_ids"], audit["repeated_rows"]) == (14, 0, 0)


def poisoned_after(step: int) -> Callable[..., Any]:
    """Features that turn into noise after some steps: what was learned is of no use any more."""
    prepare, calls = loop_module.to_inputs, iter(range(1, 10_000))

    def poisoned(*args: Any) -> Any:
        inputs = prepare(*args)
        if next(calls) > step:
            inputs.images.normal_()
            inputs.tokens.random_(1, 400)
        return inputs

    return poisoned


PATIENCE = ["policy.collapse_patience=30", "policy.rise_patience=20", "policy.collapse=0.97"]
GENTLE = ["optim.head_lr=3e-3", "train.max_steps=400", "log.health_every=10"]


def test_a_collapse_is_rolled_back_then_paused_and_can_be_resumed(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = small_config(records, [*PATIENCE, *GENTLE])
    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "to_inputs", poisoned_after(100))
        outcome = run(config, tmp_path)
    assert (outcome.verdict, outcome.exit_code) == ("PAUSE", ExitCode.PAUSED)
    assert outcome.cause == "collapse_after_sdm"
    told = [e for e in events(tmp_path, "decision") if e["verdict"] in ("ROLLBACK", "PAUSE")]
    assert told[0]["verdict"] == "ROLLBACK"
    assert told[-1]["verdict"] == "PAUSE"
    weights = [e["health"]["sdm_weight"] for e in events(tmp_path, "health")]
    assert max(weights) > 0
    assert weights[-1] == 0
    assert events(tmp_path, "audit")[0]["unpaired_ids"] == 0
    paused_at = outcome.summary["steps"]
    assert [step_of(p) for p in checkpoints(tmp_path)] == [paused_at]
    again = run(config, tmp_path)
    assert events(tmp_path, "start")[-1]["step"] == paused_at
    assert (again.verdict, again.summary["steps"]) == ("GO", 400)


def test_a_pause_that_was_never_told_is_told_after_a_crash(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = small_config(records, [*PATIENCE, *GENTLE])
    monkeypatch.setattr(loop_module, "to_inputs", poisoned_after(100))
    first = run(config, tmp_path)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["event"] != "end"]
    (tmp_path / "journal.jsonl").write_text("\n".join(kept) + "\n")
    again = run(config, tmp_path)
    assert (again.verdict, again.summary["steps"]) == ("PAUSE", first.summary["steps"])


def test_a_probe_starts_low_and_rises_when_ce_stands(records: Path, tmp_path: Path):
    probe = "optim.head_probe={lr: 1e-6, to: 3e-3, after: 20}"
    run(small_config(records, [probe, "optim.head_lr=1e-2", "log.health_every=10"]), tmp_path)
    rates = {e["step"]: e["health"]["head_lr"] for e in events(tmp_path, "health")}
    assert rates[20] == 1e-6
    assert rates[30] == 3e-3
    (risen,) = [e for e in events(tmp_path, "decision") if e["actions"] and e["step"] == 20]
    assert risen["verdict"] == "WAIT"


def test_a_layer_that_nobody_asked_to_freeze_is_refused(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build = parts_module.CrossReID

    def frozen(*args: Any) -> Any:
        model = build(*args)
        model.backbone.patch.requires_grad_(False)
        return model

    monkeypatch.setattr(parts_module, "CrossReID", frozen)
    with pytest.raises(FrozenLayerError, match="patch"):
        run(small_config(records), tmp_path)


def test_a_trial_keeps_the_state_that_was_decided_for_it(records: Path, tmp_path: Path):
    decided = PolicyState(verdict=Verdict.GO, notch=2, notch_step=15, best=0.9)
    raise_ = Directive(1, 6, (Action("sdm_weight", 0.3),), state=decided)
    config = small_config(records, ["train.max_steps=20"])
    run(config, tmp_path, steering(raise_))
    kept = state(tmp_path)["progress"]
    assert PolicyState.from_dict(kept["policy"]) == decided
    assert kept["sdm"]["weight"] == 0.3


def test_chance_counts_the_people_who_are_drawn(tmp_path: Path):
    """Who never comes is no choice: a head that learned only that would look like it learned."""
    people = make_records(tmp_path / "data", people=36)
    lonely = vis_only(people, tmp_path / "records", people=12)
    run(small_config(lonely, ["train.max_steps=20"]), tmp_path / "run")
    (start,) = events(tmp_path / "run", "start")
    last = events(tmp_path / "run", "health")[-1]["health"]
    assert start["num_classes"] == 24
    assert last["num_classes"] == 12
    assert any("ln 12 = 2.485 (12 of 24 people are drawn)" in line for line in start["schedule"])
    first = events(tmp_path / "run", "health")[0]["health"]
    assert first["ce"] == pytest.approx(math.log(12), abs=0.1)


def test_p_is_not_lowered_when_that_would_leave_most_people_out(tmp_path: Path):
    people = make_records(tmp_path / "data", people=36)
    mixed = vis_only(people, tmp_path / "records", people=21)
    soft = ["sampler.on_unpairable=soft", "sampler.soft_share=0.9", "train.max_steps=60"]
    lower = Directive(1, 4, (Action("ids_per_batch", 2),))
    run(small_config(mixed, soft), tmp_path / "run", steering(lower))
    (told,) = events(tmp_path / "run", "plan")
    assert "P stays: a lower P would draw 3 of 24 people only" in told["plan"]
    assert {e["health"]["ids_per_batch"] for e in events(tmp_path / "run", "health")} == {8}


def test_a_resumed_pause_that_is_lost_early_goes_on_from_its_step(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = small_config(records, [*PATIENCE, *GENTLE])
    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "to_inputs", poisoned_after(100))
        paused = run(config, tmp_path)
    assert paused.verdict == "PAUSE"
    at = paused.summary["steps"]
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, Ports(poll=dies_after(5)))
    again = run(config, tmp_path)
    assert [e["step"] for e in events(tmp_path, "start")] == [0, at, at]
    assert again.summary["steps"] == 400


def test_a_cut_never_raises_the_rate_in_force(records: Path, tmp_path: Path):
    late = Directive(1, 20, (Action("head_lr", 9e-3), Action("head_probe", 9e-3)))
    rates = "optim.head_lr=[{epoch: 1, lr: 1e-2}, {epoch: 2, lr: 1e-3}]"
    config = small_config(records, [rates, "train.max_steps=40", "loss.sdm.min_steps=0"])
    run(config, tmp_path, steering(late))
    assert events(tmp_path, "health")[-1]["health"]["head_lr"] == 1e-3
