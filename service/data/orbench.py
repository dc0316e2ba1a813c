"""An ORBench-format folder as a list of observations, every name in it checked.

    vis/ nir/ cp/ sk/                   one directory a person, the same name in all four
    train_annos.json                    [{"id", "file_path", "caption"}], one entry a VIS image
    test_gallery_and_queries.json       {"RGB_GALLERY": [[label, path]], "NIR": [[label, path]],
                                         "TEXT+NIR": [[label, caption, path]], ...}, 32 query kinds

Only VIS images and captions of the train split are listed; its other images are whatever lies in
the same person's directories. What a query's members are follows from their position in the key,
never from what a member looks like. Nothing here opens an image.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.data.manifest import TrainPerson
from service.data.shards import QuerySet
from service.errors import DataError
from service.evaluation.protocol import QUERY_KINDS
from service.modality import IMAGE_MODALITIES, Modality

TRAIN_FILE = "train_annos.json"
TEST_FILE = "test_gallery_and_queries.json"
GALLERY_KEY = "RGB_GALLERY"
IMAGE_SUFFIXES = (".jpg", ".jpeg")
_SHOWN = 5


class Observation(NamedTuple):
    """One image or caption. `source` is the image's path, or the caption's place in the JSON."""

    modality: Modality
    class_index: int
    label: int
    dir_id: str
    source: str
    caption: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A whole data set.

    classes: the train persons in the order of class_index, which is label - 1.
    train: in the order (class_index, modality, source).
    test: the gallery in the official order, then query members in the order of their first use.
    queries: `members` are positions in `test`.
    ignored_files: entries of train directories that are no JPEG by name.
    """

    classes: tuple[TrainPerson, ...]
    train: list[Observation]
    test: list[Observation]
    queries: list[QuerySet]
    ignored_files: int


class _Entry(NamedTuple):
    label: int
    dir_id: str
    path: str
    caption: str
    at: str


def read_folder(folder: Path) -> Folder:
    """Everything that the folder says about its images and captions.

    Raises:
        DataError: naming the file, the place in it, and what to change.
    """
    missing = [m.label for m in IMAGE_MODALITIES if not (folder / m.label).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no directory {', '.join(missing)}; expected an ORBench folder with "
            f"vis, nir, cp, sk, {TRAIN_FILE} and {TEST_FILE}"
        )
    entries = list(_train_entries(_load(folder / TRAIN_FILE, list)))
    classes = _classes(entries)
    train, ignored = _train_rows(folder, entries, classes)
    test, queries = _TestSplit().read(_load(folder / TEST_FILE, dict))
    both = {person.dir_id for person in classes} & {row.dir_id for row in test}
    if both:
        raise DataError(
            f"{len(both)} persons are in both splits, for example directory {_some(both)}; a "
            f"person of {TEST_FILE} must not be in {TRAIN_FILE}: remove one of the two"
        )
    return Folder(classes, train, test, queries, ignored)


def _load(path: Path, kind: type) -> Any:
    """The JSON value of a file, which must be a non-empty `kind`."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; an ORBench folder has it beside vis, nir, cp and sk"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, kind) or not value:
        raise DataError(
            f"{path} holds {'an empty' if value in ([], {}) else 'a'} {type(value).__name__}; "
            f"expected a {kind.__name__} with entries"
        )
    return value


def _some(values: Iterable[Any]) -> str:
    """The first few values in order, for a message."""
    ordered = sorted(values)
    more = len(ordered) - _SHOWN
    return ", ".join(map(str, ordered[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _label(value: Any, at: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise DataError(f"{at}: the person's label is {value!r}; expected a whole number >= 0")
    return value


def _text(value: Any, at: str, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{at}: the {what} is {value!r}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{at}: the {what} {value!r} is not valid Unicode: {error}") from error
    return value


def _caption(value: Any, at: str) -> str:
    caption = _text(value, at, "caption")
    if not caption.strip():
        raise DataError(f"{at}: the caption is empty; write one, or remove the entry")
    if any(suffix in caption.lower() for suffix in IMAGE_SUFFIXES):
        raise DataError(
            f"{at}: the caption {caption!r} contains an image's file name; expected a sentence: "
            "look for swapped columns, and take the name out"
        )
    return caption


def _directory(value: Any, modality: Modality, at: str) -> str:
    """The person's directory in the path `<modality>/<person>/<file>`."""
    path = _text(value, at, "path")
    parts = path.split("/")
    safe = all(part not in ("", ".", "..") for part in parts) and not {"\\", "\0"} & set(path)
    if not safe or len(parts) != 3 or parts[0] != modality.label:
        raise DataError(
            f"{at}: the path is {path!r}; expected {modality.label}/<person>/<file>, relative to "
            "the data folder and inside it"
        )
    return parts[1]


