"""Mini-batches: how many, which items, and no more work than is asked for."""

from __future__ import annotations

import gzip
import itertools
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_parallelrun.datasets import FileDataset, FileItem, TabularDataset
from prefect_parallelrun.datasets.sizes import (
    bytes_per_mini_batch,
    files_per_mini_batch,
    parse_size,
)
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun.planning import make_plan, multi_line
from prefect_parallelrun.planning.file_cuts import cut_files
from prefect_parallelrun_runtime.load import LoadError, load


def plan(dataset, size, tmp_path):
    return make_plan(
        [dataset], [dataset.list_files()], mini_batch_size=size, scratch=tmp_path / "scratch"
    )


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (7, 7),
        ("7", 7),
        ("1024KB", 1 << 20),
        ("10MB", 10 << 20),
        ("1 GB", 1 << 30),
        ("3kb", 3072),
    ],
)
def test_sizes(value, size):
    """A size is a number, or one with KB, MB or GB of 1024, in any case, with one space at most (R23)."""
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", [0, -1, "0", "", "10 apples", "1  MB", "1.5MB", "MB", "-1MB", True, 1.5, None, "١"]
)
def test_bad_sizes_are_refused_by_name_and_value(value):
    """What is no size is refused with the parameter, the value and what would be right (R22)."""
    with pytest.raises(ConfigError) as caught:
        parse_size(value)

    assert f"mini_batch_size={value!r} cannot be used: give a number" in str(caught.value)


def test_defaults_and_units_by_kind():
    """Files: 10, and no unit; tables: 1 MB (R22, R23)."""
    assert files_per_mini_batch(None) == 10
    assert bytes_per_mini_batch(None) == 1 << 20
    with pytest.raises(ConfigError, match="number of files"):
        files_per_mini_batch("10MB")


@given(st.integers(0, 60), st.integers(1, 70))
def test_every_file_is_in_one_mini_batch(count, size):
    """Each file is in exactly one mini-batch, in order; each but the last has exactly that many (R21)."""
    files = [FileItem(f"/f{place:03}", place, 0) for place in range(count)]

    cut = cut_files(files, size)
    pieces = list(cut.pieces())

    assert [path for piece in pieces for path in piece.work["files"]] == [f.path for f in files]
    assert all(piece.items == len(piece.work["files"]) == size for piece in pieces[:-1])
    assert all(0 < piece.items <= size for piece in pieces)
    assert cut.count == len(pieces)
    assert sum(piece.size for piece in pieces) == cut.size


def test_inputs_are_cut_separately(tmp_path):
    """A mini-batch never holds files of two inputs; it knows which one it is of (R47)."""
    datasets = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for place in range(3):
            (tmp_path / name / f"{place}.txt").write_text("x")
        datasets.append(FileDataset.from_files(tmp_path / name))

    made = make_plan(
        datasets, [d.list_files() for d in datasets], mini_batch_size=2, scratch=tmp_path
    )

    batches = list(made)
    assert [(b.index, b.input_index, b.items) for b in batches] == [
        (0, 0, 2),
        (1, 0, 1),
        (2, 1, 2),
        (3, 1, 1),
    ]
    assert (len(made), made.items, made.kind, made.size) == (4, 6, "file", 6)
    assert list(made) == batches
    json.dumps([b.work for b in batches] + made.readers)


def test_two_kinds_and_no_input_are_refused(tmp_path):
    """Inputs are all of one kind, and there is one, unless mini-batches of nothing are asked for (R105)."""
    with pytest.raises(ConfigError, match="inputs="):
        make_plan([], [], mini_batch_size=None, scratch=tmp_path)
    frame = TabularDataset.from_pandas_dataframe(pd.DataFrame({"a": [1]}))
    with pytest.raises(ConfigError, match="inputs="):
        make_plan(
            [frame, FileDataset.from_files("x")], [[], []], mini_batch_size=None, scratch=tmp_path
        )

    made = make_plan([], [], mini_batch_size=None, scratch=tmp_path, rank_mini_batch_count=3)
    assert [(b.input_index, b.items, b.work) for b in made] == [
        (-1, 1, {"rank": rank}) for rank in range(3)
    ]
    assert (len(made), made.items, made.readers) == (3, 3, [{}])


def test_a_table_is_cut_by_bytes_and_never_across_files(tmp_path):
    """A text table is cut at each so many bytes, each file on its own (R23, R24)."""
    (tmp_path / "a.csv").write_bytes(b"x\n" + b"1\n" * 12)
    (tmp_path / "b.csv").write_bytes(b"x\n1\n")

    made = plan(TabularDataset.from_delimited_files(tmp_path), 10, tmp_path)

    assert [(b.work["path"][-5:], b.work["start"], b.work["end"]) for b in made] == [
        ("a.csv", 0, 10),
        ("a.csv", 10, 20),
        ("a.csv", 20, 26),
        ("b.csv", 0, 4),
    ]
    assert (len(made), made.items, made.kind, made.size) == (4, None, "tabular", 30)


