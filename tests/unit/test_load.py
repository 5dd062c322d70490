"""What is given to `run()`, and what is said when it cannot be had."""

from __future__ import annotations

import gzip
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun.paths import RUNTIME_FOLDER
from prefect_parallelrun.planning import make_plan
from prefect_parallelrun_runtime.load import FileList, LoadError, load, needs_reading


def planned(dataset, size, tmp_path):
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size=size, scratch=tmp_path)
    return plan.readers[0], [batch.work for batch in plan]


def failure(dataset, size, tmp_path):
    """Return the messages of the mini-batches that cannot be loaded."""
    reader, works = planned(dataset, size, tmp_path)
    messages = []
    for work in works:
        try:
            load(work, reader)
        except LoadError as error:
            messages.append(str(error))
    return messages


def test_files_are_a_list_of_paths(tmp_path):
    """Files come as a list of path text that can carry a task_id; no thread is needed for it (R7, R101)."""
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        open(path, "w").close()

    loaded = load({"files": paths}, {})
    loaded.data.task_id = "x"

    assert isinstance(loaded.data, list)
    assert loaded.data == paths
    assert loaded.items == 2
    assert loaded.dataset.to_path() == paths
    assert not needs_reading({"files": paths})
    assert needs_reading({"path": "a"})


def test_a_vanished_file_is_named(tmp_path):
    """A file that was there when the step was planned and is gone fails its mini-batch, by name."""
    path = str(tmp_path / "gone.png")

    for work in ({"files": [__file__, path]}, {"path": path, "start": 0, "end": 5}):
        with pytest.raises(LoadError, match=r"gone\.png vanished"):
            load(work, {"format": "delimited"})


def test_a_mini_batch_without_input_is_one_item():
    """A rank mini-batch has nothing to read and counts as one item, so that run() is called (R105)."""
    loaded = load({"rank": 3}, {})

    assert (loaded.data, loaded.items, loaded.dataset) == (FileList(), 1, None)


def test_a_range_without_a_row_is_empty(tmp_path):
    """A range in which no row begins has 0 items; the row belongs to the range of its first byte (R24)."""
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1," + "x" * 50 + "\n2,y\n")
    reader, works = planned(TabularDataset.from_delimited_files(path), 10, tmp_path)

    loaded = [load(work, reader) for work in works]

    assert [each.items for each in loaded] == [1, 0, 0, 0, 0, 1, 0]
    assert loaded[1].data.columns.tolist() == ["a", "b"]
    assert loaded[0].dataset.to_pandas_dataframe()["b"].tolist() == ["x" * 50]


