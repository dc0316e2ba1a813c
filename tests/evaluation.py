"""A small test split in memory and a model that is arithmetic, for tests of the evaluator."""

from collections import Counter

import numpy as np
import simplejpeg
import torch
from torch import Tensor, nn

from service.data.shards import QuerySet
from service.evaluation.protocol import QUERY_KINDS
from service.modality import IMAGE_MODALITIES, Modality


class FakeRecords:
    """Noise images and captions of some people: `per_person` rows of each modality."""

    def __init__(self, num_people: int = 5, per_person: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        rows = [(p, m) for p in range(num_people) for m in range(5) for _ in range(per_person)]
        table = np.array(rows)[rng.permutation(len(rows))]
        self.split = "test"
        self.image_size = (16, 8)
        self.num_rows = len(rows)
        self.label = (600 + table[:, 0]).astype(np.int32)
        self.modality = table[:, 1].astype(np.int8)
        self.gallery = np.flatnonzero(self.modality == Modality.VIS)
        colour = rng.integers(0, 256, (num_people, 3))
        self._jpeg = [self._noise(rng, colour[label - 600]) for label in self.label]
        self._tokens = rng.integers(1, 50, (self.num_rows, 6)).astype(np.int32)
        self._tokens[:, 0] = self.label
        self.queries = [self._query_set(rng, kind) for kind in QUERY_KINDS]

    def _noise(self, rng, colour) -> np.ndarray:
        pixels = np.clip(colour + rng.normal(0, 60, (*self.image_size, 3)), 0, 255)
        return np.frombuffer(simplejpeg.encode_jpeg(pixels.astype(np.uint8)), np.uint8)

    def _query_set(self, rng, kind) -> QuerySet:
        anchors = np.flatnonzero(self.modality == kind.modalities[0])
        label = self.label[anchors]
        others = [
            [
                rng.choice(np.flatnonzero((self.modality == m) & (self.label == who)))
                for who in label
            ]
            for m in kind.modalities[1:]
        ]
        return QuerySet(kind.key, label, np.array([anchors, *others], np.int64).T)

    def jpeg(self, row: int) -> np.ndarray:
        return self._jpeg[row]

    def source(self, row: int) -> str:
        return f"fake/{row}.jpg"

    def tokens(self, rows) -> np.ndarray:
        return self._tokens[np.asarray(rows)]


class FakeModel(nn.Module):
    """Embeds by colour statistics and token counts; `seen` counts the rows that it was given."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image = nn.Parameter(torch.randn(5, 6, 12, generator=generator))
        self.text = nn.Parameter(torch.randn(1000, 12, generator=generator))
        self.neck = nn.Sequential(nn.BatchNorm1d(12), nn.Dropout(0.5))
        self.seen: Counter[tuple[int, ...]] = Counter()
        self.modes: set[bool] = set()

    def embed_images(self, images: Tensor, modality: Modality) -> Tensor:
        assert images.dtype is torch.uint8
        assert modality in IMAGE_MODALITIES
        self._note(modality, images)
        pixels = images.double().flatten(1, 2) / 255
        statistics = torch.cat([pixels.mean(dim=1), pixels.std(dim=1)], dim=1) - 0.4
        return nn.functional.normalize(statistics @ self.image[modality].double(), dim=1).float()

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        assert tokens.dtype is torch.int32
        self._note(Modality.TEXT, tokens)
        return nn.functional.normalize(self.text[tokens.long()].sum(dim=1), dim=1)

    def fuse(self, members: Tensor) -> Tensor:
        assert members.shape[1] > 1
        return nn.functional.normalize(members.mean(dim=1), dim=1)

    def _note(self, modality: Modality, values: Tensor) -> None:
        assert not torch.is_grad_enabled()
        self.modes |= {module.training for module in self.modules()}
        self.seen.update((modality, hash(value.numpy().tobytes())) for value in values)