def test_ten_million_mini_batches_cost_nothing_until_taken(tmp_path):
    """A plan is made lazily: of a 10 GB file only a sample is read, and only what is taken is made."""
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.write(b"a,b\n" + b"1,2\n" * 1000)
        file.truncate(10 << 30)

    made = plan(TabularDataset.from_delimited_files(path), "1KB", tmp_path)

    assert len(made) == 10 << 20
    assert [b.work["start"] for b in itertools.islice(made, 3)] == [0, 1024, 2048]


def test_multi_line_ranges_begin_at_rows(tmp_path):
    """With values that hold newlines, ranges are whole rows, found in one pass as far as is asked (R24)."""
    rows = [f'{place},"first\nsecond ""{place}"", 5"\n' for place in range(50)]
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "".join(rows))

    made = plan(TabularDataset.from_delimited_files(path, support_multi_line=True), 100, tmp_path)

    text = path.read_bytes()
    batches = list(made)
    assert len(made) == len(batches) > 10
    assert batches[0].work["start"] == len("id,text\n")
    pieces = [text[b.work["start"] : b.work["end"]].decode() for b in batches]
    assert "".join(pieces) == "".join(rows)
    starts = {row.split("\n")[0] for row in rows}
    assert all(piece.split("\n")[0] in starts for piece in pieces)


@pytest.mark.parametrize("name", ["a.csv.gz", "utf16.csv"])
def test_what_cannot_be_cut_is_one_mini_batch_with_a_note(tmp_path, name):
    """A compressed file, or one in UTF-16, is one mini-batch, and a note says so."""
    path = tmp_path / name
    text = "a,b\n" + "1,2\n" * 100
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode("utf-16"))
    encoding = "utf8" if name.endswith("gz") else "utf-16"

    made = plan(TabularDataset.from_delimited_files(path, encoding=encoding), 50, tmp_path)

    assert [b.work for b in made] == [{"path": str(path)}]
    assert len(made) == 1
    assert str(path) in made.notes[0]


def test_parquet_is_cut_between_row_groups(tmp_path):
    """Consecutive row groups share a mini-batch up to its size; a single row group is never cut (R25)."""
    many, single = tmp_path / "many.parquet", tmp_path / "single.parquet"
    table = pa.table({"a": list(range(8000))})
    pq.write_table(table, many, row_group_size=1000, compression="none", use_dictionary=False)
    pq.write_table(table, single, compression="none", use_dictionary=False)

    made = plan(TabularDataset.from_parquet_files([many, single]), "20KB", tmp_path)

    assert [b.work for b in made] == [
        {"path": str(many), "row_groups": [0, 1]},
        {"path": str(many), "row_groups": [2, 3]},
        {"path": str(many), "row_groups": [4, 5]},
        {"path": str(many), "row_groups": [6, 7]},
        {"path": str(single), "row_groups": [0]},
    ]
    assert len(made) == 5
    assert str(single) in made.notes[0]
    assert all(16_000 <= b.size <= 20_480 for b in list(made)[:4])


def test_a_data_frame_is_written_once_in_mini_batches(tmp_path):
    """A DataFrame becomes row groups of about the size in memory, one to a mini-batch (R23)."""
    dataset = TabularDataset.from_pandas_dataframe(pd.DataFrame({"a": range(10_000)}))

    made = plan(dataset.as_named_input("numbers"), "8KB", tmp_path)

    assert 9 <= len(made) <= 11
    assert [b.work["row_groups"] for b in made] == [[place] for place in range(len(made))]
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["0-numbers.parquet"]


def test_first_rows_are_one_mini_batch_per_file(tmp_path):
    """`take(n)` plans the first n rows and looks no further."""
    for name in ("a.csv", "b.csv", "c.csv"):
        (tmp_path / name).write_text("x\n1\n2\n3\n")
    dataset = TabularDataset.from_delimited_files(tmp_path)

    assert [b.work for b in plan(dataset.take(2), 1, tmp_path)] == [
        {"path": str(tmp_path / "a.csv"), "rows": 2}
    ]
    assert [b.work["rows"] for b in plan(dataset.take(9).take(5), 1, tmp_path)] == [3, 2]
    assert [b.work["rows"] for b in plan(dataset.take(99), 1, tmp_path)] == [3, 3, 3]


def test_tables_without_rows(tmp_path):
    """An empty file gives no mini-batch, a lone header an empty one; neither is an error."""
    (tmp_path / "empty.csv").write_text("")
    assert (
        list(plan(TabularDataset.from_delimited_files(tmp_path / "empty.csv"), 10, tmp_path)) == []
    )
    (tmp_path / "header.csv").write_text("a,b\n")
    assert (
        len(plan(TabularDataset.from_delimited_files(tmp_path / "header.csv"), 10, tmp_path)) == 1
    )
    frame = TabularDataset.from_pandas_dataframe(pd.DataFrame({"a": []}))
    assert list(plan(frame, 10, tmp_path)) == []


