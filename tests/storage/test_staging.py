"""Inputs that the nodes fetch ahead of `run()`: whole runs against real servers (R231)."""

from __future__ import annotations

import gzip
import io
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.errors import EntryScriptError
from prefect_parallelrun.node import pieces
from prefect_parallelrun.node.pieces import Pieces
from prefect_parallelrun.node.transfer import Source, Transfers

NAMES_AND_TEXT = """
    def run(mini_batch):
        return [f"{path.rpartition('/fetched/')[2].split('/', 3)[3]}={open(path).read()}" for path in mini_batch]
"""
ROWS = """
    def run(table):
        return [",".join(map(str, row)) for row in table.itertuples(index=False)]
"""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """After each test, no file of a node is left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [path.name for path in folder.glob("parallelrun-*")] == []


def rows_of(result):
    return Path(result.append_row_file).read_text().splitlines()


def until(condition, limit_s=20.0):
    """Wait for a condition."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "that never came"
        time.sleep(0.02)


@pytest.fixture(params=["s3", "azure", "http_server"])
def place(request):
    """A folder in each kind of storage."""
    return request.getfixturevalue(request.param)


def opened(place):
    return {"storage_options": place.storage_options}


def test_files(place, run):
    """`run()` gets local files with the base names, and the folders, that they have there (R231)."""
    for n in range(7):
        place.put(f"in/{n % 2}/{n}.txt", f"text {n}")
    dataset = FileDataset.from_files(f"{place.url}/in/", **opened(place))
    result = run(NAMES_AND_TEXT, [dataset], mini_batch_size=2)
    assert sorted(rows_of(result)) == sorted(f"{n % 2}/{n}.txt=text {n}" for n in range(7))


def table_text(rows=3000):
    return "number,word\n" + "".join(f"{n},word {n}\n" for n in range(rows))


def expected(rows=3000):
    return [f"{n},word {n}" for n in range(rows)]


def test_byte_ranges_of_csv(place, run):
    """Byte ranges of a remote CSV give each row once, in order (R23, R231)."""
    place.put("t.csv", table_text())
    table = TabularDataset.from_delimited_files(f"{place.url}/t.csv", **opened(place))
    result = run(ROWS, [table], mini_batch_size="4KB")
    assert result.mini_batches.total > 5
    assert rows_of(result) == expected()


def test_row_groups_of_parquet(place, run):
    """Row groups of a remote Parquet file give each row once, in order (R24, R231)."""
    buffer = io.BytesIO()
    frame = pd.DataFrame({"number": range(3000), "word": [f"word {n}" for n in range(3000)]})
    frame.to_parquet(buffer, row_group_size=500)
    place.put("t.parquet", buffer.getvalue())
    table = TabularDataset.from_parquet_files(f"{place.url}/t.parquet", **opened(place))
    result = run(ROWS, [table], mini_batch_size="4KB")
    assert result.mini_batches.total == 6
    assert rows_of(result) == expected()


def test_compressed_json_lines_and_several_files(s3, run):
    """A compressed file is fetched whole, and so are JSON lines in ranges (R231)."""
    lines = "".join(f'{{"number": {n}, "word": "word {n}"}}\n' for n in range(1000))
    s3.put("t/a.jsonl.gz", gzip.compress(lines.encode()))
    s3.put("t/b.jsonl", lines)
    table = TabularDataset.from_json_lines_files(f"{s3.url}/t", **opened(s3))
    result = run(ROWS, [table], mini_batch_size="4KB")
    assert rows_of(result) == expected(1000) * 2


def test_first_rows(s3, run):
    """Of the first rows of a table no more than the head of its file is needed (R231)."""
    s3.put("t.csv", table_text())
    table = TabularDataset.from_delimited_files(f"{s3.url}/t.csv", **opened(s3)).take(5)
    assert rows_of(run(ROWS, [table])) == expected(5)


