"""The training loop: one process a rank, the same under Ray, torchrun or alone.

    plan -> loader -> model -> objective -> health -> decide -> act

Rank and world come in as a value; Ray is not known here. Whatever a rank finds out alone (a broken
record, a directive) is agreed by all ranks before anybody acts on it.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from service.bounds import Rules
from service.config import Config
from service.data.layout import Batch
from service.data.records import Records
from service.decisions import Action, Decision, Verdict
from service.distributed import Distributed
from service.errors import CrossReidError, DataError, LostRankError, SamplerError
from service.evaluation.evaluator import evaluate
from service.gonogo import decide, resumed
from service.health import HealthReport, StepSample
from service.losses.objective import NUM_KINDS, LossTerms, SdmWeight, StepRows, objective
from service.losses.pairs import Pairs
from service.modality import Modality
from service.model.reid import Embeddings
from service.training import events
from service.training.acts import act
from service.training.checkpoint import State
from service.training.determinism import deterministic_kernels
from service.training.ending import ending, health_facts, not_finite, write_summary
from service.training.gauges import Before, read_before, read_gauges, read_share
from service.training.history import look_back, pack, unpack
from service.training.meters import StepMeter
from service.training.optim import HeadSchedule, LaggedFlag, guard, learning_rates, set_rates
from service.training.parts import (
    build_parts,
    raise_together,
    step_seed,
    to_inputs,
    together,
    unhurried,
    with_ids,
    with_lower_ids,
)
from service.training.ports import Outcome, Ports
from service.training.saving import Saving
from service.training.schedule import Schedule
from service.training.state import Progress
from service.training.steering import Steering
from service.training.telling import Telling


def train(
    config: Config, run_dir: Path, world: Distributed, ports: Ports, *, told: int | None = None
) -> Outcome:
    """Trains, judges and evaluates one run in `run_dir`, from its newest checkpoint if it has one.

    Every rank of `world` must call it with the same config. Nothing in `run_dir` is written by
    another rank than 0. told: the last attempt whose end the user has heard of; of all when None. A
    pause that nobody has heard of stays one.

    Raises:
        LostRankError: another rank hangs or has ended.
        CrossReidError: on all ranks together, for a mistake in config, data or numbers.
    """
    with deterministic_kernels(config.train.deterministic):
        trainer = Trainer(config, run_dir, world, ports, told)
        try:
            # Here, before `close` waits for a checkpoint: the others ask who came for seconds only.
            with world.names_the_lost():
                return trainer.run()
        except LostRankError:
            # Not the run's end: another attempt goes on from its checkpoint.
            raise
        except CrossReidError as error:
            trainer.emit(events.error(error))
            raise
        finally:
            trainer.close()


class Trainer:
    """One run on one rank: its parts, and the progress that changes from step to step."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        world: Distributed,
        ports: Ports,
        told: int | None = None,
    ) -> None:
        self.config, self.run_dir, self.world, self.ports = config, run_dir, world, ports
        self.told = told
        self.parts = build_parts(config, world, self._waits)
        self.rules = Rules.of(config)
        self.flag = LaggedFlag(world.device)
        self.meter = StepMeter(config.loss.sdm.form)
        self.telling = Telling(ports.event)
        self.emit = self.telling.tell
        self.saving = Saving(config, run_dir, world, self.parts.records.fingerprint, self.emit)
        self.progress = Progress(
            sdm=SdmWeight.at_start(config.loss.sdm), head=HeadSchedule.at_start(config.optim)
        )
        self.steering = Steering(world, ports, self.emit, self._act)
        self.newest: HealthReport | None = None
        self.decision: Decision | None = None
        self.unlogged: list[StepSample] = []
        self.began = time.monotonic()
        self.stepped_at = 0.0

    def run(self) -> Outcome:
        self._resume()
        self.emit(events.start(self.config, self.parts, self.progress, self.world.world))
        self.parts.health.start(float(self.parts.model.classifier.weight.detach().norm()))
        self.parts.model.train()
        self.stepped_at = time.perf_counter()
        for batch, waited_s in self._batches():
            self._step(batch, waited_s)
        self._flush()
        if self._is_complete:
            self._log()
        # Checkpoints may lie elsewhere than a journal that cannot be written; one try shows it.
        again = not self.steering.halted
        self.saving.finish(self.progress.step, self._score, self._pack, again=again)
        raise_together(self.world, self.telling.error)
        outcome = self._finish()
        raise_together(self.world, self.telling.error)
        return outcome

    def close(self) -> None:
        """Waits for the checkpoint being written, also after an error."""
        self.saving.close()
        self.telling.close()

    # -- before the first step ---------------------------------------------------------------

    def _waits(self, seconds: float) -> None:
        """Tells the outside that records or weights are on their way."""
        if self.world.rank == 0:
            self.ports.event(events.fetching(seconds))

    def _resume(self) -> None:
        """Takes over the newest whole checkpoint, and lines up the directives given after it.

        Only rank 0 looks into the run's folder; the others hear what it found.
        """
        past = together(self.world, lambda: look_back(self.run_dir, self.world.rank, self.told))
        self.telling.journal = past.journal
        past = self.world.broadcast_object(past._replace(journal=None))
        state = self.saving.newest(past.written, is_new=past.is_new)
        if state is not None:
            self.progress, self.newest, self.unlogged = unpack(self.parts, state)
            for after_step, ids in self.progress.ids:
                self.parts = with_ids(self.parts, self.config, self.world, ids, after_step)
            if self.progress.step in past.ends:
                self.progress.policy = resumed(self.progress.policy, self.progress.step)
        self.steering.replay(past.directives, after_step=self.progress.step)

    # -- batches, agreed on ------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Batches from the next step on, each agreed on by all ranks, with the seconds that it was
        waited for; ends with the run, a verdict that ends it, a stop, or a journal that cannot be
        written."""
        while not self._is_over():
            begun = self.schedule.step_in_epoch(self.progress.step + 1) - 1
            if not begun:
                self._change_ids()
            epoch = self.schedule.epoch(self.progress.step + 1)
            batches = self.parts.loader.epoch(epoch, begun)
            self.emit(events.epoch(self.config, self.progress, epoch))
            try:
                while not self._is_over() and self.schedule.epoch(self.progress.step + 1) == epoch:
                    begin = time.perf_counter()
                    batch, error = _next_batch(batches)
                    waited_s = time.perf_counter() - begin
                    error = error or self.saving.fatal
                    leaving = self.steering.before_step(
                        self.progress, error, halt=self.telling.error is not None
                    )
                    if self.steering.stopped or self.steering.halted or batch is None:
                        return
                    if leaving:
                        self._save_ahead(leaving)
                    yield batch, waited_s
            finally:
                batches.close()

    def _change_ids(self) -> None:
        """Between two epochs: takes over a P that was asked for, or says why it stays; all ranks
        come to the same, since a plan depends on nothing that differs between them."""
        if self.progress.next_ids is None:
            return
        step, ids = self.progress.step, self.progress.next_ids
        self.progress.next_ids = None
        try:
            self.parts = with_lower_ids(self.parts, self.config, self.world, ids, step)
        except SamplerError as error:
            self.emit({"event": "plan", "step": step, "plan": f"P stays: {error}"})
            return
        plan = self.parts.plan
        self.progress.ids.append((step, plan.ids_per_batch))
        self.emit({"event": "plan", "step": step, "plan": plan.stats.text()})

    def _is_over(self) -> bool:
        return (
            self.progress.step >= self.schedule.total
            or self.steering.stopped is not None
            or self.progress.policy.verdict.ends
        )

    @property
    def _is_complete(self) -> bool:
        """Whether the run has come to an end that nobody goes on from."""
        is_cut = self.steering.stopped is not None or self.steering.halted
        return not is_cut and self.progress.policy.verdict is not Verdict.PAUSE

    @property
    def schedule(self) -> Schedule:
        return self.parts.schedule

    # -- one step ----------------------------------------------------------------------------

    def _step(self, batch: Batch, waited_s: float) -> None:
        config, parts, optimizer = self.config, self.parts, self.parts.optimizer
        step = self.progress.step + 1
        rates = learning_rates(step, self.schedule.total, self.progress.head, config.optim)
        set_rates(optimizer, rates)
        torch.manual_seed(step_seed(config.run.seed, step, self.world.rank))

        terms, out, vis = self._forward(batch)
        is_report = self.schedule.is_report(step)
        share = read_share(terms, out.rows, self.world) if is_report else 0.0
        terms.total.backward()
        before = read_before(parts.model, share) if is_report else None
        guard(optimizer, config.optim.clip_norm)
        self.flag.push(optimizer.found_inf)  # type: ignore[attr-defined]  # see build_optimizer
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if parts.memory is not None:
            layout, is_vis = batch.layout, batch.layout.kind == Modality.VIS
            parts.memory.push(vis, torch.from_numpy(layout.class_index[is_vis]), step)
        self.progress.step = step
        self._check_finite(self.flag.raised())

        counts = np.bincount(batch.layout.kind, minlength=NUM_KINDS).tolist()
        now = time.perf_counter()
        seconds, self.stepped_at = now - self.stepped_at, now
        self.meter.add(
            step,
            terms,
            tuple(counts),
            scheduled=self.progress.sdm.weight,
            seconds=seconds,
            data_wait_s=waited_s,
        )
        if terms.pairs.unpaired:
            self.emit(events.unpaired(self.config, batch, terms.pairs, step))
        self._after_step(step, before)

    def _forward(self, batch: Batch) -> tuple[LossTerms, Embeddings, torch.Tensor]:
        """The loss terms, what they were made of, and the global VIS rows for the memory."""
        config, parts, device = self.config, self.parts, self.world.device
        kept = parts.memory.held_classes().numpy() if parts.memory else np.empty(0, np.int64)
        rows = StepRows.of(batch.layout, device)
        half = config.train.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            out = parts.wrapped(to_inputs(batch, parts.model, config, device))
        terms = objective(
            rows=out.rows,
            gathered=out.gathered,
            after_neck=out.after_neck,
            logits=out.logits,
            step=rows,
            choice=parts.choice,
            pairs=Pairs.of(batch.layout, kept),
            memory=parts.memory,
            weight=self.progress.sdm,
            config=config.loss,
            world=self.world.world,
        )
        return terms, out, out.gathered.detach().index_select(0, rows.vis)

    def _check_finite(self, raised: bool) -> None:
        """The gradients are equal on all ranks, so all of them raise here together."""
        if raised:
            raise not_finite(self.progress.step, self.run_dir)

    # -- after a step ------------------------------------------------------------------------

    def _after_step(self, step: int, before: Before | None) -> None:
        schedule = self.schedule
        if schedule.is_flush(step):
            self._flush()
        if schedule.is_log(step):
            self._log()
        if before is not None:
            self._report(step, before)
        if schedule.is_checkpoint(step) and step < schedule.total:
            self.saving.take(step, self._score, self._pack)
        if self.world.rank == 0:
            line = events.progress_line(self.newest, self.progress if self.ports.decides else None)
            self.ports.progress(step, schedule.total, line)

    def _log(self) -> None:
        """Tells of the steps since the last time, as means; those that cannot be told are kept."""
        if self.unlogged:
            self.emit(events.steps(self.unlogged))
        if self.telling.error is None:
            self.unlogged.clear()

    def _flush(self) -> None:
        """Asks the device for its measurements; whatever is saved next knows every step."""
        self._check_finite(self.flag.raised(wait=True))
        samples = self.meter.flush(self.world)
        self.parts.health.add(samples)
        self.unlogged += samples

    def _report(self, step: int, before: Before) -> None:
        gauges = read_gauges(self.parts, self.progress, self.config, self.world, before)
        report = self.parts.health.report(
            step=step,
            epoch=self.schedule.epoch(step),
            step_in_epoch=self.schedule.step_in_epoch(step),
            steps_per_epoch=self.schedule.steps_per_epoch(step),
            total_steps=self.schedule.total,
            gauges=gauges,
        )
        self.newest = report
        self.emit({"event": "health", "step": step, "health": report.to_dict()})
        if self.ports.decides:
            self._decide(report)
        if report.is_epoch_end:
            self.progress.head = self.progress.head.at_epoch_end(
                self.config.optim.head_lr,
                epoch=report.epoch,
                step=step,
                min_gap=self.schedule.head_gap(step),
            )
        self.ports.report(events.report(report, self.decision, self.progress))

    def _decide(self, report: HealthReport) -> None:
        self.progress.policy, decision = decide(self.progress.policy, report, self.rules)
        self.decision = decision
        self.emit(events.decision(decision, self.progress.policy))
        notch = f"notch {self.progress.policy.notch} of {len(self.rules.sdm.notches)}"
        for action in decision.actions:
            self._act(action, self.progress, decision.reason or notch)
        if decision.sdm_reason:
            self.progress.sdm = SdmWeight(self.progress.sdm.weight, decision.sdm_reason)

    def _act(self, action: Action, progress: Progress, reason: str) -> None:
        act(action, progress, self.parts.memory, self.config.optim.head_lr, reason)
        if action.name == "audit_sampler":
            self.emit(events.audit(self.parts, self.progress.step))

    # -- checkpoints -------------------------------------------------------------------------

    def _save_ahead(self, machines: str) -> None:
        """Some machines will be taken away: what was trained so far is saved, and goes on."""
        self.emit(events.leaving(self.progress.step, machines))
        self._flush()
        self.saving.take(self.progress.step, self._score, self._pack)

    def _pack(self) -> State:
        return pack(self.parts, self.progress, self.newest, self.unlogged)

    @property
    def _score(self) -> float | None:
        """How good the newest report found the run; less is better."""
        return self.newest.ce_fraction if self.newest else None

    # -- the end -----------------------------------------------------------------------------

    def _finish(self) -> Outcome:
        """The verdict is on disk before the evaluation begins, which may still fail."""
        facts = {
            "run_id": self.run_dir.name,
            "steps": self.progress.step,
            "world_size": self.world.world,
            "num_classes": self.parts.records.num_classes,
            **health_facts(self.newest),
        }
        outcome = ending(self.progress.policy, self.steering.stopped, facts)
        outcome.summary["wall_seconds"] = round(time.monotonic() - self.began, 2)
        write_summary(self.world, self.run_dir, outcome)
        if self.config.eval.after_training and outcome.verdict in (Verdict.GO, Verdict.WAIT):
            test = unhurried(self.world, lambda: Records.open(self.config.data.records, "test"))
            result = evaluate(self.parts.model, test, self.world, self.config.eval.batch_rows)
            outcome.summary.update(result.to_summary())
            outcome.summary["wall_seconds"] = round(time.monotonic() - self.began, 2)
            write_summary(self.world, self.run_dir, outcome)
        self.emit({"event": "end", "step": self.progress.step, **outcome.to_dict()})
        return outcome


def _next_batch(batches: Iterator[Batch]) -> tuple[Batch | None, CrossReidError | None]:
    """The next batch, or the error that stands in its way."""
    try:
        return next(batches), None
    except CrossReidError as error:
        return None, error
    except StopIteration:
        return None, DataError("the loader ended before the epoch did; its length is wrong")
