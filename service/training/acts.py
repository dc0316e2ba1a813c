"""Carries actions out: the same for the loop's own decisions and for directives from outside."""

from dataclasses import replace

from service.decisions import Action
from service.losses.memory import CrossBatchMemory
from service.losses.objective import SdmWeight
from service.training.state import Progress


def act(action: Action, progress: Progress, memory: CrossBatchMemory | None, reason: str) -> None:
    """Changes what `action` names. Ending a run and auditing the sampler are the loop's."""
    match action.name:
        case "sdm_weight":
            progress.sdm = SdmWeight(action.value, reason)
        case "head_lr":
            progress.head = replace(progress.head, override=action.value)
        case "flush_memory":
            if memory is not None:
                memory.flush()
        case "ids_per_batch":
            progress.next_ids = int(action.value)
        case _:
            pass