def test_values_over_line_ends(s3, run):
    """Ranges of a table whose values hold line ends are fetched exactly as they are cut (R23)."""
    text = "number,word\n" + "".join(f'{n},"word\n{n}"\n' for n in range(2000))
    s3.put("t.csv", text)
    table = TabularDataset.from_delimited_files(
        f"{s3.url}/t.csv", support_multi_line=True, **opened(s3)
    )
    script = "def run(table):\n    return [f'{n} {w.split()[1]}' for n, w in zip(table.number, table.word)]"
    result = run(script, [table], mini_batch_size="4KB")
    assert result.mini_batches.total > 5
    assert rows_of(result) == [f"{n} {n}" for n in range(2000)]


def fetched(dataset, work, reader, folder):
    """Fetch a piece of the dataset's only file, and return what is in place of it."""
    [item] = dataset.list_files()
    source = Source(dataset.storage, "", Transfers(limit_s=20))
    target = folder / "piece"
    Pieces().fetch(source, item, work, reader, target, time.monotonic() + 20)
    return target


def test_a_range_moves_little_more_than_itself(http_server, tmp_path):
    """Of a large table no more is fetched than its range, the head, and the rest of a row (R231)."""
    text = "word\n" + f"{'x' * 98}\n" * 500_000
    dataset = TabularDataset.from_delimited_files(http_server.put("t.csv", text))
    reader = {"format": "delimited", "separator": ",", "encoding": "utf-8", "header": True}
    start, end = 20 << 20, 21 << 20
    piece = fetched(dataset, {"start": start, "end": end}, reader, tmp_path)
    assert 1 << 20 <= http_server.sent["t.csv"] < (1 << 20) + (1 << 18)
    with piece.open() as file:
        assert file.readline() == "word\n"
        file.seek(start)
        row = f"{'x' * 98}\n"
        assert set(file.read(end - start).split("\n")[1:-1]) == {row.strip()}
    assert piece.stat().st_size == len(text)
    assert piece.stat().st_blocks * 512 < 2 << 20


def test_row_groups_move_little_more_than_themselves(http_server, tmp_path):
    """Of a Parquet file no more is fetched than the footer and the wanted row groups (R231)."""
    buffer = io.BytesIO()
    frame = pd.DataFrame({"number": range(1_000_000)})
    frame.to_parquet(buffer, row_group_size=50_000, compression=None)
    dataset = TabularDataset.from_parquet_files(http_server.put("t.parquet", buffer.getvalue()))
    piece = fetched(dataset, {"row_groups": [7, 8]}, {"format": "parquet"}, tmp_path)
    assert http_server.sent["t.parquet"] < len(buffer.getvalue()) / 10 + (1 << 17)
    with pq.ParquetFile(piece) as file:
        assert file.read_row_groups([7, 8])["number"].to_pylist() == list(range(350_000, 450_000))


def test_files_of_the_next_mini_batch_are_fetched_during_run(http_server, run, tmp_path):
    """While `run()` is at a mini-batch, the files of the next are fetched (R231)."""
    for n in range(3):
        http_server.put(f"in/{n}.txt", str(n))
    go, began = tmp_path / "go", tmp_path / "began"
    script = f"""
        import pathlib, time
        def run(mini_batch):
            pathlib.Path({str(began)!r}).touch()
            while not pathlib.Path({str(go)!r}).exists():
                time.sleep(0.01)
            return mini_batch
    """
    dataset = FileDataset.from_files(f"{http_server.url}/in/")
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            run(script, [dataset], mini_batch_size=1, process_count_per_node=1)
        )
    )
    thread.start()
    try:
        until(began.exists)
        until(lambda: http_server.sent["in/1.txt"])
    finally:
        go.touch()
        thread.join()
    assert results[0].mini_batches.succeeded == 3


def test_what_passes_is_survived(http_server, run):
    """Answers of 503 and 429, and connections that break off, cost time and nothing else (R231)."""
    for n in range(4):
        http_server.put(f"in/{n}.txt", f"text {n}" * 1000)
    dataset = FileDataset.from_files(f"{http_server.url}/in/")
    dataset.list_files()
    http_server.trouble("in/0.txt", 503, times=3)
    http_server.trouble("in/1.txt", "drop", times=2)
    http_server.trouble("in/2.txt", 429, times=2)
    result = run(NAMES_AND_TEXT, [dataset], mini_batch_size=1, run_max_try=1)
    assert sorted(rows_of(result)) == [f"{n}.txt=" + f"text {n}" * 1000 for n in range(4)]


