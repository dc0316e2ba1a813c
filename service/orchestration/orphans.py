"""Placement groups of workers that are of no use any more, above all what a lost controller leaves.

Ray ends the workers with their controller, but keeps their resources for the driver's life, unless
its dashboard runs; a second group of workers would wait for them for ever.
"""

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import ActorHandleNotFoundError
from ray.util.placement_group import PlacementGroup, remove_placement_group

QUIET_S = 3.0
"""Seconds in which Ray has heard that a group's creator is dead."""
_PATIENCE_S = 60.0
_LOOK_S = 0.2
_NO_ACTOR = (b"", ray.ActorID.nil().binary())


def free_orphans(patience_s: float = _PATIENCE_S) -> int:
    """Removes every placement group of this job whose creator is dead, and waits until they are
    gone, with all that ran in them; at most `patience_s`. How many there were."""
    removed: set[bytes] = set()
    began = quiet_since = time.monotonic()
    while time.monotonic() - began < patience_s:
        going = remove_orphans()
        removed |= going
        if going:
            quiet_since = time.monotonic()
        elif removed or time.monotonic() - quiet_since >= QUIET_S:
            break
        time.sleep(_LOOK_S)
    return len(removed)


def end_actor(actor: str | None) -> None:
    """Ends the actor with this id (hex) if it still lives, also one that Ray only took for lost;
    nothing happens where this process did not make it, or has let it go."""
    from ray._private import worker

    # It has a core worker only once it is connected, of which a type checker sees nothing.
    connected: Any = worker.global_worker
    if actor is not None:
        with contextlib.suppress(ActorHandleNotFoundError):
            connected.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)


def actor_is_dead(actor: str) -> bool:
    """Whether Ray says so of the actor with this id; False when it cannot tell.

    Ray's public way to ask needs its dashboard.
    """
    from ray._private import state

    if not actor:
        return False
    try:
        return state.actors(actor).get("State") == "DEAD"
    except (AttributeError, RuntimeError, ValueError):
        return False


def remove_orphans() -> set[bytes]:
    """Asks Ray to remove every placement group of this job whose creator is dead; their ids, also
    of those that were asked for before and are not gone yet.

    Ray marks those that are there when their creator dies. A process outlives its actor's death by
    some moments, in which it may make one more, which Ray never marks.
    """
    return _remove(
        group
        for group in _made_by_actors()
        if group.creator_actor_dead or actor_is_dead(group.creator_actor_id.hex())
    )


def remove_own() -> set[bytes]:
    """Asks Ray to remove every placement group that the actor in this process made and has got room
    for, with all that runs in it; their ids."""
    own = ray.get_runtime_context().get_actor_id()
    return _remove(
        group
        for group in _made_by_actors()
        if group.creator_actor_id.hex() == own and group.state == group.CREATED
    )


def _remove(groups: Iterable[Any]) -> set[bytes]:
    ids = {group.placement_group_id for group in groups}
    for one in ids:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(one)))
    return ids


def _made_by_actors() -> list[Any]:
    """This job's placement groups that are not gone, as Ray's head keeps them; its public table
    does not name their creators.

    The driver's own groups, such as those of Tune's trials, have no actor as their creator.
    """
    from ray._private import state
    from ray.core.generated import gcs_pb2

    # Generated code, of which a type checker sees nothing.
    kind: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
    accessor: Any = state.state._connect_and_get_accessor()
    job = ray.get_runtime_context().get_job_id()
    table = [kind.FromString(data) for data in accessor.get_placement_group_table()]
    return [
        group
        for group in table
        if group.creator_job_id.hex() == job
        and group.creator_actor_id not in _NO_ACTOR
        and group.state != kind.REMOVED
    ]