def test_files_with_other_columns_are_refused_by_name(tmp_path):
    """Files of one table have the same columns, in any order; one that has not is named (R111)."""
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n2,1\n")
    plan(TabularDataset.from_delimited_files(tmp_path), 10, tmp_path)
    (tmp_path / "c.csv").write_text("x,z\n2,1\n")

    with pytest.raises(DatasetError, match=r"c\.csv.*lacks \['y'\] and adds \['z'\]"):
        plan(TabularDataset.from_delimited_files(tmp_path), 10, tmp_path)

    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"y": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet"):
        plan(TabularDataset.from_parquet_files(str(tmp_path / "*.parquet")), 10, tmp_path)
    (tmp_path / "b.parquet").write_text("no Parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet"):
        plan(TabularDataset.from_parquet_files(str(tmp_path / "*.parquet")), 10, tmp_path)


def test_a_file_that_vanishes_while_it_is_cut_costs_its_own_mini_batch(tmp_path):
    """Values with newlines: the scan of a file that is gone gives a mini-batch that says so; the others are cut."""
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text("x\n" + "1\n" * 20)
    dataset = TabularDataset.from_delimited_files(tmp_path, support_multi_line=True)
    made = plan(dataset, 10, tmp_path)
    before = [b.work for b in made if not b.work["path"].endswith("b.csv")]

    (tmp_path / "b.csv").unlink()

    works = [b.work for b in made]
    (lost,) = [work for work in works if work["path"].endswith("b.csv")]
    assert [work for work in works if work is not lost] == before
    with pytest.raises(LoadError, match=r"b\.csv vanished"):
        load(lost, made.readers[0])


def test_a_scan_that_stops_in_the_middle_plans_the_rest_as_one(tmp_path, monkeypatch):
    """What was planned before the error is not planned again: no row twice (R24)."""
    path = tmp_path / "a.csv"
    path.write_text("x\n" + "1\n" * 50)
    whole = multi_line.ranges

    def failing(*arguments):
        yield from itertools.islice(whole(*arguments), 2)
        raise OSError("read error")

    monkeypatch.setattr(multi_line, "ranges", failing)
    made = plan(TabularDataset.from_delimited_files(path, support_multi_line=True), 20, tmp_path)

    assert sum(load(b.work, made.readers[0]).items for b in made) == 50


def test_a_parquet_file_that_vanishes_before_it_is_cut_costs_its_own_mini_batch(
    tmp_path, monkeypatch
):
    """The same for Parquet files whose footers are read while mini-batches are made."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.MAX_FILES", 2)
    for name in "abc":
        pq.write_table(pa.table({"x": range(100)}), tmp_path / f"{name}.parquet", row_group_size=50)
    made = plan(TabularDataset.from_parquet_files(tmp_path), 1, tmp_path)
    assert len(list(made)) == 6

    (tmp_path / "b.parquet").unlink()

    works = [b.work for b in made]
    assert len(works) == 5
    (lost,) = [work for work in works if work["path"].endswith("b.parquet")]
    with pytest.raises(LoadError, match=r"b\.parquet vanished"):
        load(lost, made.readers[0])


def test_the_number_of_mini_batches_is_known_without_reading(tmp_path, monkeypatch):
    """Arithmetic and footers that were read anyway give the number; where only a scan would, it is not known."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.MAX_FILES", 2)
    csv, folder = tmp_path / "a.csv", tmp_path / "parquet"
    csv.write_text("x\n" + "1\n" * 20)
    folder.mkdir()
    for name in "ab":
        pq.write_table(pa.table({"x": range(100)}), folder / f"{name}.parquet", row_group_size=50)
    some = TabularDataset.from_parquet_files(folder)
    plans = [
        plan(FileDataset.from_files(csv), 1, tmp_path),
        plan(TabularDataset.from_delimited_files(csv), 10, tmp_path),
        plan(TabularDataset.from_delimited_files(csv).take(2), 10, tmp_path),
        plan(some, 1, tmp_path),
        plan(TabularDataset.from_pandas_dataframe(pd.DataFrame({"x": [1]})), 10, tmp_path),
        make_plan([], [], mini_batch_size=None, scratch=tmp_path, rank_mini_batch_count=3),
    ]
    assert [made.known_count for made in plans] == [len(list(made)) for made in plans]

    scanned = plan(TabularDataset.from_delimited_files(csv, support_multi_line=True), 10, tmp_path)
    pq.write_table(pa.table({"x": range(100)}), folder / "c.parquet", row_group_size=50)
    unread = [plan(some, 1, tmp_path), scanned]
    csv.unlink()
    (folder / "b.parquet").unlink()
    assert [made.known_count for made in unread] == [None, None]
    assert plan(some, "1MB", tmp_path).known_count == 2