def _train_entries(values: list[Any]) -> Iterator[_Entry]:
    for i, value in enumerate(values):
        at = f"{TRAIN_FILE}[{i}]"
        absent = {"id", "file_path", "caption"} - set(value if isinstance(value, dict) else ())
        if absent:
            raise DataError(
                f"{at} lacks {', '.join(sorted(absent))}; expected an object with id, file_path "
                "and caption"
            )
        if str(value.get("split", "train")).lower() != "train":
            raise DataError(
                f"{at} says split {value['split']!r}; {TRAIN_FILE} may hold train entries only"
            )
        path = value["file_path"]
        dir_id = _directory(path, Modality.VIS, at)
        yield _Entry(_label(value["id"], at), dir_id, path, _caption(value["caption"], at), at)


def _check_bijection(pairs: Iterable[tuple[int, str]], where: str) -> None:
    """Each label must have one directory, and each directory one label."""
    dirs, labels = defaultdict(set), defaultdict(set)
    for label, dir_id in pairs:
        dirs[label].add(dir_id)
        labels[dir_id].add(label)
    wrong = [f"label {a} has directories {_some(b)}" for a, b in dirs.items() if len(b) > 1]
    wrong += [f"directory {a} has labels {_some(b)}" for a, b in labels.items() if len(b) > 1]
    if wrong:
        raise DataError(
            f"{where}: a person has one label and one directory, but {_some(wrong)}; correct the "
            "labels or the paths"
        )


def _classes(entries: list[_Entry]) -> tuple[TrainPerson, ...]:
    """The train persons; their labels must be 1..C, each with a directory of its own."""
    _check_bijection({(entry.label, entry.dir_id) for entry in entries}, TRAIN_FILE)
    first = {entry.label: entry for entry in reversed(entries)}
    num_classes = len(first)
    outside = {label for label in first if not 1 <= label <= num_classes}
    if outside:
        entry = first[min(outside)]
        unused = set(range(1, num_classes + 1)) - set(first)
        raise DataError(
            f"{TRAIN_FILE} has {num_classes} persons, so their labels must be 1..{num_classes}; "
            f"found {_some(outside)} (first at {entry.at}, {entry.path}), and nobody has "
            f"{_some(unused)}: number the persons from 1 without gaps"
        )
    return tuple(TrainPerson(first[i].dir_id, i, i - 1) for i in range(1, num_classes + 1))


def _train_rows(
    folder: Path, entries: list[_Entry], classes: tuple[TrainPerson, ...]
) -> tuple[list[Observation], int]:
    """Rows of the train split, and how many directory entries were no JPEG by name."""
    of_person = defaultdict(list)
    for entry in entries:
        of_person[entry.label].append(entry)
    rows, ignored = [], 0
    for person in classes:
        names = (person.class_index, person.label, person.dir_id)
        listed = sorted({entry.path for entry in of_person[person.label]})
        rows += [Observation(Modality.VIS, *names, path, "") for path in listed]
        for modality in IMAGE_MODALITIES[1:]:
            paths, others = _list_images(folder, modality, person.dir_id)
            rows += [Observation(modality, *names, path, "") for path in paths]
            ignored += others
        texts = of_person[person.label]
        rows += [Observation(Modality.TEXT, *names, text.at, text.caption) for text in texts]
    return rows, ignored


def _list_images(folder: Path, modality: Modality, dir_id: str) -> tuple[list[str], int]:
    """Sorted paths of a person's images of one modality; how many entries are something else."""
    at = folder / modality.label / dir_id
    try:
        with os.scandir(at) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise DataError(f"cannot list {at}: {error}") from error
    names = sorted(n for n, is_dir in found if n.lower().endswith(IMAGE_SUFFIXES) and not is_dir)
    return [f"{modality.label}/{dir_id}/{name}" for name in names], len(found) - len(names)


