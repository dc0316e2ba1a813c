"""An ORBench-format folder made into records: read, checked and resized once, written whole.

    ingest(Path("ORBench"), "data/records", image_size=(384, 128))

The same folder gives the same bytes, whatever the number of threads. The target appears only when
it is complete.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from service.data.images import prepare_image, read_image
from service.data.manifest import MANIFEST_FILE, DataFile, Manifest, Quarantined, Split
from service.data.orbench import Folder, Observation, read_folder
from service.data.shards import QuerySet, Record, write_queries, write_shard
from service.data.target import check_free, publish, work_folder
from service.data.threads import in_order, usable_cpus
from service.errors import DataError
from service.modality import Modality
from service.stores import open_store

QUARANTINE_FILE = "quarantine.json"
TOKENIZER = "open_clip SimpleTokenizer"
Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all), in the thread that called `ingest`."""

_SHOWN = 10
_AHEAD = 64
_CAMERA = re.compile(r"_cam(\d{1,4})(?=_|\.)")
_VIEW = re.compile(r"_(front|back|side)(?=_|\.)")


def ingest(
    folder: str | Path,
    out: str,
    *,
    image_size: tuple[int, int],
    context_length: int = 77,
    shard_rows: int = 8192,
    max_quarantine_share: float = 0.01,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the records of `folder` to `out`, a folder or fsspec URL, and returns their manifest.

    image_size: (height, width) in pixels of every stored image.
    context_length: tokens of a caption, the two marks and padding included.
    shard_rows: rows of a file, all in memory while it is written.
    max_quarantine_share: images that cannot be decoded, and links, are left out, named and
        counted, up to this share of all images in [0, 1].
    threads: None takes one for each CPU that this process may use.

    Raises:
        DataError: for data that does not hold together, too many bad images, a query kind that
            loses all its queries, a target that exists, a disk that is full, or a store that loses
            data. Nothing is left at `out` then, unless a store takes nothing away again.
    """
    _check_settings(image_size, context_length, shard_rows, max_quarantine_share)
    if threads is not None and threads < 1:
        raise DataError(f"ingest needs threads >= 1; found {threads}")
    fs, root = open_store(out)
    local = isinstance(fs, LocalFileSystem)
    check_free(out, root, local)
    source = Path(folder)
    plan = read_folder(source)
    encoder = _Encoder(source, image_size, context_length)
    with work_folder(Path(root) if local else None) as work:
        try:
            build = _Build(work, plan, shard_rows, max_quarantine_share)
            manifest = build.run(encoder, threads or usable_cpus(), progress)
        except OSError as error:
            raise DataError(
                f"cannot write the records under {work}: {error.strerror or error}; nothing was "
                "kept: make room or choose another target"
            ) from error
        publish(work, out, manifest, local)
    return manifest


def _check_settings(
    image_size: tuple[int, int], context_length: int, shard_rows: int, share: float
) -> None:
    if min(image_size) < 1 or context_length < 3 or shard_rows < 1 or not 0.0 <= share <= 1.0:
        raise DataError(
            f"ingest needs image_size >= 1x1, context_length >= 3, shard_rows >= 1 and "
            f"max_quarantine_share in [0, 1]; found {image_size}, {context_length}, {shard_rows} "
            f"and {share}"
        )


@dataclass(frozen=True, slots=True)
class _Bad:
    """An image that is left out."""

    source: str
    reason: str


class _Encoder:
    """One observation to one record; called from many threads."""

    def __init__(self, folder: Path, image_size: tuple[int, int], context_length: int):
        # open_clip imports torch and takes seconds; only ingesting needs its tokenizer.
        import open_clip

        self._folder = folder
        self.image_size = image_size
        self.context_length = context_length
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        self.vocab_size: int = self._tokenizer.vocab_size

    def __call__(self, row: Observation) -> Record | _Bad:
        if row.modality == Modality.TEXT:
            return _record(row, b"", row.caption.encode(), self._tokens(row.caption))
        try:
            data = read_image(self._folder / row.source)
            payload = prepare_image(data, self.image_size)
        except FileNotFoundError:
            return _Bad(row.source, "missing")
        except OSError as error:
            return _Bad(row.source, f"unreadable: {error.strerror}")
        except ValueError as error:
            return _Bad(row.source, str(error))
        return _record(row, payload, data, np.empty(0, np.int32))

    def is_truncated(self, record: Record) -> bool:
        """Whether the caption lost words because the context is too short."""
        full = len(record.tokens) == self.context_length
        return full and len(self._tokenizer.encode(record.caption)) > self.context_length - 2

    def _tokens(self, caption: str) -> np.ndarray:
        tokens = self._tokenizer([caption])[0].numpy()
        end = int(np.flatnonzero(tokens == self._tokenizer.eot_token_id)[-1])
        return tokens[: end + 1].astype(np.int32)


def _record(row: Observation, payload: bytes, content: bytes, tokens: np.ndarray) -> Record:
    camera = _CAMERA.search(row.source)
    view = _VIEW.search(row.source)
    return Record(
        modality=row.modality,
        class_index=row.class_index,
        label=row.label,
        dir_id=row.dir_id,
        payload=payload,
        caption=row.caption,
        tokens=tokens,
        source=row.source,
        camera=int(camera[1]) if camera else -1,
        view=view[1] if view else "",
        sha256=hashlib.sha256(content).digest(),
    )


class _Build:
    """The state of one ingest: what was written, counted and left out so far."""

    def __init__(self, work: Path, plan: Folder, shard_rows: int, max_quarantine_share: float):
        self._work, self._plan = work, plan
        self._shard_rows = shard_rows
        self._max_share = max_quarantine_share
        self._quarantined: list[Quarantined] = []
        self._sources: dict[Split, dict[bytes, str]] = {"train": {}, "test": {}}
        self._notes = Counter(ignored_files=plan.ignored_files)
        self._done = 0

    def run(self, encoder: _Encoder, threads: int, progress: Progress | None) -> Manifest:
        """Writes every file but the rename; returns the manifest.

        Raises:
            DataError: for too many bad images, a query kind that loses all its queries, or files
                that are in both splits.
            OSError: from the disk.
        """
        shards: dict[Split, tuple[DataFile, ...]] = {}
        counts: dict[Split, dict[str, int]] = {}
        rows: dict[Split, list[Observation]] = {"train": self._plan.train, "test": self._plan.test}
        kept: dict[Split, np.ndarray] = {}
        for split in rows:
            kept[split] = np.zeros(len(rows[split]), bool)
            with closing(in_order(encoder, rows[split], threads, _AHEAD)) as encoded:
                good = self._sift(split, encoded, kept[split], encoder, progress)
                shards[split] = tuple(self._write(split, good))
            left = [row for row, keep in zip(rows[split], kept[split], strict=True) if keep]
            counts[split] = _count(left)
        self._check_quarantine()
        self._check_leaks()
        self._note_people(kept["train"])
        queries, dropped = _usable_queries(self._plan.queries, self._plan.test, kept["test"])
        self._notes["empty_query_kinds"] = sum(len(query.label) == 0 for query in queries)
        manifest = Manifest(
            image_size=encoder.image_size,
            context_length=encoder.context_length,
            tokenizer=TOKENIZER,
            vocab_size=encoder.vocab_size,
            shards=shards,
            queries=write_queries(self._work / "queries.arrow", queries),
            counts=counts,
            classes=self._plan.classes,
            query_counts={query.key: len(query.label) for query in queries},
            dropped_queries=dropped,
            quarantined=tuple(self._quarantined),
            notes=dict(sorted(self._notes.items())),
        )
        (self._work / QUARANTINE_FILE).write_text(
            json.dumps([asdict(bad) for bad in self._quarantined], indent=1) + "\n"
        )
        (self._work / MANIFEST_FILE).write_bytes(manifest.to_json())
        return manifest

    def _sift(
        self,
        split: Split,
        encoded: Iterator[Record | _Bad],
        kept: np.ndarray,
        encoder: _Encoder,
        progress: Progress | None,
    ) -> Iterator[Record]:
        """The good records in order; marks them in `kept` and counts everything else."""
        total = len(self._plan.train) + len(self._plan.test)
        for i, record in enumerate(encoded):
            self._done += 1
            if progress:
                progress(self._done, total)
            if isinstance(record, _Bad):
                self._quarantined.append(Quarantined(split, record.source, record.reason))
                continue
            kept[i] = True
            if record.modality == Modality.TEXT:
                self._notes["truncated_captions"] += encoder.is_truncated(record)
            else:
                self._notes["repeated_files"] += record.sha256 in self._sources[split]
                self._sources[split].setdefault(record.sha256, record.source)
            yield record

    def _write(self, split: Split, records: Iterator[Record]) -> Iterator[DataFile]:
        """Fills shards with records; yields each as it is written."""
        shard: list[Record] = []
        number = 0
        for record in records:
            shard.append(record)
            if len(shard) == self._shard_rows:
                yield write_shard(self._work / f"{split}-{number:05d}.arrow", shard)
                shard, number = [], number + 1
        if shard:
            yield write_shard(self._work / f"{split}-{number:05d}.arrow", shard)

    def _check_quarantine(self) -> None:
        rows = self._plan.train + self._plan.test
        images = sum(row.modality != Modality.TEXT for row in rows)
        share = len(self._quarantined) / images
        if share > self._max_share:
            named = [f"{bad.source} ({bad.reason})" for bad in self._quarantined[:_SHOWN]]
            more = len(self._quarantined) - len(named)
            raise DataError(
                f"{len(self._quarantined)} of {images} images ({share:.2%}) cannot be used, more "
                f"than max_quarantine_share = {self._max_share:.2%}: {', '.join(named)}"
                f"{f' and {more} more' if more else ''}; restore the files, or allow a larger share"
            )

    def _check_leaks(self) -> None:
        train, test = self._sources["train"], self._sources["test"]
        both = [f"{train[key]} = {test[key]}" for key in train if key in test]
        if both:
            more = f" and {len(both) - _SHOWN} more" if len(both) > _SHOWN else ""
            raise DataError(
                f"{len(both)} files have the same content in the train and the test split: "
                f"{', '.join(both[:_SHOWN])}{more}; remove one of each pair"
            )

    def _note_people(self, kept: np.ndarray) -> None:
        """Counts the train persons who cannot give a pair; the sampler decides what to do."""
        has = np.zeros((len(self._plan.classes), len(Modality)), bool)
        for row, keep in zip(self._plan.train, kept, strict=True):
            has[row.class_index, row.modality] |= keep
        others = np.delete(has, Modality.VIS, axis=1).any(axis=1)
        self._notes["persons_with_one_modality"] = int((has.sum(axis=1) == 1).sum())
        self._notes["unpairable_persons"] = int((~(has[:, Modality.VIS] & others)).sum())


def _count(rows: Sequence[Observation]) -> dict[str, int]:
    found = Counter(row.modality for row in rows)
    return {modality.label: found[modality] for modality in Modality}


def _usable_queries(
    queries: Sequence[QuerySet], rows: Sequence[Observation], kept: np.ndarray
) -> tuple[list[QuerySet], dict[str, int]]:
    """The queries as row ids, without those that lost a member or have nobody to find.

    kept: bool [len(rows)], which rows became records. Returns the queries, and how many were
    dropped for which reason.

    Raises:
        DataError: when no gallery image is left, or no query of a kind that had some.
    """
    row_id = np.where(kept, np.cumsum(kept) - 1, -1)
    gallery = {
        row.label
        for row, keep in zip(rows, kept, strict=True)
        if keep and row.modality == Modality.VIS
    }
    if not gallery:
        raise DataError("no gallery image of the test split can be used; restore the files")
    dropped = {"member_quarantined": 0, "nobody_in_gallery": 0}
    usable, lost = [], []
    for query in queries:
        whole = kept[query.members].all(axis=1)
        findable = np.isin(query.label, list(gallery))
        dropped["member_quarantined"] += int((~whole).sum())
        dropped["nobody_in_gallery"] += int((whole & ~findable).sum())
        use = whole & findable
        usable.append(QuerySet(query.key, query.label[use], row_id[query.members[use]]))
        lost += [query.key] * bool(len(use) and not use.any())
    if lost:
        raise DataError(
            f"no query of kind {', '.join(lost)} can be used: each has a member that is "
            "quarantined, or nobody in the gallery; restore the files"
        )
    return usable, dropped
