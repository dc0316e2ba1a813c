"""Looks at images and captions themselves: stored once, in one split, readable, and saying
something."""

import numpy as np

from service.causes import Cause
from service.data.loader import decode_rows
from service.data.manifest import Manifest
from service.data.records import Records
from service.doctor.check import Check, Status, judged, listed, spread
from service.doctor.rows import Rows, groups
from service.errors import DataError
from service.modality import Modality

AGAIN = "correct the source folder, then ingest it again"
READ_ROWS = 256
"""Images of a split that are decoded."""
_FEW = 0.01
"""Share of rows up to which a flaw of single files is tolerable."""


def quarantine(manifest: Manifest) -> Check:
    """How many images were left out when the data was ingested."""
    number = len(manifest.quarantined)
    images = number + sum(
        rows
        for counts in manifest.counts.values()
        for name, rows in counts.items()
        if name != Modality.TEXT.label
    )
    share = number / max(images, 1)
    first = f": {listed((q.source for q in manifest.quarantined), 2)}" if number else ""
    return judged(
        "quarantined images",
        share <= _FEW,
        f"{number} of {images} ({share:.2%}){first}",
        f"{_FEW:.0%} or less",
        "look at them with `crossreid data inspect`; restore the files and ingest again",
        otherwise=Status.WARN,
    )


def duplicates(rows: Rows) -> list[Check]:
    """Equal files of one person teach nothing; equal files of two people teach something wrong."""
    images = np.flatnonzero(rows.is_image)
    repeats = [at for at in groups(rows.sha256[i] for i in images).values() if len(at) > 1]
    people_of = [{int(rows.class_index[images[i]]) for i in at} for at in repeats]
    within = sum(len(at) - 1 for at, who in zip(repeats, people_of, strict=True) if len(who) == 1)
    across = [at for at, who in zip(repeats, people_of, strict=True) if len(who) > 1]
    shared = sum(len(at) for at in across)
    share = shared / max(len(images), 1)
    named = "; ".join(f"rows {listed(rows.row[images[at]], 4)}" for at in across[:2])
    return [
        judged(
            "images stored twice",
            within <= _FEW * len(images),
            f"{within} of {len(images)} repeat another image of the same person",
            f"{_FEW:.0%} or less",
            "remove the copies and ingest again",
            otherwise=Status.WARN,
        ),
        judged(
            "images of two people",
            not across,
            f"{shared} images stand under several people: {named}" if across else "none",
            "every image under one person",
            AGAIN,
            cause=Cause.LABELS_SHUFFLED,
            otherwise=Status.WARN if share <= _FEW else Status.FAIL,
        ),
    ]


def captions(rows: Rows) -> list[Check]:
    """Empty captions say nothing; one that several people share cannot tell them apart."""
    texts = np.flatnonzero(~rows.is_image)
    empty = [int(rows.row[i]) for i in texts if not rows.caption[i].strip()]
    texts_of = groups(rows.caption[i] for i in texts)
    shared = sum(
        len(at)
        for at in texts_of.values()
        if len({int(rows.class_index[texts[i]]) for i in at}) > 1
    )
    share = shared / max(len(texts), 1)
    return [
        judged(
            "captions have words",
            not empty,
            f"{len(empty)} of {len(texts)} are empty"
            + (f", first row {empty[0]}" if empty else ""),
            "none empty",
            f"write them, or leave them out: {AGAIN}",
            otherwise=Status.WARN,
        ),
        judged(
            "captions tell people apart",
            share <= 0.1,
            f"{shared} of {len(texts)} captions ({share:.1%}) stand under several people",
            "10% or less",
            "write captions that tell these people apart; text queries cannot find them otherwise",
            otherwise=Status.WARN,
        ),
    ]


def same_files(train: Rows, test: Rows) -> Check:
    """No image may be in both splits."""
    known = {train.sha256[i]: int(train.row[i]) for i in np.flatnonzero(train.is_image)}
    both = [
        f"train row {known[test.sha256[i]]} = test row {test.row[i]}"
        for i in np.flatnonzero(test.is_image)
        if test.sha256[i] in known
    ]
    return judged(
        "train and test images",
        not both,
        f"{len(both)} in both: {listed(both, 2)}" if both else "no file is in both",
        "two sets without a common file",
        AGAIN,
    )


def readable(records: Records, limit: int = READ_ROWS) -> Check:
    """Decodes images spread over the split's shards."""
    images = np.flatnonzero(records.modality != Modality.TEXT)
    sample = images[spread(len(images), limit)].tolist()
    bad: list[str] = []
    for row in sample:
        try:
            decode_rows(records, [row])
        except DataError as error:
            bad.append(str(error))
    return judged(
        f"{records.split} images can be read",
        not bad,
        f"{len(sample) - len(bad)} of {len(sample)} decoded" + (f"; {bad[0]}" if bad else ""),
        "all of them",
        "the files were damaged after they were written: copy them again, or ingest again",
    )
