"""The official evaluation: every row embedded once, every query kind ranked, all ranks sharing.

Work is cut into units that do not depend on the number of ranks, and dealt to them; so the result
is the same for any world. What counts is measured before the neck; after it, averages only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from operator import itemgetter
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from service.data.loader import decode_rows
from service.data.records import Records
from service.data.shards import QuerySet
from service.data.threads import in_order
from service.distributed import Distributed
from service.errors import CrossReidError, DataError
from service.evaluation.metrics import (
    Ranking,
    chance_map,
    chunk_queries,
    retrieval,
    search,
)
from service.evaluation.protocol import QUERY_KINDS, query_kind
from service.evaluation.result import EvalResult, KindResult, metric_averages
from service.modality import Modality

Unit = TypeVar("Unit")

_DECODING_THREADS = 2


class Embedder(Protocol):
    """What is evaluated; `CrossReID` is one. Inputs lie on the CPU, outputs where the model is."""

    @property
    def neck(self) -> Callable[[Tensor], Tensor]:
        """Rows [n, D] after the neck, of any length."""
        ...

    def modules(self) -> Iterator[nn.Module]: ...

    def embed_images(self, images: Tensor, modality: Modality) -> Tensor:
        """Unit float32 [n, D] of uint8 [n, H, W, 3]."""
        ...

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit float32 [m, D] of int32 [m, L]."""
        ...

    def fuse(self, members: Tensor) -> Tensor:
        """Unit [Q, D] of unit [Q, m, D]."""
        ...


