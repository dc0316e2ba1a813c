"""When things happen in a run: due steps, and a preview of them all before training starts."""

import math
from dataclasses import dataclass

from service.config import Config
from service.training.optim import HeadSchedule


@dataclass(frozen=True, slots=True)
class Stretch:
    """Epochs of one length: from `first_epoch` (1-based) on, which begins after `after_step`."""

    first_epoch: int
    after_step: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """The calendar of a run; steps are 1-based, and `total` is the last one.

    stretches: more than one when P was lowered on the way, which makes epochs longer. The total
    stays what it was at the start.
    """

    config: Config
    stretches: tuple[Stretch, ...]

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Schedule":
        return cls(config, (Stretch(1, 0, steps_per_epoch),))

    @property
    def total(self) -> int:
        whole = self.config.train.epochs * self.stretches[0].steps_per_epoch
        return min(whole, self.config.train.max_steps or whole)

    def steps_per_epoch(self, step: int) -> int:
        """Steps of the epoch that `step` is in."""
        return self._at(step).steps_per_epoch

    def epoch(self, step: int) -> int:
        """1-based epoch of `step`."""
        at = self._at(step)
        return at.first_epoch + (step - at.after_step - 1) // at.steps_per_epoch

    def step_in_epoch(self, step: int) -> int:
        """1-based place of `step` in its epoch."""
        at = self._at(step)
        return (step - at.after_step - 1) % at.steps_per_epoch + 1

    def is_epoch_end(self, step: int) -> bool:
        return self.step_in_epoch(step) == self.steps_per_epoch(step)

    def changed(self, after_step: int, steps_per_epoch: int) -> "Schedule":
        """The calendar when epochs have another length after `after_step`, an epoch's last."""
        coming = Stretch(self.epoch(after_step) + 1, after_step, steps_per_epoch)
        return Schedule(self.config, (*self.stretches, coming))

    def _at(self, step: int) -> Stretch:
        return next(s for s in reversed(self.stretches) if s.after_step < max(step, 1))

    def is_report(self, step: int) -> bool:
        """Health is judged: at its period, at every look, at an epoch's end, and at the end."""
        policy = self.config.policy
        looks = [policy.first_look, policy.no_go_from, policy.final_look, policy.undecided_until]
        if self.config.optim.head_probe:
            looks.append(self.config.optim.head_probe.after)
        return (
            step % self.config.log.health_every == 0
            or step in looks
            or self.is_epoch_end(step)
            or step == self.total
        )

    def is_checkpoint(self, step: int) -> bool:
        return step % self.config.train.checkpoint_every == 0 or step == self.total

    def is_log(self, step: int) -> bool:
        return step % self.config.log.every == 0

    def is_flush(self, step: int) -> bool:
        """The device is asked for its measurements."""
        return self.is_report(step) or self.is_checkpoint(step) or self.is_log(step)

    def preview(self, num_classes: int, num_drawn: int) -> list[str]:
        """What will happen when, one line each, before the first step.

        Classes that are never drawn are soon ruled out, so chance is among the others.
        """
        config, policy, per_epoch = self.config, self.config.policy, self.steps_per_epoch(1)
        sdm, left_out = config.loss.sdm, num_drawn < num_classes
        head = ", ".join(f"{lr:g} from step {step}" for step, lr in self._head_rates())
        lines = [
            f"{self.total} steps, {per_epoch} an epoch, "
            f"{math.ceil(self.total / per_epoch)} epochs; "
            f"chance CE is ln {num_drawn} = {math.log(num_drawn):.3f}"
            + (f" ({num_drawn} of {num_classes} people are drawn)" if left_out else ""),
            f"verdict: first look at step {policy.first_look}, No-Go line from "
            f"{policy.no_go_from}, final look at {min(policy.final_look, self.total)}",
            f"head learning rate: {head}",
        ]
        if sdm.enabled:
            start = self._sdm_start()
            weights = ", ".join(f"{w:g}" for w in sdm.notches)
            lines.append(
                f"SDM ({sdm.form}) can start at step {start} with weights {weights}"
                if start <= self.total
                else f"SDM cannot start: its first step would be {start}, after the run's end"
            )
        else:
            lines.append("SDM is off (loss.sdm.enabled=false)")
        lines.append(
            f"checkpoint every {config.train.checkpoint_every} steps and at the end; evaluation "
            + ("after training" if config.eval.after_training else "off")
        )
        return lines

    def head_gap(self, step: int) -> int:
        """Least steps between two changes of the head's rate, seen from `step`."""
        return max(self.steps_per_epoch(step), self.config.loss.sdm.min_steps)

    def _head_rates(self) -> list[tuple[int, float]]:
        """First step and rate of each entry of the head's schedule that the run reaches."""
        entries, head = self.config.optim.head_lr, HeadSchedule.at_start(self.config.optim)
        found = [(1, head.lr(entries))]
        for step in range(self.steps_per_epoch(1), self.total, self.steps_per_epoch(1)):
            after = head.at_epoch_end(
                entries, epoch=self.epoch(step), step=step, min_gap=self.head_gap(step)
            )
            if after != head:
                head = after
                found.append((step + 1, head.lr(entries)))
        return found

    def _sdm_start(self) -> int:
        """The first step that may have SDM if the run is healthy from the first look on."""
        policy, sdm, per_epoch = self.config.policy, self.config.loss.sdm, self.steps_per_epoch(1)
        earliest = max(policy.first_look, sdm.min_steps, (sdm.start_epoch - 1) * per_epoch)
        return math.ceil(earliest / per_epoch) * per_epoch + 1
