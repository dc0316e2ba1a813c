"""Source images: what becomes of a whole one, and why another is refused."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.data.images import prepare_image
from tests.orbench import jpeg

SIZE = (24, 12)


def test_an_image_of_the_right_size_keeps_its_bytes():
    data = jpeg(np.random.default_rng(0), SIZE)
    assert prepare_image(data, SIZE) is data


def smooth_jpeg(size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A gradient, which survives JPEG and resizing with small errors."""
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    pixels = (np.stack([60 + 150 * y, 60 + 150 * x, 200 - 100 * y], axis=-1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=98)
    return file.getvalue()


@pytest.mark.parametrize("size", [(96, 48), (10, 5), (96, 6), (12, 60), (1, 1)])
def test_resized_images_look_like_the_source(size):
    data = smooth_jpeg(size)
    pixels = simplejpeg.decode_jpeg(prepare_image(data, SIZE))
    assert pixels.shape == (*SIZE, 3)
    source = simplejpeg.decode_jpeg(data)
    expected = cv2.resize(source, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(pixels.astype(int) - expected).mean() < 6


def test_shrinking_averages_areas():
    fine = np.indices((SIZE[0] * 4, SIZE[1] * 4)).sum(0) % 2 * 200
    data = simplejpeg.encode_jpeg(np.repeat(fine[..., None], 3, 2).astype(np.uint8), quality=100)
    small = simplejpeg.decode_jpeg(prepare_image(data, SIZE))
    assert np.abs(small.astype(int) - 100).max() < 15


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("size", [SIZE, (48, 24)])
def test_grey_and_cmyk_images_become_decodable_rgb(mode, size):
    data = smooth_jpeg(size, mode)
    pixels = simplejpeg.decode_jpeg(prepare_image(data, SIZE), "RGB")
    expected = simplejpeg.decode_jpeg(smooth_jpeg(SIZE, "RGB" if mode == "CMYK" else "L"), "RGB")
    assert np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "zero bytes"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "not a JPEG"),
        (lambda data: b"plain words", "not a JPEG"),
        (lambda data: data[:1], "not a JPEG"),
        (lambda data: data[:200], "cut in its header"),
        (lambda data: data[: len(data) // 2], "Premature end"),
        (lambda data: data[:-2], "Premature end"),
    ],
)
def test_what_is_no_whole_jpeg_is_refused_with_the_reason(spoil, reason):
    data = jpeg(np.random.default_rng(0), SIZE)
    with pytest.raises(ValueError, match=reason):
        prepare_image(spoil(data), SIZE)


def test_a_cut_cmyk_image_is_refused():
    data = smooth_jpeg((48, 24), "CMYK")
    with pytest.raises(ValueError, match="truncated"):
        prepare_image(data[: len(data) // 2], SIZE)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded():
    data = bytearray(jpeg(np.random.default_rng(0), SIZE))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff\x00\xff\x00"
    with pytest.raises(ValueError, match="65280x65280 pixels"):
        prepare_image(bytes(data), SIZE)
