"""Evaluating a run that exists: one of its checkpoints, in this process, without Ray."""

import os
from typing import TYPE_CHECKING, Any

from service.errors import CheckpointError, DamagedCheckpointError, RunError
from service.orchestration.runs import Run, open_run
from service.orchestration.summary import SUMMARY_FILE, read_summary, write_summary

if TYPE_CHECKING:
    from service.training.checkpoint import Identity, State
    from service.training.store import Store


def evaluate_run(
    run: str, *, storage: str = "runs", checkpoint: str = "last", device: str | None = None
) -> tuple[Run, dict[str, Any]]:
    """Evaluates a checkpoint of `run` on its test records.

    checkpoint: `last`, `best` (of the lowest CE when it was written), or a step. device: `cpu` or
    `cuda`; the GPU of this machine when None, if it has one. Returns the run and its summary, which
    `summary.json` holds as well afterwards; its `evaluated_step` says which it was.

    Raises:
        RunError: there is no such run, or its folder is read-only.
        DataError: its records cannot be had.
        CheckpointError: it has no such checkpoint, or that one is damaged or of another config or
            other records.
    """
    import torch

    from service.data.records import Records
    from service.data.store import read_manifest
    from service.distributed import Distributed
    from service.evaluation.evaluator import evaluate
    from service.model.reid import CrossReID
    from service.training.store import open_checkpoints

    found = open_run(run, storage)
    config = found.config
    if not os.access(found.path, os.W_OK):
        raise RunError(
            f"cannot write the result to {found.path / SUMMARY_FILE}: the folder is read-only; "
            "copy the run to where it can be written"
        )
    store = open_checkpoints(config.run.checkpoints, found.path)
    records = read_manifest(config.data.records)
    made_with = {"config": config.fingerprint(), "records": records.fingerprint}
    step, state = _loaded(store, checkpoint, found.run_id, made_with)
    world = Distributed.single(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = CrossReID(config.model, records.num_classes, world.gather_rows).to(world.device)
    model.load_state_dict(state["model"])
    test = Records.open(config.data.records, "test")
    result = evaluate(model, test, world, config.eval.batch_rows)
    summary = read_summary(found.path) or {"run_id": found.run_id}
    summary |= {"evaluated_step": step, **result.to_summary()}
    write_summary(found.path, summary)
    return found, summary


def _loaded(
    store: "Store", checkpoint: str, run_id: str, made_with: "Identity"
) -> tuple[int, "State"]:
    """The step that `checkpoint` names, and its state. Of a run that trains meanwhile, the newer
    one where the first was deleted to make room for it.

    Raises:
        CheckpointError: there is none such, or it is damaged or another's.
    """
    from service.training.checkpoint import load

    while True:
        step = chosen(store, checkpoint, run_id)
        try:
            return step, load(store, step, made_with=made_with)
        except DamagedCheckpointError:
            if step in store.steps():
                raise


def chosen(store: "Store", checkpoint: str, run_id: str) -> int:
    """The step that `checkpoint` names: last, best, or a number.

    Raises:
        CheckpointError: there is none such; it names those that there are.
    """
    from service.training.checkpoint import best_of

    steps = store.steps()
    if not steps:
        raise CheckpointError(
            f"run {run_id} has no whole checkpoint in {store.place(0).rpartition('/')[0]}; train "
            "it first, or let it reach train.checkpoint_every steps"
        )
    if checkpoint == "last":
        return steps[-1]
    if checkpoint == "best":
        best = best_of(store, steps)
        if not set(steps) <= set(store.steps()):
            # What was deleted meanwhile may have been the best, until a better one came.
            return chosen(store, checkpoint, run_id)
        if best is None:
            raise CheckpointError(
                f"no checkpoint of run {run_id} was written after a health report, so none is the "
                "best; evaluate --checkpoint last"
            )
        return best
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise CheckpointError(
            f"run {run_id} has no checkpoint {checkpoint!r}; expected last, best or one of the "
            f"steps {', '.join(map(str, steps))}"
        )
    return int(checkpoint)
