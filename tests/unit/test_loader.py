import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from service.config import LoaderConfig, SamplerConfig
from service.data.index import IdentityIndex
from service.data.ingest import ingest
from service.data.layout import FUSED, Batch
from service.data.loader import Loader, decode_rows
from service.data.records import Records
from service.data.sampler import PKPlan, PlanBatch
from service.errors import DataError
from service.modality import Modality
from tests.orbench import write_orbench

SIZE = (24, 12)
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loader")
    write_orbench(root / "data", num_train=9, num_images=3, size=SIZE)
    ingest(root / "data", str(root / "out"), image_size=SIZE, shard_rows=50)
    return root / "out"


@pytest.fixture(scope="module")
def records(folder: Path) -> Records:
    return Records.open(str(folder), "train")


@pytest.fixture(scope="module")
def plan(records: Records) -> PKPlan:
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    return PKPlan(index, SamplerConfig(ids_per_batch=4, rows_per_id=5), SEED)


def loader(records: Records, plan, rank: int = 0, world: int = 1, **config) -> Loader:
    return Loader(records, plan, SEED, rank, world, LoaderConfig(**config))


def same(a: Batch, b: Batch) -> bool:
    return (
        (a.epoch, a.step, a.image_counts) == (b.epoch, b.step, b.image_counts)
        and torch.equal(a.images, b.images)
        and torch.equal(a.tokens, b.tokens)
        and torch.equal(a.fused, b.fused)
        and np.array_equal(a.row, b.row)
        and np.array_equal(a.layout.class_index, b.layout.class_index)
        and np.array_equal(a.layout.kind, b.layout.kind)
        and a.layout.counts == b.layout.counts
    )


def test_a_batch_holds_the_plans_rows_with_their_pixels_tokens_and_labels(records, plan):
    batches = list(loader(records, plan).epoch(2))
    assert [batch.step for batch in batches] == list(range(plan.steps_per_epoch))
    for batch in batches:
        planned = plan.batch(2, batch.step)
        assert sorted(batch.row) == sorted(planned.rows)
        num_images = len(batch.images)
        assert sum(batch.image_counts) == num_images
        kinds = records.modality[batch.row]
        assert (np.diff(kinds) >= 0).all()
        assert batch.image_counts == tuple(int((kinds == m).sum()) for m in range(4))
        for image, row in zip(batch.images, batch.row[:num_images], strict=True):
            expected = simplejpeg.decode_jpeg(records.jpeg(int(row)).tobytes())
            assert np.array_equal(image.numpy(), expected)
        assert batch.images.dtype == torch.uint8
        assert batch.tokens.dtype == torch.int32
        assert np.array_equal(batch.tokens.numpy(), records.tokens(batch.row[num_images:]))
        layout = batch.layout
        single = layout.kind < FUSED
        assert np.array_equal(layout.class_index[single], records.class_index[batch.row])
        assert layout.counts == (len(batch.row) + len(batch.fused),)