def test_a_missing_file_fails_its_mini_batch_alone(place, run, tmp_path):
    """A file that is gone is a failed attempt that names the URL; the others succeed (R231)."""
    for n in range(4):
        place.put(f"in/{n}.txt", f"text {n}")
    dataset = Listed.of(FileDataset.from_files(f"{place.url}/in/", **opened(place)))
    if hasattr(place, "files"):
        del place.files["in/2.txt"]
    else:
        place.delete("in/2.txt")
    result = run(NAMES_AND_TEXT, [dataset], mini_batch_size=1, run_max_try=2, error_threshold=-1)
    assert (result.items.succeeded, result.items.failed) == (3, 1)
    failed = Path(result.run_directory, "failed_items.jsonl").read_text()
    assert "in/2.txt is not there" in failed


def test_a_changed_file_is_not_read(place, run):
    """A file that was changed since the step was planned is not taken for the one that was listed (R231)."""
    place.put("in/a.txt", "before")
    dataset = Listed.of(FileDataset.from_files(f"{place.url}/in/", **opened(place)))
    place.put("in/a.txt", "after!")
    with pytest.raises(Exception, match=r"in/a\.txt was changed since the step was planned"):
        run(NAMES_AND_TEXT, [dataset], run_max_try=1)


@pytest.mark.parametrize("new", ["", "x", "longer than before"])
def test_a_file_of_another_length_is_not_read(place, run, new):
    """A file that is shorter, empty or longer than when the step was planned fails its mini-batch (R231)."""
    place.put("in/a.txt", "before")
    dataset = Listed.of(FileDataset.from_files(f"{place.url}/in/", **opened(place)))
    place.put("in/a.txt", new)
    with pytest.raises(EntryScriptError, match=r"in/a\.txt was changed since"):
        run(NAMES_AND_TEXT, [dataset], run_max_try=1)


def large(form, mark):
    """Return a megabyte; as long, whatever the mark."""
    if form != "parquet":
        return "word\n" + f"{mark * 99}\n" * 10_000
    buffer = io.BytesIO()
    numbers = range(1_000_000 * int(mark), 1_000_000 * int(mark) + 100_000)
    pd.DataFrame({"number": numbers}).to_parquet(
        buffer, row_group_size=50_000, compression=None, use_dictionary=False
    )
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["file", "csv", "parquet"])
def test_a_file_that_changes_while_it_is_fetched_is_not_read(place, run, form, monkeypatch):
    """Of a file that is replaced between two requests, no mixture of both comes to `run()` (R231)."""
    monkeypatch.setattr(pieces, "CHUNK", 1 << 17)
    before, after = large(form, "1"), large(form, "2")
    assert len(before) == len(after)
    url = place.put(f"in/t.{form}", before)
    read, replaced = Source.read, threading.Event()

    def replacing(self, path, start, end, deadline):
        data = read(self, path, start, end, deadline)
        if len(data) == pieces.CHUNK and not replaced.is_set():  # no head, no footer
            place.put(f"in/t.{form}", after)
            replaced.set()
        return data

    monkeypatch.setattr(Source, "read", replacing)
    make = {
        "file": FileDataset.from_files,
        "csv": TabularDataset.from_delimited_files,
        "parquet": TabularDataset.from_parquet_files,
    }[form]
    with pytest.raises(EntryScriptError, match=rf"in/t\.{form} was changed since the step"):
        run("def run(data):\n    return list(range(len(data)))", [make(url, **opened(place))],
            mini_batch_size=1 if form == "file" else "100MB", run_max_try=1)  # fmt: skip
    assert replaced.is_set()


