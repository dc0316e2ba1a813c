"""Carries actions out: the same for the loop's own decisions and for directives from outside."""

from dataclasses import replace

from service.config import HeadLr
from service.decisions import Action
from service.losses.memory import CrossBatchMemory
from service.losses.objective import SdmWeight
from service.training.state import Progress


def act(
    action: Action,
    progress: Progress,
    memory: CrossBatchMemory | None,
    entries: tuple[HeadLr, ...],
    reason: str,
) -> None:
    """Changes what `action` names; entries: the head's schedule.

    An action may arrive after the schedule has moved on, so a cut never raises the rate in force,
    and a probe counts only while the first entry does. Ending a run and auditing the sampler are
    the loop's.
    """
    match action.name:
        case "sdm_weight":
            progress.sdm = SdmWeight(action.value, reason)
        case "head_lr":
            lower = min(action.value, progress.head.lr(entries))
            progress.head = replace(progress.head, override=lower)
        case "head_probe" if progress.head.index == 0:
            progress.head = replace(progress.head, override=action.value)
        case "flush_memory":
            if memory is not None:
                memory.flush()
        case "ids_per_batch":
            progress.next_ids = int(action.value)
        case _:
            pass
