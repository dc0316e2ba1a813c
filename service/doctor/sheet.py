"""A sheet of ingested people: one row a person, one column a modality, so that an eye can judge
whether the rows of a person belong together."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.data.loader import decode_rows
from service.data.records import Records
from service.doctor.check import spread
from service.errors import DataError
from service.modality import IMAGE_MODALITIES, Modality

PEOPLE = 8
_ROW_PIXELS = 192
_TEXT_PIXELS = 330
_HEAD_PIXELS = 24
_GAP = 6
_FONT_PIXELS = 14
_LETTERS = 46


def records_sheet(records: Records, out: Path, people: int = PEOPLE) -> Path:
    """Writes a PNG of `people` people, evenly spread over the class numbers.

    An empty cell is a modality that the person lacks. The image of a cell is drawn by class number,
    so the same records give the same sheet.

    Raises:
        DataError: an image cannot be decoded, or `out` cannot be written.
    """
    chosen = spread(records.num_classes, people).tolist()
    height, width = records.image_size
    cell = round(width * _ROW_PIXELS / height)
    size = (len(IMAGE_MODALITIES) * (cell + _GAP) + _TEXT_PIXELS, len(chosen) * _ROW_PIXELS)
    sheet = Image.new("RGB", (size[0], size[1] + _HEAD_PIXELS), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_FONT_PIXELS)
    for column, modality in enumerate(IMAGE_MODALITIES):
        draw.text((column * (cell + _GAP) + _GAP, 4), modality.label, fill="black", font=font)
    for line, person in enumerate(chosen):
        top = _HEAD_PIXELS + line * _ROW_PIXELS
        for column, modality in enumerate(IMAGE_MODALITIES):
            row = _a_row(records, person, modality)
            if row is not None:
                tile = Image.fromarray(decode_rows(records, [row])[0])
                tile = tile.resize((cell, _ROW_PIXELS - _GAP), Image.Resampling.BICUBIC)
                sheet.paste(tile, (column * (cell + _GAP), top))
        left = len(IMAGE_MODALITIES) * (cell + _GAP) + _GAP
        draw.multiline_text((left, top), _words(records, person), fill="black", font=font)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the sheet {out}: {error}; name another file") from error
    return out


def _a_row(records: Records, person: int, modality: Modality) -> int | None:
    """One of the person's rows of that modality, or None."""
    mine = np.flatnonzero((records.class_index == person) & (records.modality == modality))
    return int(mine[person % len(mine)]) if len(mine) else None


def _words(records: Records, person: int) -> str:
    """Who the person is, and a caption."""
    mine = np.flatnonzero(records.class_index == person)
    if not len(mine):
        return f"class {person}: no rows"
    first, text = int(mine[0]), _a_row(records, person, Modality.TEXT)
    head = f"class {person}   label {records.label[first]}   directory {records.dir_id(first)}"
    caption = records.caption(text) if text is not None else "(no caption)"
    return "\n".join([head, "", *textwrap.wrap(caption, _LETTERS)[:8]])
