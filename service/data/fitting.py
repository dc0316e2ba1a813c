"""Records, plan and config held against each other, before anything is started or written."""

from service.config import Config
from service.data.columns import read_numbers
from service.data.index import IdentityIndex
from service.data.manifest import Manifest
from service.data.records import Records
from service.data.sampler import PKPlan
from service.data.store import read_manifest
from service.errors import DataError, SamplerError
from service.stores import is_local


def open_plan(config: Config, world: int) -> tuple[Records, PKPlan]:
    """The train split and its plan, if they fit the config and a world of that many ranks.

    Without torch.

    Raises:
        DataError: no records there, or images of another size than the model wants.
        SamplerError: too few people to tell apart or for the batch, or a world that cannot hold it.
    """
    records = Records.open(config.data.records, "train")
    _check_size(config, records.manifest)
    if config.eval.after_training:
        Records.open(config.data.records, "test")
    plan = _plan(config, index_of(records))
    plan.check_world(world)
    return records, plan


def plan_for_all(config: Config) -> PKPlan:
    """The plan, if every number of workers that `cluster` allows can hold it.

    Cheap, so that a driver can refuse a run before it starts workers: of remote records it reads
    two columns and no image.

    Raises:
        DataError, SamplerError: as `open_plan`.
    """
    cluster = config.cluster
    if is_local(config.data.records):
        _, plan = open_plan(config, cluster.num_workers)
    else:
        plan = _plan(config, _remote_index(config))
        plan.check_world(cluster.num_workers)
    for world in range(cluster.fewest_workers, cluster.num_workers):
        plan.check_world(world)
    return plan


def index_of(records: Records) -> IdentityIndex:
    """The index of a split's records."""
    return IdentityIndex.build(records.class_index, records.modality, records.num_classes)


def _remote_index(config: Config) -> IdentityIndex:
    url = config.data.records
    manifest = read_manifest(url)
    _check_size(config, manifest)
    if config.eval.after_training:
        read_numbers(url, manifest.shards["test"])
    modality, class_index = read_numbers(url, manifest.shards["train"])
    return IdentityIndex.build(class_index, modality, manifest.num_classes)


def _check_size(config: Config, manifest: Manifest) -> None:
    wanted = tuple(config.model.backbone.image_size)
    if tuple(manifest.image_size) != wanted:
        found, expected = ("x".join(map(str, size)) for size in (manifest.image_size, wanted))
        raise DataError(
            f"{config.data.records} holds images of {found}, the model wants {expected}; ingest "
            f"again with --size {expected}, or set model.backbone.image_size"
        )


def _plan(config: Config, index: IdentityIndex) -> PKPlan:
    plan = PKPlan(index, config.sampler, config.run.seed)
    if len(plan.drawn) < 2:
        raise SamplerError(
            f"only {len(plan.drawn)} of {index.num_classes} people can be drawn, so there is "
            "nobody to tell apart; see why with `crossreid doctor data`"
        )
    return plan