def evaluate(
    model: Embedder,
    records: Records,
    world: Distributed | None = None,
    batch_rows: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Ranks the gallery for every query of the test split. *Collective*: every rank must call it.

    world: None is a single process. batch_rows: rows embedded at a time.
    progress: called with the batches that this rank has embedded, and all that it has to.

    Each module of the model is left in the mode it was found in, training or evaluation.

    Raises:
        CrossReidError: on all ranks together; a DataError where records are incomplete or damaged,
            a NonFiniteError where embeddings are not numbers.
    """
    world = world or Distributed.single()
    check_test_split(records)
    by_key = {query.key: query for query in records.queries}
    queries = [by_key[kind.key] for kind in QUERY_KINDS]
    needed = np.unique(np.concatenate([records.gallery, *(q.members.ravel() for q in queries)]))
    with _evaluating(model), torch.no_grad():
        embedded = _embed(model, records, needed, world, batch_rows, progress)
        scores = _rank(model, records, queries, needed, embedded, world)
    kinds = [query_kind(query.key) for query in queries]
    before = [_Scores.before(table) for table in scores]
    num_gallery = len(records.gallery)
    return EvalResult(
        num_gallery=num_gallery,
        kinds=tuple(
            KindResult(
                kind,
                len(ranking.ap),
                retrieval(ranking),
                float(chance_map(ranking.relevant, num_gallery).mean()),
            )
            for kind, ranking in zip(kinds, before, strict=True)
        ),
        after_neck=metric_averages(
            [
                (kind, retrieval(_Scores.after(table)))
                for kind, table in zip(kinds, scores, strict=True)
            ]
        ),
    )


def check_test_split(records: Records) -> None:
    """Refuses a test split that `evaluate` cannot rank; needs no model and opens no image.

    Raises:
        DataError: saying which query kind, or what of the gallery, is not as it must be.
    """
    by_key = {query.key: query for query in records.queries}
    expected = [kind.key for kind in QUERY_KINDS]
    if sorted(by_key) != sorted(expected) or len(by_key) != len(records.queries):
        found = [query.key for query in records.queries]
        missing = ", ".join(key for key in expected if key not in by_key) or "none"
        raise DataError(
            f"{len(found)} query kinds in the records, expected the {len(expected)} official ones "
            f"once each; missing: {missing}; evaluate a test split that was ingested whole"
        )
    if not len(records.gallery):
        raise DataError("the gallery is empty; expected VIS rows: ingest the test split again")
    if np.any(records.modality[records.gallery] != Modality.VIS):
        raise DataError("the gallery has rows that are not VIS; ingest the test split again")
    for query in by_key.values():
        _check_query(query, records)


def _check_query(query: QuerySet, records: Records) -> None:
    modalities = np.array(query_kind(query.key).modalities)
    if len(query.label) == 0:
        raise DataError(
            f"no query of kind {query.key}; its metrics would be undefined: ingest a test split "
            "with queries of every kind, or train with eval.after_training=false"
        )
    if query.members.shape != (len(query.label), len(modalities)):
        raise DataError(
            f"queries {query.key} have a member table {query.members.shape}, expected "
            f"({len(query.label)}, {len(modalities)})"
        )
    if np.any(records.modality[query.members] != modalities):
        raise DataError(f"queries {query.key} have members of other modalities than their key")
    if np.any(records.label[query.members] != query.label[:, None]):
        raise DataError(f"queries {query.key} have members of other people than they look for")
    lost = ~np.isin(query.label, records.label[records.gallery])
    if lost.any():
        raise DataError(
            f"{lost.sum()} of {len(lost)} queries {query.key} have no row of their person in the "
            f"gallery, the first for label {query.label[lost][0]}; ingest the test split again"
        )


@contextmanager
def _evaluating(model: Embedder) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class _EmbedUnit(NamedTuple):
    modality: Modality
    rows: np.ndarray


class _RankUnit(NamedTuple):
    query: int
    part: slice


def _embed(
    model: Embedder,
    records: Records,
    needed: np.ndarray,
    world: Distributed,
    batch_rows: int,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Embeddings of the rows `needed`, rising: float32 [len(needed), D]."""
    units: list[_EmbedUnit] = []
    for modality in Modality:
        rows = needed[records.modality[needed] == modality]
        units += [
            _EmbedUnit(modality, rows[start : start + batch_rows])
            for start in range(0, len(rows), batch_rows)
        ]

    def load(unit: _EmbedUnit) -> Tensor:
        read = records.tokens if unit.modality is Modality.TEXT else partial(decode_rows, records)
        return torch.as_tensor(read(unit.rows))

    def compute(mine: Sequence[_EmbedUnit]) -> Iterator[Tensor]:
        inputs = in_order(load, mine, threads=_DECODING_THREADS, ahead=1)
        with closing(inputs):
            for done, (unit, values) in enumerate(zip(mine, inputs, strict=True), start=1):
                if unit.modality is Modality.TEXT:
                    yield model.embed_tokens(values)
                else:
                    yield model.embed_images(values, unit.modality)
                if progress is not None:
                    progress(done, len(mine))

    parts = _dealt(units, [len(unit.rows) for unit in units], compute, world)
    order = np.concatenate([unit.rows for unit in units])
    result = torch.empty_like(parts)
    result[_positions(needed, order, world.device)] = parts
    return result


def _rank(
    model: Embedder,
    records: Records,
    queries: Sequence[QuerySet],
    needed: np.ndarray,
    embedded: Tensor,
    world: Distributed,
) -> list[Tensor]:
    """Each query set's scores: float64 [Q, 7], see `_Scores`."""
    device = world.device
    gallery = embedded[_positions(needed, records.gallery, device)]
    gallery_after = normalize(model.neck(gallery), dim=1)
    gallery_label = torch.as_tensor(records.label[records.gallery], device=device)
    size = chunk_queries(len(gallery))
    units = [
        _RankUnit(number, slice(start, min(start + size, len(query.label))))
        for number, query in enumerate(queries)
        for start in range(0, len(query.label), size)
    ]

    def scores(unit: _RankUnit) -> Tensor:
        members = queries[unit.query].members[unit.part]
        label = torch.tensor(queries[unit.query].label[unit.part], device=device)
        fused = embedded[_positions(needed, members, device)]
        fused = model.fuse(fused) if fused.shape[1] > 1 else fused[:, 0]
        after = normalize(model.neck(fused), dim=1)
        return _Scores.pack(
            search(fused, label, gallery, gallery_label),
            search(after, label, gallery_after, gallery_label),
        )

    num_rows = [unit.part.stop - unit.part.start for unit in units]
    rows = _dealt(units, num_rows, lambda mine: map(scores, mine), world)
    return list(rows.cpu().split([len(query.label) for query in queries]))


class _Scores:
    """Rankings before and after the neck as columns of float64, so that they can be gathered."""

    @staticmethod
    def pack(before: Ranking, after: Ranking) -> Tensor:
        columns = (before.first, before.ap, before.inp, before.relevant)
        columns += (after.first, after.ap, after.inp)
        return torch.stack([column.double() for column in columns], dim=1)

    @staticmethod
    def before(table: Tensor) -> Ranking:
        return Ranking(table[:, 0], table[:, 1], table[:, 2], table[:, 3])

    @staticmethod
    def after(table: Tensor) -> Ranking:
        return Ranking(table[:, 4], table[:, 5], table[:, 6], table[:, 3])


def _positions(needed: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    """Where `rows` are in the rising `needed`, which has them all."""
    return torch.as_tensor(np.searchsorted(needed, rows), device=device)


def _dealt(
    units: Sequence[Unit],
    num_rows: Sequence[int],
    compute: Callable[[Sequence[Unit]], Iterable[Tensor]],
    world: Distributed,
) -> Tensor:
    """What `compute` gives for all units, in their order, each computed by one rank. *Collective*.

    num_rows: rows [n, W] that each unit gives. An error of one rank is raised on all of them.
    """
    dealt = [range(rank, len(units), world.world) for rank in range(world.world)]
    failure, parts = None, []
    try:
        parts = list(compute([units[i] for i in dealt[world.rank]]))
    except CrossReidError as error:
        failure = error
    empty = parts[0][:0].cpu() if parts else None
    found = world.gather_objects((failure, empty))
    for error, _ in found:
        if error is not None:
            raise error
    shape = next(empty for _, empty in found if empty is not None)
    local = torch.cat([shape.to(world.device), *(part.to(world.device) for part in parts)])
    counts = [sum(num_rows[i] for i in mine) for mine in dealt]
    order = [i for mine in dealt for i in mine]
    blocks = world.gather_rows(local, counts).split([num_rows[i] for i in order])
    return torch.cat(
        [block for _, block in sorted(zip(order, blocks, strict=True), key=itemgetter(0))]
    )
