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
    directive applied. The random numbers of a step derive from (seed, step), so they need no state.
    """

    step: int = 0
    policy: PolicyState = field(default_factory=PolicyState)
    sdm: SdmWeight = field(default_factory=SdmWeight)
    head: HeadSchedule = field(default_factory=HeadSchedule)
    directive: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that a weights-only loader takes it."""
        return {
            "step": self.step,
            "policy": {k: _plain(v) for k, v in self.policy.to_dict().items()},
            "sdm": asdict(self.sdm),
            "head": asdict(self.head),
            "directive": self.directive,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        return cls(
            step=values["step"],
            policy=PolicyState.from_dict(values["policy"]),
            sdm=SdmWeight(**values["sdm"]),
            head=HeadSchedule(**values["head"]),
            directive=values["directive"],
        )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value
