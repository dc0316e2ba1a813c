"""Source images made ready once, at ingest: a JPEG of the training size."""

import errno
import io
import os
import stat
import warnings
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

_QUALITY = 92
_MAX_PIXELS = 100_000_000
_START = b"\xff\xd8"


def read_image(path: Path) -> bytes:
    """The bytes of a regular file: a link is not followed, and a pipe is not waited for.

    Raises:
        ValueError: with the reason, for anything that is not a regular file in a real directory.
        OSError: from the disk.
    """
    if path.parent.is_symlink():
        raise ValueError("its directory is a symbolic link")
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        raise
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise ValueError("not a regular file")
        return file.read()


def prepare_image(data: bytes, size: tuple[int, int]) -> bytes:
    """The image as a JPEG of `size` = (height, width); `data` itself where it is one already.

    A JPEG that is kept is decoded all the same, so what this returns can be decoded. Shrinking
    averages areas, enlarging is bilinear; grey stays grey only in kept bytes, CMYK becomes RGB.

    Raises:
        ValueError: with the reason, for anything that is not a whole JPEG of a sane size.
    """
    if not data:
        raise ValueError("zero bytes")
    height, width, colours, _ = _header(data)
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels, more than {_MAX_PIXELS}")
    pixels = _from_cmyk(data) if colours in ("CMYK", "YCCK") else simplejpeg.decode_jpeg(data)
    if (height, width) == size and colours in ("YCbCr", "RGB", "Gray"):
        return data
    return simplejpeg.encode_jpeg(np.ascontiguousarray(_resize(pixels, size)), quality=_QUALITY)


def _header(data: bytes) -> tuple[int, int, str, str]:
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        begins = data.startswith(_START)
        raise ValueError("cut in its header" if begins else "not a JPEG") from error
    return int(height), int(width), colours, subsampling


def _from_cmyk(data: bytes) -> np.ndarray:
    """RGB pixels of a CMYK JPEG; Pillow knows that Adobe stores the inks inverted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ValueError(str(error)) from error


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] to [*size, 3]: each axis shrinks by area first, then the others grow."""
    height, width = pixels.shape[:2]
    least = (min(height, size[0]), min(width, size[1]))
    if least != (height, width):
        pixels = cv2.resize(pixels, least[::-1], interpolation=cv2.INTER_AREA)
    if least != size:
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return pixels
