"""One batch for looking at a model on the CPU: from records, or made up."""

import numpy as np
import torch

from service.config import Config
from service.data.index import IdentityIndex
from service.data.layout import Batch
from service.data.loader import Loader
from service.data.records import Records
from service.data.sampler import PKPlan
from service.data.shares import fused_members, lay_out, take_share
from service.modality import IMAGE_MODALITIES, Modality

MAX_BATCH_ROWS = 64
"""Single rows; a large config's own batch is too much for a CPU."""
_END = 49_407
"""CLIP's end token, the largest id."""


def real_batch(records: Records, config: Config) -> Batch:
    """The first batch of a plan with as few people as a CPU can take."""
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    k = config.sampler.rows_per_id
    p = max(2, min(config.sampler.ids_per_batch, MAX_BATCH_ROWS // k, int(index.pairable.sum())))
    small = config.sampler.model_copy(update={"ids_per_batch": p})
    loader = Loader(
        records, PKPlan(index, small, config.run.seed), config.run.seed, 0, 1, config.loader
    )
    batches = loader.epoch(1)
    try:
        return next(batches)
    finally:
        batches.close()


def made_up_batch(config: Config, context_length: int) -> Batch:
    """People with one row of each modality: random pixels and words."""
    kinds, people = len(Modality), max(2, MAX_BATCH_ROWS // len(Modality))
    rng = np.random.default_rng(config.run.seed)
    modality = np.tile(np.arange(kinds, dtype=np.int8), people)
    person, starts = np.repeat(np.arange(people), kinds), np.arange(people + 1) * kinds
    classes = np.arange(people, dtype=np.int64)
    members = fused_members(modality, person, classes, (0, 1, 0))
    whole = slice(0, people)
    share = take_share(np.arange(len(modality)), modality, starts, classes, members, whole)
    height, width = config.model.backbone.image_size
    num_images = people * len(IMAGE_MODALITIES)
    pixels = rng.integers(0, 256, (num_images, height, width, 3), np.uint8)
    tokens = np.zeros((people, context_length), np.int32)
    words = min(8, context_length - 1)
    tokens[:, :words] = rng.integers(1, 40_000, (people, words))
    tokens[:, words] = _END
    return Batch(
        epoch=1,
        step=0,
        images=torch.from_numpy(pixels),
        image_counts=(people, people, people, people),
        tokens=torch.from_numpy(tokens),
        row=share.row,
        fused=torch.from_numpy(share.fused),
        layout=lay_out([share], 0),
    )
