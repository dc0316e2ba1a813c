"""Looks at ingested data: who has what, do names and files belong together, can it be read."""

import numpy as np

from service.causes import Cause
from service.config import Config
from service.data.manifest import Manifest
from service.data.records import Records
from service.data.sampler import PAIRABLE_WARNING
from service.doctor.check import Check, Diagnosis, Status, Table, judged, listed
from service.doctor.contents import AGAIN, captions, duplicates, quarantine, readable, same_files
from service.doctor.rows import Rows, groups
from service.errors import DataError
from service.modality import Modality

PAIRABLE_LEAST = 0.6
"""Below this share of pairable people no setting of the sampler helps: the data lacks rows."""


def diagnose_data(url: str, config: Config | None = None) -> Diagnosis:
    """Everything that the records at `url` show without training.

    config: whose model and batch they must fit.

    Raises:
        DataError: there are no records at `url`, or they are incomplete.
    """
    train = Records.open(url, "train")
    if not train.num_rows or not train.num_classes:
        raise DataError(
            f"{url} has {train.num_rows} rows of {train.num_classes} people to train on; ingest a "
            "folder with a train split"
        )
    rows, manifest = Rows.of(train), train.manifest
    counts = modality_counts(train.class_index, train.modality, train.num_classes)
    checks = [
        *class_numbers(train.class_index, train.num_classes),
        counted(train),
        people(counts),
        pairable(counts),
        names(rows, manifest),
        quarantine(manifest),
        *duplicates(rows),
        *captions(rows),
        readable(train),
        *_test_split(url, rows),
    ]
    if config is not None:
        checks += _fits(train, counts, config)
    notes = [f"fingerprint {train.fingerprint}"]
    if len(rows.row) < train.num_rows:
        notes.append(f"names and hashes were read of {len(rows.row)} of {train.num_rows} rows")
    return Diagnosis(f"data in {url}", tuple(checks), (_split_table(manifest),), tuple(notes))


# -- checks on columns -----------------------------------------------------------------------------


def modality_counts(class_index: np.ndarray, modality: np.ndarray, num_classes: int) -> np.ndarray:
    """Rows of each class and modality, int64 [C, 5]; rows out of range are left out."""
    inside = (class_index >= 0) & (class_index < num_classes)
    slot = class_index[inside].astype(np.int64) * len(Modality) + modality[inside]
    counts = np.bincount(slot, minlength=num_classes * len(Modality))
    return counts.reshape(num_classes, len(Modality))


def class_numbers(class_index: np.ndarray, num_classes: int) -> list[Check]:
    """Every row's class lies in [0, C), and every class has rows."""
    outside = np.flatnonzero((class_index < 0) | (class_index >= num_classes))
    low, high = int(class_index.min(initial=0)), int(class_index.max(initial=0))
    where = f", wrong in {len(outside)} rows, first in row {outside[0]}" if len(outside) else ""
    inside = np.delete(class_index, outside)
    empty = np.flatnonzero(np.bincount(inside, minlength=num_classes) == 0)
    gaps = f"{len(empty)} of {num_classes} have no rows: {listed(empty)}"
    return [
        judged(
            "class numbers in range",
            not len(outside),
            f"{low} to {high}{where}",
            f"0 to {num_classes - 1}, since {num_classes} people are trained on",
            cause=Cause.LABELS_OUT_OF_RANGE,
        ),
        judged(
            "class numbers without gaps",
            not len(empty),
            gaps if len(empty) else f"all {num_classes} have rows",
            "rows for every class number",
            cause=Cause.LABELS_GAPPED,
        ),
    ]


def counted(records: Records) -> Check:
    """The manifest's counts are those of the rows."""
    said = records.manifest.counts[records.split]
    found = np.bincount(records.modality, minlength=len(Modality)).tolist()
    other = [
        f"{found[m]} {m.label} rows, the manifest says {said.get(m.label, 0)}"
        for m in Modality
        if found[m] != said.get(m.label, 0)
    ]
    return judged(
        "rows as counted",
        not other,
        "; ".join(other) or f"{records.num_rows} rows, as the manifest says",
        "the manifest's counts",
        "the folder was changed after it was written: copy it again, or ingest again",
    )


def people(counts: np.ndarray) -> Check:
    """How many rows a person has; a single row can never be matched with another."""
    rows = counts.sum(axis=1)
    single = int((rows < 2).sum())
    told = f"{rows.min()} / {np.median(rows):g} / {rows.max()} (least / median / most)"
    return judged(
        "rows of a person",
        not single,
        f"{told} of {len(rows)} people" + (f"; {single} have fewer than 2" if single else ""),
        "at least 2 rows each",
        "add rows of these people, or leave them out",
        otherwise=Status.WARN,
    )


