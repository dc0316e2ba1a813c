"""The train state: everything that must survive a restart, and nothing else."""

from dataclasses import asdict, dataclass, field
from typing import Any

from service.decisions import PolicyState
from service.losses.objective import SdmWeight
from service.training.optim import HeadSchedule


@dataclass(slots=True)
class Progress:
    """Where a run stands besides its tensors.

    step: last *applied* step; the next batch follows from it. directive: number of the last
    directive applied. ids: changes of P, as (last step before it, P); next_ids: one that waits for
    the next epoch. The random numbers of a step derive from (seed, step), so they need no state.
    """

    step: int = 0
    policy: PolicyState = field(default_factory=PolicyState)
    sdm: SdmWeight = field(default_factory=SdmWeight)
    head: HeadSchedule = field(default_factory=HeadSchedule)
    directive: int = 0
    ids: list[tuple[int, int]] = field(default_factory=list)
    next_ids: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a weights-only loader takes it."""
        return {
            "step": self.step,
            "policy": self.policy.to_dict(),
            "sdm": asdict(self.sdm),
            "head": asdict(self.head),
            "directive": self.directive,
            "ids": [list(change) for change in self.ids],
            "next_ids": self.next_ids,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        return cls(
            step=values["step"],
            policy=PolicyState.from_dict(values["policy"]),
            sdm=SdmWeight(**values["sdm"]),
            head=HeadSchedule(**values["head"]),
            directive=values["directive"],
            ids=[(step, ids) for step, ids in values["ids"]],
            next_ids=values["next_ids"],
        )
