"""A small data set of drawn pedestrians in the layout of ORBench.

    <folder>/{vis,nir,cp,sk}/<dir id>/*.jpg   names in ORBench's style
    train_annos.json                          [{id, file_path, caption, split}], one a VIS image
    test_gallery_and_queries.json             RGB_GALLERY and the 32 query lists
    attributes.json                           the truth: settings, and who each label is

Labels run from 1: training people first, test people after them. A directory's name is another
permutation, so that nobody can mistake one for the other.
"""

import json
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from service.data.drawing import render
from service.data.figure import VIEWS
from service.data.people import Person, Tuning, caption, draw_people
from service.errors import ConfigError, DataError
from service.evaluation.protocol import QUERY_KINDS
from service.modality import IMAGE_MODALITIES, Modality

MAX_PEOPLE = 9999
_VIEW_SHARES = (0.4, 0.3, 0.3)
_SUFFIX = {Modality.CP: "colorpencil", Modality.SK: "sketch"}
_CAMERAS = {Modality.VIS: (1, 2, 4, 5), Modality.NIR: (3, 6)}


@dataclass(frozen=True, slots=True)
class SynthSettings:
    """What to make. Equal settings give equal bytes.

    people: at least 4; the training and the test split keep at least 2.
    images_per_person: at least 5; a fifth each NIR, CP and SK, the rest VIS.
    image_size: height and width in pixels, each at least 16.
    difficulty: in [0, 1]; how many neighbours are hard twins, and the strength of every nuisance.

    Raises:
        ConfigError: on construction, for any value outside these bounds.
    """

    people: int = 96
    test_share: float = 1 / 3
    images_per_person: int = 30
    image_size: tuple[int, int] = (96, 48)
    seed: int = 0
    difficulty: float = 0.3
    quality: int = 92
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("people", 4 <= self.people <= MAX_PEOPLE, f"4 to {MAX_PEOPLE}"),
            ("test_share", 0.0 < self.test_share < 1.0, "a share between 0 and 1"),
            ("images_per_person", self.images_per_person >= 5, "at least 5"),
            ("image_size", min(self.image_size) >= 16, "height and width of at least 16 pixels"),
            ("seed", self.seed >= 0, "0 or more"),
            ("difficulty", 0.0 <= self.difficulty <= 1.0, "0 to 1"),
            ("quality", 1 <= self.quality <= 100, "1 to 100"),
        ):
            if not fits:
                raise ConfigError(f"synth: {name} is {getattr(self, name)}; expected {expected}")
        if not 2 <= self.num_test <= self.people - 2:
            raise ConfigError(
                f"synth: test_share {self.test_share} of {self.people} people leaves "
                f"{self.num_test} to test and {self.num_train} to train on; expected at least 2 "
                "each; change test_share or people"
            )

    @property
    def num_test(self) -> int:
        return round(self.people * self.test_share)

    @property
    def num_train(self) -> int:
        return self.people - self.num_test

    @property
    def num_images(self) -> dict[Modality, int]:
        """Images of one person by modality."""
        fifth = self.images_per_person // 5
        rest = self.images_per_person - 3 * fifth
        return {Modality.VIS: rest, Modality.NIR: fifth, Modality.CP: fifth, Modality.SK: fifth}


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What was made; `num_queries` counts all 32 lists together."""

    folder: Path
    num_train: int
    num_test: int
    num_images: dict[str, int]
    num_captions: int
    num_gallery: int
    num_queries: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A person with a place in the data set. `source_id` is the number in the file names."""

    label: int
    dir_id: str
    split: str
    source: str
    source_id: int
    person: Person


@dataclass(frozen=True, slots=True)
class Album:
    """The files and captions of one subject; `captions[i]` describes `paths[VIS][i]`."""

    subject: Subject
    paths: dict[Modality, list[str]]
    captions: list[str]
    num_bytes: int

    def members(self, modality: Modality) -> list[str]:
        """What a query of `modality` consists of: paths, or captions."""
        return self.captions if modality is Modality.TEXT else self.paths[modality]


def synthesize(out: Path, settings: SynthSettings, workers: int = 2) -> SynthSummary:
    """Makes the data set in `out`, which must not exist or be empty. All or nothing.

    workers: threads; they change the time and not a byte.

    Raises:
        DataError: `out` has content, or cannot be written.
    """
    out = out.resolve()
    with _whole_folder(out) as folder:
        subjects = _cast(settings)
        with ThreadPoolExecutor(workers) as pool:
            albums = list(pool.map(lambda s: _make_album(folder, s, settings), subjects))
        train = [album for album in albums if album.subject.split == "train"]
        test = [album for album in albums if album.subject.split == "test"]
        protocol = _protocol(test, _rng(settings, _Stream.QUERIES))
        _write_json(folder / "train_annos.json", _annotations(train))
        _write_json(folder / "test_gallery_and_queries.json", protocol)
        _write_json(folder / "attributes.json", _truth(subjects, settings))
    return _summary(out, settings, albums, protocol)


class _Stream(IntEnum):
    """What a random generator is for; part of its seed."""

    PEOPLE = 0
    NAMES = 1
    IMAGE = 2
    DRAWING = 3
    CAPTION = 4
    QUERIES = 5


def _rng(settings: SynthSettings, stream: _Stream, *key: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, stream, *key])


