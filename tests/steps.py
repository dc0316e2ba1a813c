"""Hand-made steps: one global batch, cut for any rank of any world."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from service.config import BackboneConfig, ModelConfig, NeckConfig, TowerConfig
from service.data.layout import FUSED, StepLayout
from service.losses.objective import StepRows
from service.modality import IMAGE_MODALITIES, Modality
from service.model.reid import Inputs

SIZE = (16, 8)
TOWER = TowerConfig(
    embed_dim=8,
    patch_size=8,
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    text_width=8,
    text_layers=1,
    text_heads=2,
    context_length=12,
)


def tiny_model_config(norm_scale: float | None = 8.0) -> ModelConfig:
    """A CLIP of a few thousand weights (besides the token table)."""
    return ModelConfig(
        backbone=BackboneConfig(name="small", architecture=TOWER, image_size=SIZE),
        neck=NeckConfig(norm_scale=norm_scale),
    )


@dataclass(frozen=True)
class Person:
    """A person's rows in a batch: its class, and how many rows of each modality."""

    class_index: int
    rows: tuple[Modality, ...]


def make_inputs(
    people: list[Person], bounds: list[int], rank: int, seed: int, dtype: torch.dtype
) -> tuple[Inputs, StepLayout]:
    """The share of `rank` in a batch of `people`, cut at `bounds` (world + 1 positions).

    A row's content depends on (seed, class, modality, position) alone, so any cut holds the same
    rows. A person with two or more non-VIS modalities gives one fused query of the first of each.
    """
    shares = [people[a:b] for a, b in itertools.pairwise(bounds)]
    layouts = [_rows(share) for share in shares]
    own = layouts[rank]
    images, tokens, counts = [], [], []
    for modality in IMAGE_MODALITIES:
        rows = [r for r in own.single if r[1] == modality]
        counts.append(len(rows))
        images += [_image(seed, row, dtype) for row in rows]
    tokens = [_tokens(seed, row) for row in own.single if row[1] == Modality.TEXT]
    inputs = Inputs(
        images=torch.stack(images) if images else torch.zeros(0, 3, *SIZE, dtype=dtype),
        image_counts=tuple(counts),
        tokens=torch.stack(tokens) if tokens else torch.zeros(0, 4, dtype=torch.int64),
        fused=torch.tensor(own.members, dtype=torch.int64).reshape(-1, 4),
        counts=tuple(len(x.single) + len(x.members) for x in layouts),
        single=torch.from_numpy(np.flatnonzero(np.concatenate([x.kind for x in layouts]) != FUSED)),
    )
    layout = StepLayout(
        class_index=np.concatenate([x.classes for x in layouts]),
        kind=np.concatenate([x.kind for x in layouts]),
        counts=inputs.counts,
        rank=rank,
    )
    return inputs, layout


def step_rows(layout: StepLayout) -> StepRows:
    return StepRows.of(layout, torch.device("cpu"))


@dataclass(frozen=True)
class _Share:
    single: list[tuple[int, Modality, int]]
    members: list[list[int]]
    classes: np.ndarray
    kind: np.ndarray


def _rows(people: list[Person]) -> _Share:
    single = []
    for person in people:
        for modality in Modality:
            same = [m for m in person.rows if m is modality]
            single += [(person.class_index, modality, i) for i in range(len(same))]
    single.sort(key=lambda row: row[1])
    members, fused_class = [], []
    for person in people:
        slots = [-1] * 4
        for at, (cls, modality, i) in enumerate(single):
            if cls == person.class_index and modality is not Modality.VIS and i == 0:
                slots[modality - 1] = at
        if sum(s >= 0 for s in slots) >= 2:
            members.append(slots)
            fused_class.append(person.class_index)
    classes = np.array([r[0] for r in single] + fused_class, dtype=np.int64)
    kind = np.array([r[1] for r in single] + [FUSED] * len(members), dtype=np.int8)
    return _Share(single, members, classes, kind)


def _generator(seed: int, row: tuple[int, Modality, int]) -> torch.Generator:
    number = int(np.random.SeedSequence([seed, *row]).generate_state(1)[0])
    return torch.Generator().manual_seed(number)


def _image(seed: int, row: tuple[int, Modality, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, *SIZE, generator=_generator(seed, row), dtype=dtype)


def _tokens(seed: int, row: tuple[int, Modality, int]) -> torch.Tensor:
    words = torch.randint(1, 400, (2,), generator=_generator(seed, row))
    return torch.cat([torch.tensor([49406]), words, torch.tensor([49407])])
