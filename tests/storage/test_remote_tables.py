"""Tables in other storages are planned as the same bytes on this machine are, without being fetched whole."""

from __future__ import annotations

import gzip
import io
import json

import pandas as pd
import pytest

from prefect_parallelrun.datasets import TabularDataset, transport
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun.planning import make_plan

PLACES = ["s3", "azure", "http_server"]
MAKE = {
    "csv": TabularDataset.from_delimited_files,
    "csv.gz": TabularDataset.from_delimited_files,
    "jsonl": TabularDataset.from_json_lines_files,
    "parquet": TabularDataset.from_parquet_files,
}


@pytest.fixture
def place(request):
    """One of the servers."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def frame():
    """20,000 rows of several types."""
    rows = range(20_000)
    return pd.DataFrame(
        {
            "n": rows,
            "gap": [None if n % 7 == 0 else n for n in rows],
            "word": [f"word {n:05}" for n in rows],
            "truth": [n % 2 == 0 for n in rows],
        }
    )


def written(frame, form):
    """The bytes of a DataFrame in a format."""
    if form == "jsonl":
        return frame.to_json(orient="records", lines=True).encode()
    if form == "parquet":
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, row_group_size=1_000)
        return buffer.getvalue()
    data = frame.to_csv(index=False).encode()
    return gzip.compress(data) if form == "csv.gz" else data


def planned(dataset, folder, size="64KB"):
    """The reader of a table, and its mini-batches."""
    plan = make_plan(
        [dataset], [dataset.list_files()], mini_batch_size=size, scratch=folder / "scratch"
    )
    batches = [
        (batch.index, {**batch.work, "path": batch.work["path"].rpartition("/")[2]})
        for batch in plan
    ]
    return plan.readers, batches


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("form", MAKE)
def test_a_remote_table_is_planned_as_a_local_one(place, form, frame, tmp_path):
    """The same bytes give the same types, ranges and row groups, wherever they are (R231, R23)."""
    data = written(frame, form)
    (tmp_path / f"t.{form}").write_bytes(data)
    place.put(f"in/t.{form}", data)
    remote = MAKE[form](f"{place.url}/in/*.{form}", storage_options=place.storage_options)

    readers, batches = planned(remote, tmp_path)

    assert (readers, batches) == planned(MAKE[form](tmp_path / f"t.{form}"), tmp_path)
    assert len(batches) > (0 if form == "csv.gz" else 3)


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("form", MAKE)
def test_a_remote_table_has_the_same_rows(place, form, frame, tmp_path):
    """As a DataFrame it is the same table, whole or its first rows (R231)."""
    data = written(frame, form)
    (tmp_path / f"t.{form}").write_bytes(data)
    place.put(f"t.{form}", data)
    remote = MAKE[form](f"{place.url}/t.{form}", storage_options=place.storage_options)
    local = MAKE[form](tmp_path / f"t.{form}")

    pd.testing.assert_frame_equal(remote.to_pandas_dataframe(), local.to_pandas_dataframe())
    first = remote.take(3)
    pd.testing.assert_frame_equal(first.to_pandas_dataframe(), local.take(3).to_pandas_dataframe())


def test_rows_over_several_lines_are_planned_as_local_ones(http_server, tmp_path):
    """Where values hold line ends, the one reading of the file that it takes cuts it alike (R231)."""
    data = ("n,text\n" + "".join(f'{n},"line\nof {n}"\n' for n in range(30_000))).encode()
    (tmp_path / "t.csv").write_bytes(data)
    url = http_server.put("t.csv", data)

    def table(path):
        return TabularDataset.from_delimited_files(path, support_multi_line=True)

    assert planned(table(url), tmp_path) == planned(table(tmp_path / "t.csv"), tmp_path)


def test_a_large_csv_is_sampled_not_fetched(http_server, tmp_path):
    """Of 50 MB only the sample that settles the types crosses the wire, 16 MB and a bit (R231, R111)."""
    row = b"1,0.5,2024-01-01," + b"x" * 80 + b"\n"
    data = b"n,f,day,text\n" + row * (50_000_000 // len(row))
    url = http_server.put("t.csv", data)
    dataset = TabularDataset.from_delimited_files(url)

    _, batches = planned(dataset, tmp_path, size="1MB")

    assert len(batches) == -(-len(data) // (1 << 20))
    assert http_server.sent["t.csv"] < 19 << 20
    # A block of the sample costs one request: its last row comes along.
    assert http_server.requests["t.csv"] < 270


def test_a_large_parquet_file_costs_its_footer(http_server, frame, tmp_path):
    """Where row groups begin is in the end of a Parquet file; nothing else of it is fetched (R231)."""
    data = written(pd.concat([frame] * 20, ignore_index=True), "parquet")
    url = http_server.put("t.parquet", data)

    planned(TabularDataset.from_parquet_files(url), tmp_path)

    assert len(data) > 3_000_000
    assert http_server.sent["t.parquet"] < 300_000
    assert http_server.requests["t.parquet"] <= 5


def test_the_first_rows_cost_little(http_server):
    """`take` of a large file without much of a sample reads its beginning alone (R231)."""
    rows = [json.dumps({"n": n, "text": "x" * 1000}) for n in range(3_000)]
    url = http_server.put("t.jsonl", "\n".join(rows))
    files = TabularDataset.from_json_lines_files(url)
    listed = files.list_files()
    reading = files.settle(listed)
    before = http_server.sent["t.jsonl"]

    works = list(files.take(5).first_rows(listed, reading))

    assert works == [{"path": url, "rows": 5}]
    assert http_server.sent["t.jsonl"] - before <= 1 << 20


def test_many_files_are_sampled_at_the_same_time(http_server):
    """Files are looked at several at a time; each costs its size, and its content once (R231)."""
    for n in range(50):
        http_server.put(f"in/{n:02}.csv", "n,word\n1,a\n2,b\n")
    dataset = TabularDataset.from_delimited_files(f"{http_server.url}/in/*.csv")

    reader = dataset.settle(dataset.list_files()).reader

    assert reader["columns"] == [["n", "int64"], ["word", "string"]]
    # One of them is asked once more, whether the server gives parts.
    counts = [http_server.requests[f"in/{n:02}.csv"] for n in range(50)]
    assert sum(counts) <= 50 * 2 + 16


def test_a_server_that_gives_no_parts_makes_each_file_one_mini_batch(http_server, frame, tmp_path):
    """Text is read as a stream then, and not cut; Parquet says what it lacks (R231)."""
    http_server.ranges = False
    csv = http_server.put("t.csv", written(frame, "csv"))
    parquet = http_server.put("t.parquet", written(frame, "parquet"))

    _, batches = planned(TabularDataset.from_delimited_files(csv), tmp_path)

    assert [work for _, work in batches] == [{"path": "t.csv"}]
    got = TabularDataset.from_delimited_files(csv).to_pandas_dataframe()
    assert got["word"].tolist() == frame["word"].tolist()
    with pytest.raises(DatasetError, match=r"t\.parquet cannot be read.*gives no parts of files"):
        planned(TabularDataset.from_parquet_files(parquet), tmp_path)


@pytest.mark.parametrize("trouble", [503, "drop"])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_trouble_that_passes_costs_no_plan(
    http_server, frame, tmp_path, monkeypatch, trouble, form
):
    """Requests that fail while the types are settled are made again (R231)."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    url = http_server.put(f"t.{form}", written(frame, form))
    dataset = MAKE[form](url)
    files = dataset.list_files()
    http_server.trouble(f"t.{form}", trouble, times=3)

    assert dataset.settle(files).reader["format"] in ("delimited", "parquet")
    assert not http_server.troubles[f"t.{form}"]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_trouble_that_stays_is_told_with_the_url(http_server, frame, monkeypatch, form):
    """Types that cannot be settled are an error that names the URL and the tries (R231)."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "LIMIT_S", 0.2)
    url = http_server.put(f"t.{form}", written(frame, form))
    dataset = MAKE[form](url)
    files = dataset.list_files()
    http_server.trouble(f"t.{form}", 503, times=None)

    with pytest.raises(DatasetError, match=rf"{url} cannot be read: .*too busy \(tried \d+ times"):
        dataset.settle(files)