def test_with_one_row_of_each_modality_every_person_has_a_fused_query(records, plan):
    for batch in loader(records, plan).epoch(1):
        assert len(batch.fused) == 4
        for members, label in zip(batch.fused.numpy(), batch.layout.class_index[-4:], strict=True):
            used = members[members >= 0]
            assert len(used) >= 2
            assert (records.class_index[batch.row[used]] == label).all()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ranks_together_hold_what_one_process_holds(records, plan, world):
    alone = loader(records, plan).epoch(3)
    ranks = [loader(records, plan, rank, world).epoch(3) for rank in range(world)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(np.concatenate([part.row for part in parts])) == sorted(whole.row)
        for rank, part in enumerate(parts):
            assert part.layout.counts == parts[0].layout.counts
            assert np.array_equal(part.layout.class_index, parts[0].layout.class_index)
            mine = part.layout.class_index[part.layout.local]
            assert np.array_equal(mine[: len(part.row)], records.class_index[part.row])
            assert len(mine) == part.layout.counts[rank]

        def queries(batches):
            rows = [b.row[m[m >= 0]] for b in batches for m in b.fused.numpy()]
            return {tuple(sorted(members.tolist())) for members in rows}

        assert queries(parts) == queries([whole])


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (4, 0), (2, 5)])
def test_threads_and_prefetch_change_nothing(records, plan, threads, prefetch):
    expected = list(loader(records, plan, 1, 2, threads=1, prefetch=1).epoch(1))
    found = list(loader(records, plan, 1, 2, threads=threads, prefetch=prefetch).epoch(1))
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_starting_at_a_step_skips_exactly_the_steps_before_it(records, plan):
    whole = list(loader(records, plan).epoch(2))
    for start in range(plan.steps_per_epoch + 1):
        rest = list(loader(records, plan).epoch(2, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize("start", [-1, 1000])
def test_a_start_outside_the_epoch_is_refused_at_once(records, plan, start):
    with pytest.raises(ValueError, match="start_step"):
        loader(records, plan).epoch(1, start)


def test_closing_an_epoch_early_leaves_no_thread(records, plan):
    batches = loader(records, plan, threads=3, prefetch=4).epoch(1)
    next(batches)
    batches.close()
    assert not any(thread.name.startswith("in-order") for thread in threading.enumerate())


@dataclass(frozen=True)
class FixedPlan:
    """The same batch at every step."""

    fixed: PlanBatch
    steps_per_epoch: int = 2

    def batch(self, epoch: int, step: int) -> PlanBatch:
        return self.fixed


def fixed_plan(rows: list[list[int]], class_index: list[int]) -> FixedPlan:
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    flat = np.array([row for person in rows for row in person], np.int64)
    return FixedPlan(PlanBatch(flat, starts, np.array(class_index, np.int64)))


def first_rows(records: Records, class_index: int) -> list[int]:
    return np.flatnonzero(records.class_index == class_index)[:2].tolist()


def test_a_rank_without_a_person_has_an_empty_batch(records):
    plan = fixed_plan([first_rows(records, 3)], [3])
    batches = [next(loader(records, plan, rank, 2).epoch(1)) for rank in range(2)]
    empty, full = sorted(batches, key=lambda batch: len(batch.row))
    assert empty.images.shape == (0, *SIZE, 3)
    assert empty.tokens.shape == (0, 77)
    assert empty.fused.shape == (0, 4)
    assert empty.layout.counts == full.layout.counts
    assert sum(full.layout.counts) == 2


@pytest.mark.parametrize(("label", "found"), [(9, "9..9"), (-1, "-1..-1")])
def test_a_class_out_of_range_is_named_with_the_range(records, label, found):
    plan = fixed_plan([first_rows(records, 3)], [label])
    with pytest.raises(DataError, match=rf"epoch 4, step 1: class indices {found}.*need 0 to 8"):
        list(loader(records, plan).epoch(4, 1))


def test_a_plan_of_other_records_is_refused_and_the_row_is_named(records):
    rows = first_rows(records, 3)
    plan = fixed_plan([rows], [4])
    source = records.source(rows[0])
    with pytest.raises(DataError, match=rf"row {rows[0]} \({source}\) for class 4, .* say 3"):
        next(loader(records, plan).epoch(1))


def test_a_row_that_cannot_be_decoded_surfaces_at_its_step_with_its_source(records, monkeypatch):
    rows = first_rows(records, 0)
    plan = fixed_plan([rows], [0])
    good, bad = first_rows(records, 0), rows[1]
    read = records.jpeg
    monkeypatch.setattr(records, "jpeg", lambda row: read(row)[:300] if row == bad else read(row))
    source = records.source(bad)
    with pytest.raises(DataError, match=rf"row {bad} of the train split \({source}\)"):
        next(loader(records, plan).epoch(1))
    assert decode_rows(records, good[:1]).shape == (1, *SIZE, 3)


def test_decoding_a_caption_or_an_image_of_another_size_is_refused(records, monkeypatch):
    text = int(np.flatnonzero(records.modality == Modality.TEXT)[0])
    with pytest.raises(DataError, match=r"train_annos\.json.*not an image of 24x12 pixels"):
        decode_rows(records, [text])
    for size in [(12, 12), (48, 12)]:
        other = simplejpeg.encode_jpeg(np.zeros((*size, 3), np.uint8))
        monkeypatch.setattr(records, "jpeg", lambda row, data=other: data)
        with pytest.raises(DataError, match="not an image of 24x12"):
            decode_rows(records, [0])


def test_decode_rows_takes_rows_in_any_order_and_writes_where_it_is_told(records):
    rows = np.flatnonzero(records.modality != Modality.TEXT)[[4, 0, 4]]
    out = np.empty((3, *SIZE, 3), np.uint8)
    found = decode_rows(records, rows, out)
    assert found is out
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], decode_rows(records, rows[1:2])[0])


def test_batches_are_values(records, plan):
    batch = next(loader(records, plan).epoch(1))
    assert same(replace(batch), batch)