def _cast(settings: SynthSettings) -> list[Subject]:
    """All subjects by label; a pair of twins is never divided between the splits."""
    rng = _rng(settings, _Stream.PEOPLE)
    how = (settings.difficulty, settings.tuning, rng)
    people = draw_people(settings.num_train, *how)
    people += draw_people(settings.num_test, *how, others=people)
    names = _rng(settings, _Stream.NAMES)
    dir_ids = _derangement(settings.people, names) + 1
    source_ids = names.permutation(settings.people) + 1
    sources = names.choice(["sysu", "sysu", "llcm"], settings.people)
    return [
        Subject(
            label=i + 1,
            dir_id=f"{dir_ids[i]:04d}",
            split="train" if i < settings.num_train else "test",
            source=str(sources[i]),
            source_id=int(source_ids[i]),
            person=person,
        )
        for i, person in enumerate(people)
    ]


def _derangement(num: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of 0..num-1 without a fixed point; e times a shuffle on average."""
    while True:
        order = rng.permutation(num)
        if not np.any(order == np.arange(num)):
            return order


def _make_album(folder: Path, subject: Subject, settings: SynthSettings) -> Album:
    paths: dict[Modality, list[str]] = {}
    num_bytes = 0
    for modality in IMAGE_MODALITIES:
        (folder / modality.label / subject.dir_id).mkdir(parents=True)
        paths[modality] = []
        for i in range(settings.num_images[modality]):
            view, name = _view_and_name(subject, modality, i, settings)
            path = f"{modality.label}/{subject.dir_id}/{name}"
            image = _make_image(subject, modality, i, view, settings)
            data = simplejpeg.encode_jpeg(
                image, quality=settings.quality, colorspace="RGB", colorsubsampling="444"
            )
            (folder / path).write_bytes(data)
            paths[modality].append(path)
            num_bytes += len(data)
    return Album(subject, paths, _captions(subject, settings), num_bytes)


def _view_and_name(
    subject: Subject, modality: Modality, i: int, settings: SynthSettings
) -> tuple[str, str]:
    """The view of image `i` and its file name: drawings go through the views in turn."""
    stem = f"{subject.dir_id}_{subject.source}_{subject.source_id:04d}"
    if modality in _SUFFIX:
        view = VIEWS[i % len(VIEWS)]
        return view, f"{stem}_{view}_{i // len(VIEWS) + 1}_{_SUFFIX[modality]}.jpg"
    rng = _rng(settings, _Stream.NAMES, subject.label, modality, i)
    view = str(rng.choice(VIEWS, p=_VIEW_SHARES))
    camera = int(rng.choice(_CAMERAS[modality]))
    return view, f"{stem}_cam{camera}_{i + 1:04d}_{modality.label}.jpg"


def _make_image(
    subject: Subject, modality: Modality, i: int, view: str, settings: SynthSettings
) -> np.ndarray:
    rng = _rng(settings, _Stream.IMAGE, subject.label, modality, i)
    # A sketch is made from the colour-pencil drawing of the same number, as in ORBench.
    drawn = modality in _SUFFIX
    pose_rng = _rng(settings, _Stream.DRAWING, subject.label, i) if drawn else rng
    return render(
        modality,
        subject.person,
        view,
        image_size=settings.image_size,
        difficulty=settings.difficulty,
        tuning=settings.tuning,
        pose_rng=pose_rng,
        rng=rng,
    )


def _captions(subject: Subject, settings: SynthSettings) -> list[str]:
    rng = _rng(settings, _Stream.CAPTION, subject.label)
    return [
        caption(subject.person, settings.difficulty, settings.tuning, rng)
        for _ in range(settings.num_images[Modality.VIS])
    ]


def _annotations(albums: list[Album]) -> list[dict[str, Any]]:
    return [
        {"id": a.subject.label, "file_path": path, "caption": text, "split": "train"}
        for a in albums
        for path, text in zip(a.paths[Modality.VIS], a.captions, strict=True)
    ]


def _protocol(albums: list[Album], rng: np.random.Generator) -> dict[str, list[list[Any]]]:
    """The gallery and the 32 lists: every anchor once, its companions drawn from the same id."""
    lists: dict[str, list[list[Any]]] = {
        "RGB_GALLERY": [[a.subject.label, path] for a in albums for path in a.paths[Modality.VIS]]
    }
    for kind in QUERY_KINDS:
        anchor, *others = kind.modalities
        lists[kind.key] = [
            [a.subject.label, member, *(_pick(a.members(m), rng) for m in others)]
            for a in albums
            for member in a.members(anchor)
        ]
    return lists


def _pick(values: list[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


def _truth(subjects: list[Subject], settings: SynthSettings) -> dict[str, Any]:
    return {"settings": asdict(settings), "people": [asdict(s) for s in subjects]}


def _summary(
    out: Path, settings: SynthSettings, albums: list[Album], protocol: dict[str, list[list[Any]]]
) -> SynthSummary:
    return SynthSummary(
        folder=out,
        num_train=settings.num_train,
        num_test=settings.num_test,
        num_images={m.label: n * len(albums) for m, n in settings.num_images.items()},
        num_captions=sum(len(a.captions) for a in albums),
        num_gallery=len(protocol["RGB_GALLERY"]),
        num_queries=sum(len(rows) for key, rows in protocol.items() if key != "RGB_GALLERY"),
        num_bytes=sum(a.num_bytes for a in albums),
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out` to write into; renamed to `out` at the end, or removed."""
    _refuse_content(out)
    partial = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        yield partial
        _refuse_content(out)
        partial.rename(out)
    except OSError as error:
        raise DataError(
            f"cannot write the synthetic data set to {out}: {error}; nothing was left there; "
            "free space, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_content(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise DataError(
            f"{out} exists and is not an empty folder; a synthetic data set needs a new one; "
            "remove it or choose another name"
        )