def test_files_that_differ_by_query_only(http_server, run):
    """Each URL gives its own data, also where the addresses differ by their queries alone (R231)."""
    urls = [http_server.put(f"download?id={n}", f"text {n}") for n in range(4)]
    result = run(NAMES_AND_TEXT, [FileDataset.from_files(urls)], mini_batch_size=2)
    assert rows_of(result) == [
        "0/download=text 0", "1/download=text 1", "0/download=text 2", "1/download=text 3",
    ]  # fmt: skip


def test_keys_that_a_disk_would_mix_up(s3, run):
    """Keys that are the same path, or file and folder of one name, on a disk are kept apart (R231)."""
    for name in ("a", "a/x.txt", "a//x.txt", "a/./x.txt", "b.txt"):
        s3.put(f"in/{name}", name)
    dataset = FileDataset.from_files(f"{s3.url}/in", **opened(s3))
    rows = rows_of(run(NAMES_AND_TEXT, [dataset], mini_batch_size=10))
    assert sorted(row.partition("=")[2] for row in rows) == [
        "a", "a/./x.txt", "a//x.txt", "a/x.txt", "b.txt",
    ]  # fmt: skip
    assert len({row.partition("=")[0] for row in rows}) == 5
    assert "b.txt=b.txt" in rows


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("way", ["d", "d/*.txt", "*.txt"])
def test_files_of_an_archive(s3, run, way):
    """Files of an archive are called as they are in there (R231)."""
    s3.put("x.zip", zipped({"d/a.txt": "A", "d/b.txt": "B", "c.txt": "C"}))
    dataset = FileDataset.from_files(f"zip://{way}::{s3.url}/x.zip", **opened(s3))
    expected = ["c.txt=C"] if way == "*.txt" else ["a.txt=A", "b.txt=B"]
    assert rows_of(run(NAMES_AND_TEXT, [dataset], mini_batch_size=2)) == expected


def test_a_compressed_table_in_an_archive_and_behind_a_cache(s3, run):
    """A table is decompressed by its own name, not by that of what it is read through (R231)."""
    data = gzip.compress(table_text(100).encode())
    s3.put("x.zip", zipped({"d/t.csv.gz": data}))
    s3.put("t.csv.gz", data)
    for url in (f"zip://d/t.csv.gz::{s3.url}/x.zip", f"simplecache::{s3.url}/t.csv.gz"):
        table = TabularDataset.from_delimited_files(url, **opened(s3))
        assert rows_of(run(ROWS, [table], run_max_try=1)) == expected(100)


@pytest.mark.parametrize("name", ["zip::a.csv", "s3:"])
def test_local_names_that_look_like_chains(run, tmp_path, name):
    """A local file may have any name: none is taken for a URL (R231)."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(table_text(2))
    dataset = FileDataset.from_files(tmp_path / "in").as_download()
    assert rows_of(run("import os\ndef run(m): return [os.path.basename(m[0])]", [dataset])) == [
        name
    ]
    (tmp_path / "in" / f"{name}.gz").write_bytes(gzip.compress(table_text(2).encode()))
    table = TabularDataset.from_delimited_files(tmp_path / "in" / f"{name}.gz").as_download()
    assert rows_of(run(ROWS, [table])) == expected(2)


class Listed(FileDataset):
    """A dataset that gives the listing it had when it was made, whatever has happened since."""

    @classmethod
    def of(cls, dataset):
        listed = cls(dataset.paths, storage=dataset.storage)
        listed.__dict__["listing"] = dataset.list_files()
        return listed

    def list_files(self):
        return self.listing


@pytest.mark.timed
def test_a_connection_that_hangs_ends_at_the_limit(http_server, run):
    """A server that never answers is given up at --task_overhead_timeout; others go on (R205, R231)."""
    for n in range(3):
        http_server.put(f"in/{n}.txt", f"text {n}")
    dataset = Listed.of(FileDataset.from_files(f"{http_server.url}/in/"))
    http_server.trouble("in/1.txt", "hang", times=None)
    began = time.monotonic()
    result = run(
        NAMES_AND_TEXT, [dataset], mini_batch_size=1, run_max_try=1, error_threshold=-1,
        arguments=("--task_overhead_timeout", "2"),
    )  # fmt: skip
    assert time.monotonic() - began < 20, "took longer"
    assert result.items.failed == 1
    assert "in/1.txt" in Path(result.run_directory, "failed_items.jsonl").read_text()


def test_local_files_are_copied_where_that_is_asked_for(run, tmp_path):
    """With `as_download`, local files are fetched like remote ones, ranges included (R231)."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("text")
    dataset = FileDataset.from_files(tmp_path / "in").as_download()
    assert rows_of(run(NAMES_AND_TEXT, [dataset])) == ["a.txt=text"]
    (tmp_path / "t.csv").write_text(table_text())
    table = TabularDataset.from_delimited_files(tmp_path / "t.csv").as_download()
    assert rows_of(run(ROWS, [table], mini_batch_size="4KB")) == expected()


