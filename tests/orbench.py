"""A tiny ORBench-format folder written by hand, for tests that need files of known content.

    spec = write_orbench(tmp_path / "data", num_train=3, num_test=2)
    spec.train[0]["caption"]            # the JSON values as written; edit them and call spec.save()

Images are random noise, so every file has its own content. Label i of the train split has the
directory name `spec.train_dirs[i - 1]`; names fall while labels rise, so neither gives the other.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.data.ingest import ingest
from service.data.manifest import Manifest
from service.errors import DataError
from service.evaluation.protocol import QUERY_KINDS
from service.modality import Modality

_TAIL = {Modality.NIR: "cam3_{i:04d}_nir", Modality.CP: "front_{i}_colorpencil"}
_TAIL |= {Modality.SK: "back_{i}_sketch", Modality.VIS: "cam5_{i:04d}_vis"}


@dataclass
class OrbenchFolder:
    """What was written. `train` and `test` are the values of the two JSON files."""

    root: Path
    train_dirs: list[str]
    test_dirs: list[str]
    train: list[dict[str, Any]] = field(default_factory=list)
    test: dict[str, list[list[Any]]] = field(default_factory=dict)

    def save(self) -> None:
        """Writes both JSON files from `train` and `test`."""
        (self.root / "train_annos.json").write_text(json.dumps(self.train))
        (self.root / "test_gallery_and_queries.json").write_text(json.dumps(self.test))

    def images(self, modality: str, dir_id: str) -> list[Path]:
        """A person's files of one modality, sorted."""
        return sorted((self.root / modality / dir_id).iterdir())


def jpeg(
    rng: np.random.Generator, size: tuple[int, int] = (24, 12), mode: str = "RGB", quality: int = 90
) -> bytes:
    """A noise JPEG of (height, width); mode RGB, L (grey) or CMYK."""
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if mode == "RGB":
        return simplejpeg.encode_jpeg(pixels, quality=quality)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_orbench(
    root: Path,
    *,
    num_train: int = 3,
    num_test: int = 2,
    num_images: int = 2,
    size: tuple[int, int] = (24, 12),
    seed: int = 0,
    without: Sequence[tuple[int, str]] = (),
) -> OrbenchFolder:
    """Writes `num_train + num_test` persons with `num_images` images of each visual modality.

    without: (train label, modality) pairs whose directory is left out; "vis" is not possible,
        because the annotations list VIS images.
    """
    rng = np.random.default_rng(seed)
    numbers = sorted(rng.permutation(900)[: num_train + num_test] + 1, reverse=True)
    names = [f"{number:04d}" for number in numbers]
    spec = OrbenchFolder(root, names[:num_train], names[num_train:])
    for modality in ("vis", "nir", "cp", "sk"):
        (root / modality).mkdir(parents=True)
    for i, name in enumerate(names):
        for modality in _TAIL:
            if i < num_train and (i + 1, modality.label) in without:
                continue
            _write_images(root, modality, name, num_images, size, rng)
    for label, name in enumerate(spec.train_dirs, start=1):
        for path in spec.images("vis", name):
            caption = f"person {label} in clothes of kind {len(spec.train)}"
            where = path.relative_to(root).as_posix()
            entry = {"id": label, "file_path": where, "caption": caption, "split": "train"}
            spec.train.append(entry)
    spec.test = _test_json(spec, num_train, num_images)
    spec.save()
    return spec


def _write_images(
    root: Path,
    modality: Modality,
    name: str,
    num_images: int,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> None:
    folder = root / modality.label / name
    folder.mkdir()
    for i in range(1, num_images + 1):
        tail = _TAIL[modality].format(i=i)
        (folder / f"{name}_sysu_0001_{tail}.jpg").write_bytes(jpeg(rng, size))


def _test_json(spec: OrbenchFolder, num_train: int, num_images: int) -> dict[str, list[list[Any]]]:
    """Every query kind; the i-th query of a person has the i-th instance of every member."""
    test: dict[str, list[list[Any]]] = {"RGB_GALLERY": []}
    kinds = {kind.key: kind.modalities for kind in QUERY_KINDS}
    test |= {key: [] for key in kinds}
    for label, name in enumerate(spec.test_dirs, start=num_train + 1):
        instances: dict[Modality, list[str]] = {
            modality: [
                path.relative_to(spec.root).as_posix() for path in spec.images(modality.label, name)
            ]
            for modality in _TAIL
        }
        captions = [f"test person {label} seen for the time {i}" for i in range(num_images)]
        instances[Modality.TEXT] = captions
        test["RGB_GALLERY"] += [[label, path] for path in instances[Modality.VIS]]
        for key, kind in kinds.items():
            for i in range(num_images):
                test[key].append([label, *(instances[modality][i] for modality in kind)])
    return test


def run(data: OrbenchFolder, **settings) -> Manifest:
    """Ingests `data` into the folder `out` beside it."""
    out = data.root.parent / "out"
    return ingest(data.root, str(out), **({"image_size": (24, 12)} | settings))


def refuses(data: OrbenchFolder, message: str, **settings) -> None:
    """The ingest fails with `message` and leaves nothing behind."""
    with pytest.raises(DataError, match=message):
        run(data, **settings)
    assert [path.name for path in data.root.parent.iterdir()] == ["data"]