class _TestSplit:
    """Collects the rows of the test split; a row used by many queries is kept once."""

    def __init__(self):
        self._rows: list[Observation] = []
        self._images: dict[str, int] = {}
        self._captions: dict[tuple[int, str], int] = {}

    def read(self, values: dict[str, Any]) -> tuple[list[Observation], list[QuerySet]]:
        kinds = {kind.key: kind.modalities for kind in QUERY_KINDS}
        wrong = set(values) ^ {GALLERY_KEY, *kinds}
        if wrong:
            raise DataError(
                f"{TEST_FILE} must hold {GALLERY_KEY} and the {len(kinds)} query kinds, such as "
                f"NIR and TEXT+NIR; unknown or missing: {_some(wrong)}"
            )
        self._read_gallery(values[GALLERY_KEY])
        queries = [self._read_queries(key, kind, values[key]) for key, kind in kinds.items()]
        dirs = {row.label: row.dir_id for row in self._rows if row.modality != Modality.TEXT}
        _check_bijection({(r.label, r.dir_id) for r in self._rows if r.dir_id}, TEST_FILE)
        rows = [row._replace(dir_id=dirs.get(row.label, "")) for row in self._rows]
        return rows, queries

    def _read_gallery(self, values: Any) -> None:
        for i, value in enumerate(_sequence(values, f"{TEST_FILE}[{GALLERY_KEY}]")):
            at = f"{TEST_FILE}[{GALLERY_KEY}][{i}]"
            label, path = _cells(value, (Modality.VIS,), at)
            if path in self._images:
                raise DataError(f"{at}: {path} is already in the gallery; list an image once")
            self._image(label, path, Modality.VIS, at)
        if not self._rows:
            raise DataError(f"{TEST_FILE}[{GALLERY_KEY}] is empty; expected VIS images to rank")

    def _read_queries(self, key: str, kind: tuple[Modality, ...], values: Any) -> QuerySet:
        values = _sequence(values, f"{TEST_FILE}[{key}]")
        label = np.empty(len(values), np.int32)
        members = np.empty((len(values), len(kind)), np.int64)
        for i, value in enumerate(values):
            at = f"{TEST_FILE}[{key}][{i}]"
            label[i], *cells = _cells(value, kind, at)
            for j, (modality, cell) in enumerate(zip(kind, cells, strict=True)):
                take = self._text if modality == Modality.TEXT else self._image
                members[i, j] = take(int(label[i]), cell, modality, at)
        return QuerySet(key, label, members)

    def _image(self, label: int, path: Any, modality: Modality, at: str) -> int:
        position = self._images.get(path) if isinstance(path, str) else None
        if position is None:
            dir_id = _directory(path, modality, at)
            position = self._images[path] = len(self._rows)
            self._rows.append(Observation(modality, -1, label, dir_id, path, ""))
        known = self._rows[position]
        if (known.label, known.modality) != (label, modality):
            raise DataError(
                f"{at}: {path} is listed as {modality.name} of label {label}, elsewhere as "
                f"{known.modality.name} of label {known.label}; correct one of the two"
            )
        return position

    def _text(self, label: int, caption: Any, modality: Modality, at: str) -> int:
        key = (label, _text(caption, at, "caption"))
        position = self._captions.get(key)
        if position is None:
            caption = _caption(caption, at)
            position = self._captions[key] = len(self._rows)
            self._rows.append(Observation(modality, -1, label, "", at, caption))
        return position


def _sequence(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{at} is a {type(value).__name__}; expected a list")
    return value


def _cells(value: Any, kind: tuple[Modality, ...], at: str) -> tuple[Any, ...]:
    """(label, then one member a modality of `kind`), the members not checked."""
    if not isinstance(value, list) or len(value) != 1 + len(kind):
        names = ", ".join(m.name for m in kind)
        raise DataError(f"{at} is {value!r}; expected a list of the label, then {names}")
    return (_label(value[0], at), *value[1:])