def late(tmp_path, monkeypatch, value, header="a,b\n", good="1,2\n"):
    """A CSV whose row 20,001 the sample does not show."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.SAMPLE_BYTES", 12 << 10)
    path = tmp_path / "late.csv"
    path.write_text(header + good * 20_000 + value + "\n" + good * 40_000)
    return path


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1.5,2", "column 'a' is int64, and '1.5' does not fit; if it should, create the dataset with column_types={'a': 'float64'}"),
        ("1,x y", "column 'b' is int64, and 'x y' does not fit; if it should, create the dataset with column_types={'b': 'string'}"),
        (",2", "column 'a' is int64, and no value does not fit; if it should, create the dataset with column_types={'a': 'float64'}"),
        ("1,2,3", "it has 3 values, and the dataset has 2 columns"),
        ("0x1F,2", "column 'a' is int64, and '0x1F' does not fit; if it should, create the dataset with column_types={'a': 'string'}"),
        ("99999999999999999999,2", "column 'a' is int64, and '99999999999999999999' does not fit; if it should, create the dataset with column_types={'a': 'string'}"),
        ("1", "it has 1 value, and the dataset has 2 columns"),
        ('1,"2', "a quoted value goes on over the end of its line; create the dataset with support_multi_line=True"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_found(tmp_path, monkeypatch, value, said):
    """The error names file, row of data and column, and what to do; only its mini-batch fails (R111)."""
    path = late(tmp_path, monkeypatch, value)

    messages = failure(TabularDataset.from_delimited_files(path), "10KB", tmp_path)

    assert messages == [f"{path}, row 20,001: {said}"]


def test_a_value_that_does_not_fit_is_found_among_lines_of_text(tmp_path, monkeypatch):
    """Rows are counted, not lines, where values hold newlines (R111)."""
    path = late(tmp_path, monkeypatch, 'x,"c"', good='1,"a\nb"\n')

    messages = failure(
        TabularDataset.from_delimited_files(path, support_multi_line=True), "10KB", tmp_path
    )

    assert len(messages) == 1
    assert messages[0].startswith(f"{path}, row 20,001: column 'a' is int64, and 'x'")


def test_a_quote_that_is_never_closed_fails(tmp_path):
    """An open quote would swallow the rest of the file without a word; it is an error."""
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,x\n2,"y\n3,z\n')

    messages = failure(
        TabularDataset.from_delimited_files(path, support_multi_line=True), 100, tmp_path
    )

    assert messages == [f"{path}, row 2: a quoted value is not closed"]


def test_a_wrong_encoding_is_named(tmp_path):
    """Text that is not in the encoding it was said to be fails, and says what to set."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,Z\xfcrich\n")

    (message,) = failure(TabularDataset.from_delimited_files(path), 100, tmp_path)
    assert "row 1" in message
    assert "encoding=" in message
    (message,) = failure(TabularDataset.from_delimited_files(path, encoding="ascii"), 100, tmp_path)
    assert "encoding=" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"a": 1.5, "b": "x"}', "column 'a' is int64, and 1.5 does not fit"),
        ('{"a": null, "b": "x"}', "column 'a' is int64, and no value does not fit"),
        ('{"a": 1, "b": "x", "c": 1}', "'c' is no column of the dataset"),
        ('{"a": 1, "b": ', "it is not JSON"),
        ("[1]", "it is not a JSON object but list"),
    ],
)
def test_a_json_line_that_does_not_fit_is_found(tmp_path, monkeypatch, line, said):
    """The same for JSON lines: file, row, column, and what to do (R111)."""
    path = late(tmp_path, monkeypatch, line, header="", good='{"a": 1, "b": "x"}\n')

    (message,) = failure(TabularDataset.from_json_lines_files(path), "10KB", tmp_path)

    assert message.startswith(f"{path}, row 20,001: {said}")


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("multi_line", [True, False])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "large.csv"])
def test_line_ends_of_cr_alone_are_refused(tmp_path, header, multi_line, name):
    """A file whose lines end in CR alone would be all header: it is refused, by name, before any work."""
    path = tmp_path / name
    text = b"a,b\r" + b"1,2\r" * (200_000 if name == "large.csv" else 3)
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    dataset = TabularDataset.from_delimited_files(
        path, header=header, support_multi_line=multi_line
    )

    with pytest.raises(DatasetError, match=rf"{name}: its lines end in CR alone; convert"):
        planned(dataset, 100, tmp_path)


def test_other_returns_are_no_line_ends_of_their_own(tmp_path):
    """CR before LF, after the last row, or inside quotes is fine; in a file looked at late the mini-batch fails."""
    path = tmp_path / "a.csv"
    for text in (
        b"a,b\r\n1,2\r\n",
        b"a,b\n1,2\r",
        b'\xef\xbb\xbf\r\n"x\ry",b\r\n1,2\r\n',
        b"a,b\r",
    ):
        path.write_bytes(text)
        dataset = TabularDataset.from_delimited_files(path, support_multi_line=True)
        rows = len(text.split(b"\n1,")) - 1
        assert len(dataset.to_pandas_dataframe()) == rows
        assert failure(dataset, 100, tmp_path) == []

    path.write_bytes(b"a,b\n1,2\n")
    reader, works = planned(TabularDataset.from_delimited_files(path), 100, tmp_path)
    path.write_bytes(b"a,b\r1,2\r")
    with pytest.raises(LoadError, match=r"a\.csv: its lines end in CR alone"):
        load(works[0], reader)


def test_a_header_in_another_encoding_is_named(tmp_path):
    """A header that is not in the encoding it was said to be is an error of the dataset."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"Z\xfcrich\n1\n")

    with pytest.raises(DatasetError, match=r"a\.csv: .*encoding="):
        planned(TabularDataset.from_delimited_files(path), 100, tmp_path)


def test_a_parquet_integer_that_a_float_cannot_hold_is_found(tmp_path):
    """Beside a gap an id of 17 digits would be rounded: it fails its mini-batch, by file, row and column (R111)."""
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [1, 2, None, 4, 5, 2**53 + 1, 7]})
    pq.write_table(table, path, row_group_size=2)

    (message,) = failure(TabularDataset.from_parquet_files(path), 1, tmp_path)

    assert message.startswith(f"{path}, row 6: column 'id' is double")
    assert "9007199254740993 would be rounded" in message


def test_a_parquet_gap_that_nobody_saw_is_found(tmp_path, monkeypatch):
    """In a file that was not looked at, a gap in a column of integers fails its mini-batch (R111)."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.MAX_FILES", 2)
    for name, values in (("a", [1, 2]), ("b", [1, 2, None]), ("c", [3])):
        pq.write_table(pa.table({"id": values}), tmp_path / f"{name}.parquet", row_group_size=2)

    (message,) = failure(TabularDataset.from_parquet_files(tmp_path), 1, tmp_path)

    assert message.startswith(f"{tmp_path}/b.parquet, row 3: column 'id' is int64")


