"""What a records folder holds, as its `manifest.json` says it."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from service.errors import DataError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"

Split = Literal["train", "test"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file beside the manifest. `bytes` is its size, `sha256` the hash of its content."""

    file: FileName
    rows: int
    bytes: int
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class TrainPerson:
    """The three names of a person who is trained on; each determines the two others."""

    dir_id: str
    label: int
    class_index: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A source image that was left out, and why."""

    split: Split
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a records folder.

    image_size: (height, width) in pixels of every stored image.
    context_length: tokens of a caption, padding included.
    tokenizer: which tokenizer made the tokens; vocab_size: their number of different values.
    shards: the files of each split, in row order.
    counts: rows by split and modality label.
    classes: in the order of class_index.
    query_counts: usable queries of each query kind.
    dropped_queries: queries left out, by reason.
    notes: other things that were counted, by name.
    """

    image_size: tuple[int, int]
    context_length: int
    tokenizer: str
    vocab_size: int
    shards: dict[Split, tuple[DataFile, ...]]
    queries: DataFile
    counts: dict[Split, dict[str, int]]
    classes: tuple[TrainPerson, ...]
    query_counts: dict[str, int]
    dropped_queries: dict[str, int] = field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def num_classes(self) -> int:
        """C, the persons that are trained on."""
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the content: equal records have equal fingerprints."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]

    def files(self, split: Split) -> tuple[DataFile, ...]:
        """Every file that reading `split` needs: its shards, and for the test split the queries."""
        return self.shards[split] + ((self.queries,) if split == "test" else ())

    def to_json(self) -> bytes:
        """The manifest's one spelling; equal manifests give equal bytes."""
        values = _ADAPTER.dump_python(self, mode="json")
        return json.dumps(values, indent=1).encode() + b"\n"


_ADAPTER = TypeAdapter(Manifest)


def parse_manifest(text: bytes | str, where: str) -> Manifest:
    """The manifest that `text` spells; `where` names it in messages.

    Raises:
        DataError: for anything that is not a manifest of this schema version.
    """
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); ingest the data set again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where} has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "ingest the data set again with this version"
        )
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where} is damaged at `{at}`: {first['msg']}; ingest the data set again"
        ) from error