def test_a_bad_row_is_named_within_its_range(s3, run):
    """Of a row in a fetched range, the error tells the URL, its number there, and the range (R206)."""
    text = table_text()
    s3.put("t.csv", text.replace("\n2999,", "\nbad,"))
    table = TabularDataset.from_delimited_files(
        f"{s3.url}/t.csv", column_types={"number": "int64"}, **opened(s3)
    )
    result = run(ROWS, [table], mini_batch_size="4KB", error_threshold=-1, run_max_try=1)
    failed = Path(result.run_directory, "failed_items.jsonl").read_text()
    assert f"{s3.url}/t.csv, row" in failed
    assert "of those that begin at its bytes" in failed


class Enough(Exception):
    """The test has seen what it wanted."""


@pytest.mark.timed
def test_a_run_that_is_cancelled_while_it_fetches_leaves_nothing(http_server, run):
    """A run that is stopped while a server hangs ends within seconds, and its files go with it (R205)."""
    for n in range(4):
        http_server.put(f"in/{n}.txt", f"text {n}")
    dataset = Listed.of(FileDataset.from_files(f"{http_server.url}/in/"))
    before = http_server.requests.total()
    for n in range(4):
        http_server.trouble(f"in/{n}.txt", "hang", times=None)
    stopped = []

    def watch():
        if http_server.requests.total() > before:
            stopped.append(time.monotonic())
            raise Enough

    with pytest.raises(Enough):
        run(NAMES_AND_TEXT, [dataset], mini_batch_size=1, watch=watch)
    assert time.monotonic() - stopped[0] < 10, "took longer"


def test_refused_access_is_told_at_once(http_server, run):
    """Credentials that expire before the files are fetched are a failed attempt that says so (R78)."""
    http_server.token = "unguessable-token"
    http_server.put("in/a.txt", "text")
    options = {"headers": {"Authorization": "Bearer unguessable-token"}}
    listed = Listed.of(FileDataset.from_files(f"{http_server.url}/in/", storage_options=options))
    http_server.token = "another"
    asked = http_server.requests["in/a.txt"]
    with pytest.raises(
        EntryScriptError, match=r"in/a\.txt cannot be read: access is denied"
    ) as caught:
        run(NAMES_AND_TEXT, [listed], run_max_try=1)
    assert "unguessable" not in str(caught.value)
    assert http_server.requests["in/a.txt"] <= asked + 2


def test_partitions_of_a_table_in_several_files(s3, run):
    """All files of a key value are fetched for its mini-batch, as is the value (R102, R231)."""
    for store in (1, 2):
        for part in (1, 2):
            s3.put(f"t/store={store}/{part}.csv", f"number\n{store}{part}\n")
    table = TabularDataset.from_delimited_files(
        f"{s3.url}/t", partition_format="/store={store}/{*}.csv", **opened(s3)
    )
    script = """
        def run(table, context):
            return [f"{context.partition_key_value['store']}: {sorted(table.number)}"]
    """
    result = run(script, [table], partition_keys=["store"], error_threshold=-1)
    assert rows_of(result) == ["1: [11, 12]", "2: [21, 22]"]
