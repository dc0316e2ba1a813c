"""A sheet to look at: one row a person, that person's images of every modality, and a caption."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from service.errors import DataError
from service.modality import IMAGE_MODALITIES, Modality

COLUMNS = {Modality.VIS: 3, Modality.NIR: 2, Modality.CP: 3, Modality.SK: 3}
"""Images of each modality in a row."""

_ROW_PIXELS = 192
_TEXT_PIXELS = 360
_GAP = 6
_FONT_PIXELS = 14


@dataclass(frozen=True, slots=True)
class _Row:
    label: int
    dir_id: str
    split: str
    caption: str


def contact_sheet(folder: Path, out: Path, people: int = 8, split: str = "train") -> Path:
    """Writes a PNG of the first `people` people of a split of an ORBench-format folder.

    Raises:
        DataError: `folder` lacks a file of the layout, or `out` cannot be written.
    """
    try:
        rows = _read_rows(folder, split)[:people]
        if not rows:
            raise DataError(
                f"{folder} has no people in split {split!r}; expected 'train' or 'test'"
            )
        strips = [_strip(folder, row) for row in rows]
        sheet = _stacked(strips)
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG")
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"cannot make a sheet of {folder} in {out}: {error}; expected the layout that "
            "`crossreid data synth` writes"
        ) from error
    return out


def _read_rows(folder: Path, split: str) -> list[_Row]:
    """People in the order of the split's file, each with the first caption."""
    if split == "train":
        entries = [
            (a["id"], a["file_path"], a["caption"]) for a in _read(folder / "train_annos.json")
        ]
    elif split == "test":
        protocol = _read(folder / "test_gallery_and_queries.json")
        captions = dict(reversed(protocol["TEXT"]))
        entries = [(label, path, captions[label]) for label, path in protocol["RGB_GALLERY"]]
    else:
        entries = []
    rows = {}
    for label, path, text in entries:
        rows.setdefault(label, _Row(label, Path(path).parent.name, split, text))
    return list(rows.values())


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _strip(folder: Path, row: _Row) -> Image.Image:
    """One person's row: images at one height, the caption at the right."""
    tiles = [tile for modality in IMAGE_MODALITIES for tile in _tiles(folder, row, modality)]
    width = sum(tile.width + _GAP for tile in tiles) + _TEXT_PIXELS
    strip = Image.new("RGB", (width, _ROW_PIXELS), "white")
    x = 0
    for tile in tiles:
        strip.paste(tile, (x, 0))
        x += tile.width + _GAP
    font = ImageFont.load_default(size=_FONT_PIXELS)
    draw = ImageDraw.Draw(strip)
    title = f"label {row.label}   directory {row.dir_id}   {row.split}"
    lines = [title, "", *_wrapped(row.caption, draw, font)]
    draw.multiline_text((x + _GAP, _GAP), "\n".join(lines), fill="black", font=font)
    return strip


def _tiles(folder: Path, row: _Row, modality: Modality) -> list[Image.Image]:
    paths = sorted((folder / modality.label / row.dir_id).glob("*.jpg"), key=_view_last)
    return [_tile(path) for path in paths[: COLUMNS[modality]]]


def _view_last(path: Path) -> tuple[str, str]:
    """Orders drawings by number before view, so that the first three are the three views."""
    parts = path.stem.split("_")
    return (parts[-2], path.name)


def _tile(path: Path) -> Image.Image:
    with Image.open(path) as image:
        width = round(image.width * _ROW_PIXELS / image.height)
        return image.convert("RGB").resize((width, _ROW_PIXELS), Image.Resampling.BICUBIC)


def _wrapped(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) > _TEXT_PIXELS - 2 * _GAP:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _stacked(strips: list[Image.Image]) -> Image.Image:
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, len(strips) * (_ROW_PIXELS + _GAP)), "grey")
    for i, strip in enumerate(strips):
        sheet.paste(strip, (0, i * (_ROW_PIXELS + _GAP)))
    return sheet
