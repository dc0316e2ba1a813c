"""Evaluating a run that exists: its newest checkpoint, in this process, without Ray."""

import os
from typing import Any

from service.errors import CheckpointError, RunError
from service.orchestration.runs import (
    SUMMARY_FILE,
    Run,
    open_run,
    read_summary,
    write_summary,
)


def evaluate_run(run: str, *, storage: str = "runs") -> tuple[Run, dict[str, Any]]:
    """Evaluates the newest checkpoint of `run` on its test records.

    Returns the run and its summary, which `summary.json` holds as well afterwards.

    Raises:
        RunError: there is no such run, or its folder is read-only.
        CheckpointError: it has no whole checkpoint.
    """
    import torch

    from service.data.records import Records
    from service.distributed import Distributed
    from service.evaluation.evaluator import evaluate
    from service.model.reid import CrossReID
    from service.training.checkpoint import checkpoints, read_checkpoint, step_of

    found = open_run(run, storage)
    config = found.config
    if not os.access(found.path, os.W_OK):
        raise RunError(
            f"cannot write the result to {found.path / SUMMARY_FILE}: the folder is read-only; "
            "copy the run to where it can be written"
        )
    folders = checkpoints(found.path)
    if not folders:
        raise CheckpointError(
            f"run {found.run_id} has no whole checkpoint in {found.path}; train it first, or let "
            "it reach train.checkpoint_every steps"
        )
    state = read_checkpoint(folders[-1], made_with={"config": config.fingerprint()})
    world = Distributed.single("cuda" if torch.cuda.is_available() else "cpu")
    train = Records.open(config.data.records, "train")
    model = CrossReID(config.model, train.num_classes, world.gather_rows).to(world.device)
    model.load_state_dict(state["model"])
    test = Records.open(config.data.records, "test")
    result = evaluate(model, test, world, config.eval.batch_rows)
    summary = read_summary(found.path) or {"run_id": found.run_id}
    summary |= {"evaluated_step": step_of(folders[-1]), **result.to_summary()}
    write_summary(found.path, summary)
    return found, summary
