"""Augmentation and normalisation of whole batches, on the device that holds them.

Every random number is drawn on the CPU from (seed, epoch, step, record row), so a row is augmented
alike in any batch, on any device, with any number of ranks. There is no hue jitter: captions and
colour pencils name colours.

Legend: n images, m captions, H and W pixels, L tokens.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from service.config import AugmentConfig
from service.data.hashing import hash_keys, uniforms
from service.data.layout import Batch
from service.modality import PHOTO_MODALITIES

ERASE_AREA = (0.02, 0.4)
"""Smallest and largest share of the image that one rectangle takes."""
ERASE_ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height over width of the rectangle."""
MASKED_TOKEN = 0

_IMAGE_DRAWS, _TOKEN_DRAWS = 1, 2
_ERASE_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Draws:
    """What happens to each row of a batch.

    top, left: int64 [n], where the crop begins in the padded image, in [0, 2 * pad].
    flip: bool [n], mirrored left to right after the crop.
    box: int64 [n, 4], the erased rows y0:y1 and columns x0:x1 as (y0, y1, x0, x1); all 0 for none.
    masked: bool [m, L], content tokens that are hidden.
    pad: pixels of zero padding on each side.
    """

    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    box: torch.Tensor
    masked: torch.Tensor
    pad: int

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            k: v.to(device, non_blocking=True)
            for k, v in values.items()
            if isinstance(v, torch.Tensor)
        }
        return Draws(**moved, pad=self.pad)


def draw(batch: Batch, seed: int, config: AugmentConfig) -> Draws:
    """The draws of one batch, on the CPU."""
    num_images, height, width = batch.images.shape[:3]
    where = (seed, batch.epoch, batch.step)
    keys = hash_keys((_IMAGE_DRAWS, *where), batch.row[:num_images])
    u = uniforms(keys, 6 + 2 * _ERASE_ATTEMPTS)
    num_photos = sum(batch.image_counts[m] for m in PHOTO_MODALITIES)
    erase = (u[:, 3] < config.erase) & (np.arange(num_images) < num_photos)
    box = np.where(erase[:, None], _boxes(u[:, 4:], height, width), 0)
    span = 2 * config.pad + 1
    tokens = batch.tokens.numpy()
    token_keys = hash_keys((_TOKEN_DRAWS, *where), batch.row[num_images:])
    hidden = uniforms(token_keys, tokens.shape[1]) < config.token_mask
    return Draws(
        top=torch.from_numpy((u[:, 0] * span).astype(np.int64)),
        left=torch.from_numpy((u[:, 1] * span).astype(np.int64)),
        flip=torch.from_numpy(u[:, 2] < config.flip),
        box=torch.from_numpy(box),
        masked=torch.from_numpy(hidden & _is_content(tokens)),
        pad=config.pad,
    )


def augment(images: torch.Tensor, draws: Draws, fill: Sequence[float]) -> torch.Tensor:
    """uint8 [n, H, W, 3] to the same shape: padded, cropped, flipped and erased in one gather.

    fill: the colour of an erased rectangle, three values in [0, 1]; the backbone's mean, so that
        it is 0 once normalised.
    """
    height, width = images.shape[1:3]
    draws = draws.to(images.device)
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    y = rows + (draws.top - draws.pad)[:, None]
    x = torch.where(draws.flip[:, None], width - 1 - columns, columns)
    x = x + (draws.left - draws.pad)[:, None]
    inside_y, inside_x = (y >= 0) & (y < height), (x >= 0) & (x < width)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    out = images[image, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
    out.masked_fill_(~(inside_y[:, :, None] & inside_x[:, None, :])[..., None], 0)
    y0, y1, x0, x1 = draws.box[:, :, None].unbind(1)
    erased_y, erased_x = (rows >= y0) & (rows < y1), (columns >= x0) & (columns < x1)
    colour = _constant(tuple(round(255 * v) for v in fill), torch.uint8, images.device)
    erased = (erased_y[:, :, None] & erased_x[:, None, :])[..., None]
    return torch.where(erased, colour, out)


def normalise(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """uint8 [n, H, W, 3] to `dtype` [n, 3, H, W] (channels-last in memory): (x / 255 - mean) / std.

    mean, std: one value a channel. The arithmetic is float32 whatever `dtype` is.
    """
    device, f32 = images.device, torch.float32
    scale = _constant(tuple(1 / (255 * s) for s in std), f32, device)
    shift = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), f32, device)
    return torch.addcmul(shift, images.float(), scale).to(dtype).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A small tensor, copied to the device once and not again at every step."""
    return torch.tensor(values, dtype=dtype, device=device)


def mask_tokens(tokens: torch.Tensor, draws: Draws) -> torch.Tensor:
    """int [m, L] with the drawn content tokens hidden; start, end and padding are untouched.

    CLIP's end-of-text id is its largest, so pooling by argmax still finds the end.
    """
    return tokens.masked_fill(draws.masked.to(tokens.device, non_blocking=True), MASKED_TOKEN)


def _boxes(u: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rectangles int64 [n, 4] as (y0, y1, x0, x1), from uniforms [n, 2 + 2 * attempts].

    The first of several random shapes that is smaller than the image is taken, as in Zhong et al.,
    "Random erasing data augmentation"; where none is, the rectangle is empty.
    """
    sizes, ratios = u[:, 2::2], u[:, 3::2]
    area = (ERASE_AREA[0] + sizes * (ERASE_AREA[1] - ERASE_AREA[0])) * height * width
    low, high = np.log(ERASE_ASPECT)
    aspect = np.exp(low + ratios * (high - low))
    tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (tall < height) & (wide < width)
    first = fits.argmax(axis=1)[:, None]
    h = np.take_along_axis(np.where(fits, tall, 0), first, axis=1)[:, 0]
    w = np.take_along_axis(np.where(fits, wide, 0), first, axis=1)[:, 0]
    y0 = (u[:, 0] * (height - h + 1)).astype(np.int64)
    x0 = (u[:, 1] * (width - w + 1)).astype(np.int64)
    return np.where((h > 0) & (w > 0), np.stack([y0, y0 + h, x0, x0 + w]), 0).T


def _is_content(tokens: np.ndarray) -> np.ndarray:
    """bool [m, L]: the tokens between the first and the end-of-text token, the row's largest."""
    at = np.arange(tokens.shape[1])
    return (at > 0) & (at < tokens.argmax(axis=1)[:, None])
