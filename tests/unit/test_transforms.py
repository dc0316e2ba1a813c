import math

import numpy as np
import pytest
import torch

from service.config import AugmentConfig
from service.data.layout import Batch, StepLayout
from service.data.transforms import (
    ERASE_AREA,
    ERASE_ASPECT,
    Draws,
    augment,
    draw,
    mask_tokens,
    normalise,
)

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SOT, EOT = 49406, 49407
SIZE = (24, 12)


def make_batch(
    image_rows: np.ndarray,
    text_rows: np.ndarray,
    counts: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] = SIZE,
    epoch: int = 3,
    step: int = 11,
) -> Batch:
    """Images and captions whose content depends on their row id only; all VIS unless said."""
    images = [
        np.random.default_rng(row).integers(0, 256, (*size, 3), dtype=np.uint8)
        for row in image_rows
    ]
    tokens = np.zeros((len(text_rows), 20), np.int32)
    for line, row in zip(tokens, text_rows, strict=True):
        words = np.random.default_rng(row).integers(1, SOT, int(row) % 19)
        line[: len(words) + 2] = [SOT, *words, EOT]
    row = np.concatenate([image_rows, text_rows]).astype(np.int64)
    layout = StepLayout(np.zeros(len(row), np.int64), np.zeros(len(row), np.int8), (len(row),), 0)
    return Batch(
        epoch=epoch,
        step=step,
        images=torch.from_numpy(np.array(images, np.uint8).reshape(-1, *size, 3)),
        image_counts=counts or (len(image_rows), 0, 0, 0),
        tokens=torch.from_numpy(tokens),
        row=row,
        fused=torch.empty((0, 4), dtype=torch.int64),
        layout=layout,
    )


