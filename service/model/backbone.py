"""The CLIP backbone: one transformer for all images, one for captions, a patch embedding for each
visual modality.

The towers come from open_clip; their own forward is not used, because every visual modality enters
through its own patch embedding and all of them share one pass through the transformer.
"""

import copy
from operator import attrgetter

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from service.config import BackboneConfig, TowerConfig
from service.errors import ModelError
from service.modality import IMAGE_MODALITIES

_PARTS = {
    "class_embedding": "visual.class_embedding",
    "image_positions": "visual.positional_embedding",
    "image_ln_pre": "visual.ln_pre",
    "image_transformer": "visual.transformer",
    "image_ln_post": "visual.ln_post",
    "image_projection": "visual.proj",
    "token_embedding": "token_embedding",
    "text_positions": "positional_embedding",
    "text_transformer": "transformer",
    "text_ln_final": "ln_final",
    "text_projection": "text_projection",
}
"""Our name of each part, and open_clip's."""


class Backbone(nn.Module):
    """Images and captions to features of one space.

    Legend: n images, m captions, L tokens, D embed_dim.
    """

    class_embedding: nn.Parameter
    image_positions: nn.Parameter
    image_ln_pre: nn.Module
    image_transformer: nn.Module
    image_ln_post: nn.Module
    image_projection: nn.Parameter
    token_embedding: nn.Module
    text_positions: nn.Parameter
    text_transformer: nn.Module
    text_ln_final: nn.Module
    text_projection: nn.Parameter
    attn_mask: Tensor

    def __init__(
        self,
        clip: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        clip, visual = _checked(clip)
        self.patch = nn.ModuleDict(
            {modality.label: copy.deepcopy(visual.conv1) for modality in IMAGE_MODALITIES}
        )
        for name, path in _PARTS.items():
            setattr(self, name, attrgetter(path)(clip))
        self.register_buffer("attn_mask", clip.get_buffer("attn_mask"), persistent=False)
        self.mean = mean
        self.std = std
        self.dim: int = self.image_projection.shape[1]
        self.context_length: int = self.text_positions.shape[0]

    def encode_images(self, images: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Features [n, D] of images [n, 3, H, W], normalised, sorted by modality.

        counts: rows of VIS, NIR, CP, SK. A modality without rows still takes part in the graph, so
        that every parameter has a gradient on every rank.
        """
        parts = [
            self.patch[modality.label](part)
            for modality, part in zip(IMAGE_MODALITIES, images.split(counts), strict=True)
        ]
        x = torch.cat(parts).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.image_positions.to(x.dtype)
        x = self.image_transformer(self.image_ln_pre(x))
        return self.image_ln_post(x[:, 0]) @ self.image_projection

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Features [m, D] of captions [m, L], L at most `context_length`.

        The attention is causal and the feature is read at the end token (the largest id), so
        columns after the longest caption's end change nothing and may be cut off.
        """
        x = self.token_embedding(tokens)
        length = tokens.shape[1]
        x = x + self.text_positions[:length]
        mask = self.attn_mask[:length, :length]
        x = self.text_ln_final(self.text_transformer(x, attn_mask=mask))
        ends = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        return ends @ self.text_projection


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `config` names, with its own normalisation constants.

    Raises:
        ModelError: for an unknown name or tag, or an architecture that is not a CLIP with a vision
            transformer, class token and causal text tower.
    """
    if config.architecture is not None:
        clip = _small(config.architecture, config.image_size)
        return Backbone(clip, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    try:
        clip = open_clip.create_model(
            config.name, pretrained=config.pretrained, force_image_size=config.image_size
        )
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"cannot build backbone {config.name!r} with pretrained={config.pretrained!r}: {error}"
        ) from error
    shown = open_clip.get_model_preprocess_cfg(clip)
    return Backbone(clip, tuple(shown["mean"]), tuple(shown["std"]))


def _small(tower: TowerConfig, image_size: tuple[int, int]) -> nn.Module:
    if any(side % tower.patch_size for side in image_size):
        raise ModelError(
            f"image_size {image_size} is not a multiple of patch_size {tower.patch_size}"
        )
    vision = CLIPVisionCfg(
        layers=tower.vision_layers,
        width=tower.vision_width,
        head_width=tower.vision_width // tower.vision_heads,
        patch_size=tower.patch_size,
        image_size=image_size,
    )
    text = CLIPTextCfg(
        context_length=tower.context_length,
        width=tower.text_width,
        heads=tower.text_heads,
        layers=tower.text_layers,
    )
    return open_clip.CLIP(embed_dim=tower.embed_dim, vision_cfg=vision, text_cfg=text)


def _checked(clip: nn.Module) -> tuple[CLIP, VisionTransformer]:
    """The CLIP and its vision tower, if `Backbone` knows their shape."""
    visual = getattr(clip, "visual", None)
    if (
        isinstance(clip, CLIP)
        and isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and clip.text_pool_type == "argmax"
        and isinstance(clip.text_projection, nn.Parameter)
        and clip.attn_mask is not None
    ):
        return clip, visual
    raise ModelError(
        f"{type(clip).__name__} is not a CLIP with a vision transformer, class token and causal "
        "text tower; choose a ViT of open_clip such as ViT-B-16"
    )
