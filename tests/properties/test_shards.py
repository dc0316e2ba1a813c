import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data.shards import (
    SCHEMA,
    QuerySet,
    Record,
    Shard,
    read_queries,
    write_queries,
    write_shard,
)
from service.modality import Modality

int32 = st.integers(-(2**31), 2**31 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
records = st.builds(
    Record,
    modality=st.sampled_from(Modality),
    class_index=int32,
    label=int32,
    dir_id=text,
    payload=st.binary(max_size=200),
    caption=text,
    tokens=st.lists(int32, max_size=12).map(lambda tokens: np.array(tokens, np.int32)),
    source=text,
    camera=st.integers(-1, 9999),
    view=st.sampled_from(["", "front", "back", "side"]),
    sha256=st.binary(min_size=32, max_size=32),
)


@settings(deadline=None)  # the first file of a process loads Arrow
@given(st.lists(records, min_size=1, max_size=12))
def test_a_shard_gives_back_what_was_written(written: list[Record]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.arrow"
        file = write_shard(path, written)
        shard = Shard(path)
        assert (file.file, file.rows, file.bytes) == (path.name, len(written), path.stat().st_size)
        assert shard.num_rows == len(written)
        for row, record in enumerate(written):
            assert shard.payload(row).tobytes() == record.payload
            assert shard.tokens(row).tolist() == record.tokens.tolist()
            for name in set(SCHEMA.names) - {"payload", "tokens"}:
                assert shard.value(name, row) == getattr(record, name)
        for name in ("modality", "class_index", "label", "camera"):
            assert shard.numbers(name).tolist() == [getattr(record, name) for record in written]


@st.composite
def query_sets(draw: st.DrawFn) -> QuerySet:
    members = draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 2**40), min_size=members, max_size=members)
    rows = draw(st.lists(row, max_size=8))
    return QuerySet(
        "+".join(["TEXT"] * members),
        np.arange(len(rows), dtype=np.int32),
        np.array(rows, np.int64).reshape(len(rows), members),
    )


@settings(deadline=None)
@given(st.lists(query_sets(), max_size=5))
def test_query_files_give_back_what_was_written(written: list[QuerySet]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "queries.arrow"
        write_queries(path, written)
        read = read_queries(path)
    assert [query.key for query in read] == [query.key for query in written]
    for a, b in zip(read, written, strict=True):
        assert np.array_equal(a.label, b.label)
        assert np.array_equal(a.members, b.members)
        assert a.members.shape == b.members.shape