def pairable(counts: np.ndarray) -> Check:
    """The share of people with a VIS row and a row of another modality."""
    num_vis = counts[:, Modality.VIS]
    both = (num_vis > 0) & (counts.sum(axis=1) > num_vis)
    share = float(both.mean())
    lonely = np.flatnonzero(~both)
    which = f"; not: class {listed(lonely)}" if len(lonely) else ""
    good, soft = share >= PAIRABLE_WARNING, share >= PAIRABLE_LEAST
    return judged(
        "people who can pair",
        good,
        f"{share:.1%} of {len(counts)} have VIS and another modality{which}",
        f"{PAIRABLE_WARNING:.0%} or more",
        "leave sampler.on_unpairable=replace, or set it to soft"
        if soft
        else f"add the missing modalities: {AGAIN}",
        cause=Cause.NOT_PAIRING,
        otherwise=Status.WARN if soft else Status.FAIL,
    )


def names(rows: Rows, manifest: Manifest) -> Check:
    """Directory, label and class number name one person each, and every row agrees."""
    known = manifest.classes
    wrong = [
        f"{what} {value!r} names {len(who)} people"
        for what, column in (
            ("directory", [p.dir_id for p in known]),
            ("label", [p.label for p in known]),
            ("class number", [p.class_index for p in known]),
        )
        for value, who in groups(column).items()
        if len(who) > 1
    ]
    by_class = {p.class_index: (p.dir_id, p.label) for p in known}
    for at, row in enumerate(rows.row.tolist()):
        said, person = (rows.dir_id[at], int(rows.label[at])), int(rows.class_index[at])
        listed_as = by_class.get(person)
        if said != listed_as:
            owner = f"directory {listed_as[0]!r}, label {listed_as[1]}" if listed_as else "nobody"
            wrong.append(
                f"row {row} has directory {said[0]!r}, label {said[1]} and class {person}, which "
                f"is {owner}"
            )
    return judged(
        "names belong together",
        not wrong,
        listed(wrong, 2) if wrong else f"directory, label and class agree in {len(rows.row)} rows",
        "one directory, one label and one class number a person",
        cause=Cause.LABELS_SHUFFLED,
    )


def _test_split(url: str, train: Rows) -> list[Check]:
    try:
        records = Records.open(url, "test")
    except DataError as error:
        told = "copy it again, or set eval.after_training=false"
        return [Check("test split", Status.FAIL, str(error), "a readable test split", told)]
    test = Rows.of(records)
    return [overlap(train, test), same_files(train, test), readable(records)]


def overlap(train: Rows, test: Rows) -> Check:
    """Nobody may be in both splits."""
    labels = sorted(set(train.label.tolist()) & set(test.label.tolist()))
    folders = sorted(set(train.dir_id) & set(test.dir_id))
    both = [*(f"label {n}" for n in labels), *(f"directory {name}" for name in folders)]
    return judged(
        "train and test people",
        not both,
        f"{len(both)} names in both: {listed(both)}" if both else "nobody is in both",
        "two sets without a common person",
        f"else the test measures what was learned by heart: {AGAIN}",
    )


def _fits(records: Records, counts: np.ndarray, config: Config) -> list[Check]:
    """What the config asks of the records."""
    size = "x".join(map(str, records.image_size))
    wanted = "x".join(map(str, config.model.backbone.image_size))
    few = int((counts.sum(axis=1) < config.sampler.rows_per_id).sum())
    k = config.sampler.rows_per_id
    return [
        judged(
            "image size",
            size == wanted,
            size,
            f"{wanted}, as model.backbone.image_size says",
            f"ingest again with --size {wanted}, or set model.backbone.image_size",
        ),
        judged(
            "people with a full share",
            few <= 0.2 * len(counts),
            f"{len(counts) - few} of {len(counts)} have K={k} rows or more",
            "80% or more",
            "lower sampler.rows_per_id: others give fewer rows to a batch",
            otherwise=Status.WARN,
        ),
    ]


def _split_table(manifest: Manifest) -> Table:
    names = [m.label for m in Modality]
    return Table(
        "Rows",
        ("split", *names, "all"),
        tuple(
            (split, *(str(counts.get(n, 0)) for n in names), str(sum(counts.values())))
            for split, counts in manifest.counts.items()
        ),
    )