def augment_by_loops(image: np.ndarray, draws: Draws, i: int) -> np.ndarray:
    """One image, pixel by pixel: pad, crop, flip, erase."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((draws.pad, draws.pad), (draws.pad, draws.pad), (0, 0)))
    top, left = int(draws.top[i]), int(draws.left[i])
    out = padded[top : top + height, left : left + width].copy()
    if draws.flip[i]:
        out = out[:, ::-1].copy()
    y0, y1, x0, x1 = draws.box[i].tolist()
    for y in range(y0, y1):
        for x in range(x0, x1):
            out[y, x] = [round(255 * v) for v in MEAN]
    return out


@pytest.mark.parametrize("config", [AugmentConfig(pad=4), AugmentConfig(pad=0, flip=1, erase=1)])
def test_one_gather_equals_pad_crop_flip_erase_image_by_image(config):
    batch = make_batch(np.arange(40), np.arange(0))
    draws = draw(batch, 9, config)
    found = augment(batch.images, draws, MEAN)
    assert found.dtype == torch.uint8
    for i, image in enumerate(batch.images.numpy()):
        assert np.array_equal(found[i].numpy(), augment_by_loops(image, draws, i))


def test_settings_of_zero_change_nothing():
    batch = make_batch(np.arange(30), np.arange(30))
    draws = draw(batch, 9, AugmentConfig(flip=0, pad=0, erase=0, token_mask=0))
    assert torch.equal(augment(batch.images, draws, MEAN), batch.images)
    assert torch.equal(mask_tokens(batch.tokens, draws), batch.tokens)


def row_results(batch: Batch, config: AugmentConfig) -> dict[int, bytes]:
    """Record row to what augmentation made of it."""
    draws = draw(batch, 9, config)
    parts = [*augment(batch.images, draws, MEAN), *mask_tokens(batch.tokens, draws)]
    return {int(r): part.numpy().tobytes() for r, part in zip(batch.row, parts, strict=True)}


def test_a_row_is_augmented_alike_in_any_batch_and_order():
    config = AugmentConfig(pad=4)
    whole = row_results(make_batch(np.arange(30), np.arange(50, 90)), config)
    shuffled = make_batch(np.arange(30)[::-1], np.arange(50, 90)[::-1])
    assert row_results(shuffled, config) == whole
    part = row_results(make_batch(np.array([17, 3]), np.array([88])), config)
    assert part == {row: whole[row] for row in (17, 3, 88)}


def test_steps_epochs_and_seeds_draw_anew():
    config = AugmentConfig(pad=4)
    batches = [
        make_batch(np.arange(50), np.arange(0), step=s, epoch=e) for s, e in [(1, 1), (2, 1)]
    ]
    batches.append(make_batch(np.arange(50), np.arange(0), step=1, epoch=2))
    draws = [draw(batch, 9, config) for batch in batches] + [draw(batches[0], 10, config)]
    assert len({d.top.numpy().tobytes() for d in draws}) == 4
    assert torch.equal(draw(batches[0], 9, config).top, draws[0].top)


def test_rates_and_ranges_are_those_of_the_settings():
    num, config = 6000, AugmentConfig(flip=0.3, pad=2, erase=0.6)
    batch = make_batch(np.arange(num), np.arange(0), size=(2, 2))
    draws = draw(batch, 0, config)
    assert abs(draws.flip.float().mean() - 0.3) < 0.02
    for offset in (draws.top, draws.left):
        shares = torch.bincount(offset, minlength=5) / num
        assert len(shares) == 5
        assert (shares - 0.2).abs().max() < 0.02
    large = make_batch(np.arange(num), np.arange(0), size=(1, 1))
    large = Batch(
        **{f: getattr(large, f) for f in large.__slots__ if f != "images"},
        images=torch.empty((num, 60, 40, 3), dtype=torch.uint8),
    )
    erased = draw(large, 0, config).box.any(dim=1)
    assert abs(erased.float().mean() - 0.6) < 0.02


def test_rectangles_have_the_published_areas_and_aspects_and_lie_inside():
    height, width = 384, 128
    num = 4000
    batch = make_batch(np.arange(num), np.arange(0), size=(1, 1))
    batch = Batch(
        **{f: getattr(batch, f) for f in batch.__slots__ if f != "images"},
        images=torch.empty((num, height, width, 3), dtype=torch.uint8),
    )
    y0, y1, x0, x1 = draw(batch, 1, AugmentConfig(erase=1.0)).box.numpy().T
    assert (y0 >= 0).all()
    assert (x0 >= 0).all()
    assert (y1 <= height).all()
    assert (x1 <= width).all()
    tall, wide = y1 - y0, x1 - x0
    assert (tall > 0).all()
    area = tall * wide / (height * width)
    slack = 1.03
    assert area.min() > ERASE_AREA[0] / slack
    assert area.max() < ERASE_AREA[1] * slack
    assert area.max() > 0.38
    aspect = tall / wide
    assert aspect.min() > ERASE_ASPECT[0] / 1.06
    assert aspect.max() < ERASE_ASPECT[1] * 1.06
    small = area < 0.04
    assert abs(np.log(aspect[small]).mean()) < 0.1


def test_where_no_rectangle_fits_none_is_erased():
    batch = make_batch(np.arange(50), np.arange(0), size=(1, 1))
    draws = draw(batch, 1, AugmentConfig(erase=1.0))
    assert not draws.box.any()


def test_only_photos_are_erased():
    batch = make_batch(np.arange(80), np.arange(0), counts=(20, 20, 20, 20))
    erased = draw(batch, 1, AugmentConfig(erase=1.0)).box.any(dim=1)
    assert erased[:40].all()
    assert not erased[40:].any()


def test_masking_hits_content_tokens_only_and_keeps_the_end_where_it_was():
    rows = np.arange(4000)
    batch = make_batch(np.arange(0), rows)
    draws = draw(batch, 4, AugmentConfig(token_mask=0.15))
    tokens = batch.tokens
    masked = mask_tokens(tokens, draws)
    content = (tokens != 0) & (tokens != SOT) & (tokens != EOT)
    assert not (draws.masked & ~content).any()
    assert torch.equal(masked == 0, (tokens == 0) | draws.masked)
    assert abs(draws.masked[content].float().mean() - 0.15) < 0.005
    assert torch.equal(masked.argmax(dim=1), tokens.argmax(dim=1))
    assert (masked.gather(1, tokens.argmax(dim=1)[:, None].long()) == EOT).all()
    everything = draw(batch, 4, AugmentConfig(token_mask=1.0))
    assert torch.equal(everything.masked, content)


def test_the_end_of_text_is_the_largest_token_of_the_tokenizer():
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    assert tokenizer.eot_token_id == EOT == tokenizer.vocab_size - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_normalising_is_the_textbook_formula(dtype):
    batch = make_batch(np.arange(5), np.arange(0))
    found = normalise(batch.images, MEAN, STD, dtype)
    assert found.dtype == dtype
    assert found.shape == (5, 3, *SIZE)
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = (batch.images.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    bound = 2e-2 if dtype == torch.bfloat16 else 2e-6
    assert (found.double() - exact.permute(0, 3, 1, 2)).abs().max() < bound


def test_an_erased_pixel_is_about_zero_once_normalised():
    batch = make_batch(np.arange(20), np.arange(0))
    draws = draw(batch, 1, AugmentConfig(erase=1.0, pad=0))
    images = normalise(augment(batch.images, draws, MEAN), MEAN, STD)
    for image, (y0, y1, x0, x1) in zip(images, draws.box.tolist(), strict=True):
        assert image[:, y0:y1, x0:x1].abs().max() < 0.5 / 255 / min(STD) + 1e-6


def test_an_empty_batch_passes_through():
    batch = make_batch(np.arange(0), np.arange(0))
    draws = draw(batch, 1, AugmentConfig())
    assert augment(batch.images, draws, MEAN).shape == (0, *SIZE, 3)
    assert normalise(batch.images, MEAN, STD).shape == (0, 3, *SIZE)
    assert mask_tokens(batch.tokens, draws).shape == (0, 20)


def test_draws_do_not_touch_the_global_generators():
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    draw(make_batch(np.arange(5), np.arange(5)), 1, AugmentConfig())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == numpy_before  # noqa: NPY002


def test_the_log_aspect_is_symmetric():
    assert math.isclose(ERASE_ASPECT[0] * ERASE_ASPECT[1], 1.0)
