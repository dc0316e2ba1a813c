"""The re-identification model: backbone, fusion, neck and classifier in one forward.

The gather is injected, so the model knows nothing of processes: at world 1 it is the identity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.config import ModelConfig
from service.data.transforms import normalise
from service.errors import FrozenLayerError, ModelError
from service.modality import IMAGE_MODALITIES, Modality
from service.model.backbone import build_backbone
from service.model.fusion import fuse_all, fuse_rows
from service.model.neck import Neck

Gather = Callable[[Tensor, tuple[int, ...]], Tensor]
"""Local rows [n_r, D] and all ranks' counts to global rows [N, D] in rank order, with gradient."""

HEAD_STD = 0.001
"""Of the classifier's initial weights (BoT, fast-reid)."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One rank's share of a step, on the device.

    images: float [n, 3, H, W], normalised, sorted by modality; image_counts: rows of each.
    tokens: int64 [m, L]. fused: int64 [f, S] member positions, -1 for none.
    counts: rows of each rank (n + m + f). single: int64, positions of all single rows in the global
    order.
    """

    images: Tensor
    image_counts: tuple[int, ...]
    tokens: Tensor
    fused: Tensor
    counts: tuple[int, ...]
    single: Tensor


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What the model says of a step.

    rows: float32 [n + m + f, D], this rank's unit rows before the neck, fused queries last.
    gathered: float32 [N, D], those of all ranks, with gradient. after_neck: [n + m + f, D].
    logits: [n + m + f, C].
    """

    rows: Tensor
    gathered: Tensor
    after_neck: Tensor
    logits: Tensor


def local_rows(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The gather of a single process."""
    return rows


class CrossReID(nn.Module):
    """One space for five modalities; identities by a bias-free classifier after the neck."""

    def __init__(self, config: ModelConfig, num_classes: int, gather: Gather = local_rows) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        self.neck = Neck(self.backbone.dim, config.neck)
        self.classifier = nn.Linear(self.backbone.dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=HEAD_STD)
        self._gather = gather
        _freeze(self, config)

    def forward(self, inputs: Inputs) -> Embeddings:
        """Embeddings and logits of this rank's rows. Every rank must call it in the same step."""
        images = self.backbone.encode_images(inputs.images, inputs.image_counts)
        texts = self.backbone.encode_tokens(inputs.tokens)
        with torch.autocast(images.device.type, enabled=False):
            single = unit(torch.cat([images, texts.to(images.dtype)]))
            rows = torch.cat([single, fuse_rows(single, inputs.fused)])
            gathered = self._gather(rows, inputs.counts)
            after_neck = self.neck(rows, gathered.index_select(0, inputs.single))
            return Embeddings(rows, gathered, after_neck, self.classifier(after_neck))

    @torch.no_grad()
    def embed_images(self, images: Tensor, modality: Modality) -> Tensor:
        """Unit rows [n, D] of uint8 images [n, H, W, 3] of one modality."""
        weight = self.classifier.weight
        pixels = normalise(
            images.to(weight.device), self.backbone.mean, self.backbone.std, weight.dtype
        )
        counts = tuple(len(images) if m is modality else 0 for m in IMAGE_MODALITIES)
        return unit(self.backbone.encode_images(pixels, counts))

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit rows [m, D] of captions, int [m, L]."""
        return unit(self.backbone.encode_tokens(tokens.to(self.classifier.weight.device).long()))

    @torch.no_grad()
    def fuse(self, members: Tensor) -> Tensor:
        """Unit queries [Q, D] from unit members [Q, S, D]."""
        return fuse_all(members)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by group name: head, neck, patch, backbone; each in one group."""
        groups: dict[str, list[nn.Parameter]] = {
            "head": list(self.classifier.parameters()),
            "neck": list(self.neck.parameters()),
            "patch": list(self.backbone.patch.parameters()),
        }
        named = {id(p) for params in groups.values() for p in params}
        groups["backbone"] = [p for p in self.parameters() if id(p) not in named]
        return {name: [p for p in params if p.requires_grad] for name, params in groups.items()}


def unit(rows: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)


def _freeze(model: CrossReID, config: ModelConfig) -> None:
    """Stops the named modules from learning.

    Raises:
        ModelError: for a name that matches no module, or a module with random weights, which would
            stay random for the whole run.
    """
    modules = dict(model.named_modules())
    for name in config.freeze:
        if name not in modules or not name:
            raise ModelError(
                f"model.freeze names {name!r}, which is no module; there are: "
                + ", ".join(n for n in modules if n.count(".") == 1)
            )
        loaded = config.backbone.pretrained or config.backbone.name.startswith("local-dir:")
        if not loaded or not name.startswith("backbone"):
            raise FrozenLayerError(
                f"model.freeze names {name!r}, whose weights are random and would stay so"
            )
        modules[name].requires_grad_(False)
