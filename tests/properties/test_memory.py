"""The ring against the obvious model: a list of steps, cut to the newest few."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.losses.memory import CrossBatchMemory

DIM = 3


class MemoryMachine(RuleBasedStateMachine):
    """Any order of pushes, flushes, saves and restores."""

    @initialize(steps=st.integers(1, 4), rows_per_step=st.integers(1, 3))
    def start(self, steps, rows_per_step):
        self.memory = CrossBatchMemory(steps, rows_per_step, DIM)
        self.model = []
        self.saved = (self.memory.state_dict(), [])
        self.step = 0

    @rule(share=st.floats(0, 1), skip=st.integers(1, 3), seed=st.integers(0, 2**31))
    def push(self, share, skip, seed):
        self.step += skip
        n = round(share * self.memory.rows_per_step)
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(n, DIM, generator=generator)
        classes = torch.randint(0, 9, (n,), generator=generator)
        self.memory.push(features, classes, self.step)
        self.model = [*self.model, (self.step, features, classes)][-self.memory.steps :]

    @rule()
    def flush(self):
        self.memory.flush()
        self.model = []

    @rule()
    def save(self):
        self.saved = (self.memory.state_dict(), list(self.model))

    @rule()
    def restore(self):
        state, self.model = self.saved
        steps, rows_per_step = self.memory.steps, self.memory.rows_per_step
        self.memory = CrossBatchMemory(steps, rows_per_step, DIM)
        self.memory.load_state_dict(state)

    @invariant()
    def counts_and_ages_are_the_models(self):
        assert self.memory.rows == sum(len(classes) for _, _, classes in self.model)
        assert self.memory.slots == len(self.model)
        assert self.memory.ages(self.step) == [self.step - step for step, _, _ in self.model]
        expected = [c for _, _, classes in self.model for c in classes.tolist()]
        assert self.memory.held_classes().tolist() == expected

    @invariant()
    def filled_rows_of_the_view_are_the_models(self):
        features, classes = self.memory.view()
        found = sorted(
            (c, *row) for c, row in zip(classes.tolist(), features.tolist(), strict=True) if c >= 0
        )
        expected = sorted(
            (c, *row)
            for _, rows, classes in self.model
            for c, row in zip(classes.tolist(), rows.tolist(), strict=True)
        )
        assert found == expected
        assert not features.requires_grad
        assert not features[classes < 0].any()

    @invariant()
    def the_fingerprint_depends_on_what_is_held_only(self):
        fresh = CrossBatchMemory(self.memory.steps, self.memory.rows_per_step, DIM)
        for step, features, classes in self.model:
            fresh.push(features, classes, step)
        assert fresh.fingerprint() == self.memory.fingerprint()


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