def test_damaged_and_shortened_files_are_named(tmp_path):
    """A damaged or shortened file fails its mini-batch with its name, not with rows that are missing."""
    damaged = tmp_path / "a.csv.gz"
    damaged.write_bytes(gzip.compress(b"a\n" + b"1\n" * 10_000))
    reader, works = planned(TabularDataset.from_delimited_files(damaged), 100, tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(LoadError, match=r"a\.csv\.gz cannot be decompressed"):
        load(works[0], reader)

    shortened = tmp_path / "b.csv"
    shortened.write_text("a\n" + "1\n" * 100)
    reader, works = planned(TabularDataset.from_delimited_files(shortened), 1000, tmp_path)
    shortened.write_text("a\n1\n")
    with pytest.raises(LoadError, match=r"b\.csv is shorter than when the step was planned"):
        load(works[0], reader)

    parquet = tmp_path / "c.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(parquet)
    reader, works = planned(TabularDataset.from_parquet_files(parquet), 1000, tmp_path)
    parquet.write_text("damaged")
    with pytest.raises(LoadError, match=r"c\.parquet cannot be read"):
        load(works[0], reader)


def test_reading_the_whole_table_fails_in_the_terms_of_datasets(tmp_path):
    """On the user's machine the same errors are DatasetErrors, and bad settings ConfigErrors."""
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    for settings in (
        {"separator": ",,"},
        {"separator": '"'},
        {"header": 0},
        {"encoding": "klingon"},
        {"column_types": {"a": "int3"}},
        {"column_types": ["a"]},
        {"partition_format": "x"},
    ):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            TabularDataset.from_delimited_files(path, **settings)
    with pytest.raises(DatasetError, match="column_types names"):
        TabularDataset.from_delimited_files(path, column_types={"b": int}).to_pandas_dataframe()
    path.write_text("a\nx\n")
    with pytest.raises(DatasetError, match="row 1"):
        TabularDataset.from_delimited_files(path, column_types={"a": int}).to_pandas_dataframe()
    with pytest.raises(ConfigError, match="n="):
        TabularDataset.from_delimited_files(path).take(0)
    with pytest.raises(ConfigError, match="dataframe="):
        TabularDataset.from_pandas_dataframe([1])


def test_fingerprints_of_tables(tmp_path):
    """How a table is read, and what a DataFrame holds, decide about reuse; its name does not."""
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")

    def prints(dataset):
        return list(dataset.fingerprint_parts(dataset.list_files()))

    plain = TabularDataset.from_delimited_files(path)
    assert prints(plain) == prints(plain.as_named_input("x"))
    assert prints(plain) != prints(TabularDataset.from_delimited_files(path, separator=";"))
    assert prints(plain) != prints(plain.take(1))
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    first = prints(TabularDataset.from_pandas_dataframe(frame))
    assert first == prints(TabularDataset.from_pandas_dataframe(frame.copy()))
    frame.loc[1, "b"] = "y"
    assert first != prints(TabularDataset.from_pandas_dataframe(frame))


def test_without_pandas_the_error_says_what_to_install(tmp_path):
    """In an interpreter without pandas or Arrow a table fails with what to install; files work."""
    (tmp_path / "a.csv").write_text("a\n1\n")
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['pandas'] = sys.modules['pyarrow'] = None\n"
        f"sys.path.insert(0, {str(RUNTIME_FOLDER)!r})\n"
        "from prefect_parallelrun_runtime.load import load, LoadError\n"
        "reader = dict(format='delimited', columns=[['a', 'int64']], separator=',', header=True, encoding='utf8', multi_line=False)\n"
        f"path = {str(tmp_path / 'a.csv')!r}\n"
        "print(load(dict(files=[path]), {}).items)\n"
        "try: load(dict(path=path, start=0, end=4), reader)\n"
        "except LoadError as error: print(error)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("1\na table needs pandas and pyarrow")
    assert sys.executable in done.stdout
