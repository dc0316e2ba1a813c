"""Records, plan and config held against each other, before anything is started or written."""

from service.config import Config
from service.data.index import IdentityIndex
from service.data.records import Records
from service.data.sampler import PKPlan
from service.errors import DataError, SamplerError


def open_plan(config: Config, world: int) -> tuple[Records, PKPlan]:
    """The train split and its plan, if they fit the config and a world of that many ranks.

    Cheap and without torch, so that a driver can refuse a run before it starts workers.

    Raises:
        DataError: no records there, or images of another size than the model wants.
        SamplerError: too few people to tell apart or for the batch, or a world that cannot hold it.
    """
    records = Records.open(config.data.records, "train")
    wanted = tuple(config.model.backbone.image_size)
    if tuple(records.image_size) != wanted:
        found, expected = ("x".join(map(str, size)) for size in (records.image_size, wanted))
        raise DataError(
            f"{config.data.records} holds images of {found}, the model wants {expected}; ingest "
            f"again with --size {expected}, or set model.backbone.image_size"
        )
    if config.eval.after_training:
        Records.open(config.data.records, "test")
    plan = PKPlan(index_of(records), config.sampler, config.run.seed)
    if len(plan.drawn) < 2:
        raise SamplerError(
            f"only {len(plan.drawn)} of {records.num_classes} people can be drawn, so there is "
            "nobody to tell apart; see why with `crossreid doctor data`"
        )
    plan.check_world(world)
    return records, plan


def index_of(records: Records) -> IdentityIndex:
    """The index of a split's records."""
    return IdentityIndex.build(records.class_index, records.modality, records.num_classes)
