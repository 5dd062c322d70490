"""`TabularDataset.partition_by`: the same table, in a folder for each combination of keys (R102)."""

from __future__ import annotations

import datetime
import fcntl
import json
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.datasets.table_settings import TableSettings
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun.planning import make_plan, work_folder
from prefect_parallelrun.planning import partition_by as engine
from prefect_parallelrun.planning import spill as spill_module
from prefect_parallelrun_runtime import row_groups
from prefect_parallelrun_runtime.load import load
from prefect_parallelrun_runtime.path_values import key_of


def mini_batches(dataset, keys, scratch):
    """Return the key and the rows of each mini-batch."""
    plan = make_plan(
        [dataset],
        [dataset.list_files()],
        mini_batch_size=None,
        partition_keys=keys,
        scratch=scratch,
    )
    reader = json.loads(json.dumps(plan.readers[0]))
    works = [json.loads(json.dumps(mini_batch.work)) for mini_batch in plan]
    return [(key_of(work, reader), load(work, reader).data) for work in works]


STRANGE = pd.DataFrame(
    {
        "row": range(8),
        "text": ["a/b", "", "é", None, "__HIVE_DEFAULT_PARTITION__", "x=y%2F", "a/b", "."],
        "float": [1.5, np.nan, np.inf, None, -0.0, 0.0, 1.5, 1e300],
        "bool": [True, False] * 4,
        "gaps": pd.Series([True, np.nan, False, True, np.nan, np.nan, True, False], dtype=object),
        "time": pd.to_datetime(["2020-01-01T00:00:00.123456789"] * 7 + [None]),
        "zone": pd.to_datetime(["2020-07-01", "2020-01-01"] * 4).tz_localize("Europe/Berlin"),
        "Int": pd.array([1, None, 3, 4, 5, 6, 1, None], dtype="Int64"),
        "date": [datetime.date(2020, 1, 2)] * 8,
        "small": np.array([1, 2] * 4, dtype="uint8"),
        "rest": ["x"] * 8,
    }
)


@pytest.mark.parametrize(
    "keys",
    [["text"], ["float"], ["bool", "gaps"], ["time"], ["zone", "Int"], ["date"], ["small", "text"]],
    ids=str,
)
def test_every_value_survives(tmp_path, keys):
    """R102, R111: whatever the values of the keys are, all columns keep their place and dtype, also
    in another process, which knows the dataset's settings alone; each mini-batch tells its values."""
    made = TabularDataset.from_pandas_dataframe(STRANGE).partition_by(keys, tmp_path / "out")
    settings = TableSettings(**json.loads(json.dumps(vars_of(made.settings))))
    dataset = TabularDataset(settings, paths=made.paths)

    assert dataset.partition_keys == tuple(keys)
    whole = dataset.to_pandas_dataframe().sort_values("row", ignore_index=True)
    pd.testing.assert_frame_equal(whole, STRANGE)
    found = mini_batches(dataset, keys, tmp_path)
    expected = STRANGE.groupby(keys, dropna=False, sort=False)
    assert len(found) == expected.ngroups
    for key, rows in found:
        assert list(key) == keys
        same = pd.Series(True, index=STRANGE.index)
        for name, value in key.items():
            column = STRANGE[name]
            same &= column.isna() if value is None else (column == value).fillna(False).astype(bool)
        pd.testing.assert_frame_equal(rows, STRANGE[same].reset_index(drop=True))


def vars_of(settings):
    return {name: getattr(settings, name) for name in TableSettings.__slots__}


def sales(stores=4, brands=("x", "y"), weeks=5):
    rows = [
        (store, brand, week, store * 100 + week)
        for week in range(weeks)
        for store in range(stores)
        for brand in brands
    ]
    return pd.DataFrame(rows, columns=["store", "brand", "week", "sold"])


@pytest.mark.parametrize("kind", ["CSV", "JSON lines", "Parquet", "SQL", "DataFrame", "format"])
def test_from_every_source(tmp_path, kind):
    """R102: tables of every kind can be partitioned; keys that are not named are merged, in path order."""
    table = sales()
    if kind in ("CSV", "format"):
        (tmp_path / "2024").mkdir()
        table.to_csv(tmp_path / "2024" / "a.csv", index=False)
        form = "{year}/*.csv" if kind == "format" else None
        source = TabularDataset.from_delimited_files(tmp_path / "2024", partition_format=form)
    elif kind == "JSON lines":
        table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        source = TabularDataset.from_json_lines_files(tmp_path / "a.jsonl")
    elif kind == "Parquet":
        table.to_parquet(tmp_path / "a.parquet", row_group_size=7)
        source = TabularDataset.from_parquet_files(tmp_path / "a.parquet")
    elif kind == "SQL":
        with sqlite3.connect(tmp_path / "a.db") as connection:
            table.to_sql("sales", connection, index=False)
        connection.close()
        source = TabularDataset.from_sql_query(f"sqlite:///{tmp_path}/a.db", "SELECT * FROM sales")
    else:
        source = TabularDataset.from_pandas_dataframe(table)
    if kind == "format":
        table["year"] = "2024"
    keys = ["brand", "year"] if kind == "format" else ["store", "brand"]

    dataset = source.partition_by(keys, tmp_path / "out")

    found = mini_batches(dataset, ["brand"], tmp_path)
    assert [key for key, _ in found] == [{"brand": "x"}, {"brand": "y"}]
    for key, rows in found:
        own = table[table["brand"] == key["brand"]].sort_values("store", kind="stable")
        rows = rows.sort_values("store", kind="stable", ignore_index=True)
        pd.testing.assert_frame_equal(rows, own.reset_index(drop=True))


def test_a_stored_index_stays_one(tmp_path):
    """R111: what pandas makes the index is so in every mini-batch, of one file or of several."""
    table = sales().assign(place=lambda t: "p" + t["week"].astype(str)).set_index("place")
    table.to_parquet(tmp_path / "a.parquet")
    source = TabularDataset.from_parquet_files(tmp_path / "a.parquet")

    dataset = source.partition_by(["store", "brand"], tmp_path / "out")

    for _, rows in mini_batches(dataset, ["store"], tmp_path):
        assert rows.index.name == "place"
        assert list(rows.columns) == list(table.columns)
    with pytest.raises(ConfigError, match="the table has the columns"):
        source.partition_by(["place"], tmp_path / "other")


def test_others_can_read_it(tmp_path):
    """R102: the folders are those of Hive, so that pandas and our own `partition_format` (which gives
    text) find the values in them; the marker of 0 bytes disturbs nobody."""
    table = sales()
    target = tmp_path / "out"
    TabularDataset.from_pandas_dataframe(table).partition_by(["store", "brand"], target)

    assert len(pd.read_parquet(target)) == len(table)
    again = TabularDataset.from_parquet_files(
        target, partition_format="store={store}/brand={brand}/*.parquet"
    ).to_pandas_dataframe()
    assert sorted(set(again["store"])) == ["0", "1", "2", "3"]
    assert again["sold"].sum() == table["sold"].sum()


def test_take_of_a_partitioned_table(tmp_path):
    """The first rows of it are cut by keys as well."""
    made = TabularDataset.from_pandas_dataframe(sales()).partition_by(["store"], tmp_path / "out")

    found = mini_batches(made.take(13), ["store"], tmp_path)

    assert [(key["store"], len(rows)) for key, rows in found] == [(0, 10), (1, 3)]
    assert len(made.take(13).to_pandas_dataframe()) == 13


def test_what_stands_there_is_kept_replaced_or_refused(tmp_path):
    """R102: the result of the same call on an unchanged table stays as it is, of a changed one it is
    replaced; anything else in the target is left alone, and refused."""
    source, target = tmp_path / "a.csv", tmp_path / "out"
    sales().to_csv(source, index=False)
    dataset = TabularDataset.from_delimited_files(source)
    target.mkdir()
    first = dataset.partition_by(["store"], target).list_files()
    assert dataset.partition_by(["store"], target).list_files() == first

    (target / "store=0" / "part-0.parquet").unlink()
    repaired = dataset.partition_by(["store"], target)
    assert len(repaired.list_files()) == len(first)

    sales(stores=2).to_csv(source, index=False)
    replaced = dataset.partition_by(["store"], target)
    assert [file.path for file in replaced.list_files()] == [file.path for file in first[:2]]
    assert len(replaced.to_pandas_dataframe()) == 20

    for other, keys in (
        (dataset, ["brand"]),
        (TabularDataset.from_pandas_dataframe(sales()), ["store"]),
    ):
        with pytest.raises(ConfigError, match=r"target=.*holds other files"):
            other.partition_by(keys, target)
    for name in (
        "notes.txt",
        "mine/part-0.parquet",
        "store=1/x/part-0.parquet",
        "store=1/x.parquet",
    ):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("mine")
        with pytest.raises(ConfigError, match=rf"target=.*holds other files.*{name}"):
            dataset.partition_by(["store"], target)
        with pytest.raises(DatasetError, match=rf"{name} is no file of partition_by"):
            replaced.list_files()
        assert (target / name).read_text() == "mine"
        (target / name).unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    with pytest.raises(ConfigError, match=r"target=.*holds other files"):
        dataset.partition_by(["store"], tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"target=.*it is a file"):
        dataset.partition_by(["store"], source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "mine", "out"]


def test_an_end_midway_leaves_nothing(tmp_path):
    """R102: a value that does not fit ends it with an error that names it; nothing new is there, and
    the earlier result is as it was."""
    source, target = tmp_path / "a.csv", tmp_path / "out"
    sales().to_csv(source, index=False)
    dataset = TabularDataset.from_delimited_files(source, column_types={"sold": "int64"})
    before = dataset.partition_by(["store"], target).list_files()
    with source.open("a") as file:
        file.write("1,x,9,many\n")

    for place in (target, tmp_path / "new"):
        with pytest.raises(DatasetError, match=r"row 41: .*'many'"):
            dataset.partition_by(["store"], place)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out"]
    assert TabularDataset.from_parquet_files(target).list_files() == before


def test_a_kill_midway_leaves_nothing(tmp_path):
    """R102: after `kill -9` there is no folder that could be taken for the table; the next call writes it."""
    sales().to_csv(tmp_path / "a.csv", index=False)
    program = f"""
import os, signal
from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import partition_by
write, calls = partition_by._write_file, []

def killed(tables, file):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(tables, file)

partition_by._write_file = killed
TabularDataset.from_delimited_files({str(tmp_path / "a.csv")!r}).partition_by(
    ["store"], {str(tmp_path / "out")!r}
)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    assert not (tmp_path / "out").exists()
    dataset = TabularDataset.from_delimited_files(tmp_path / "a.csv")
    assert len(dataset.partition_by(["store"], tmp_path / "out").list_files()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    """R102: killed when the old folder has no name and the new one not yet, the next call gives it back
    its name first: also where that call then fails."""
    source, target = tmp_path / "a.csv", tmp_path / "out"
    sales().to_csv(source, index=False)
    dataset = TabularDataset.from_delimited_files(source, column_types={"sold": "int64"})
    made = dataset.partition_by(["store"], target)
    before = made.list_files()
    with source.open("a") as file:
        file.write("1,x,9,9\n")
    program = f"""
import os, pathlib, signal
from prefect_parallelrun.datasets import TabularDataset
rename = pathlib.Path.rename

def killed(path, to):
    if path.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, to)

pathlib.Path.rename = killed
TabularDataset.from_delimited_files({str(source)!r}, column_types={{"sold": "int64"}}).partition_by(
    ["store"], {str(target)!r}
)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()

    with source.open("a") as file:
        file.write("1,x,9,many\n")
    with pytest.raises(DatasetError, match="'many'"):
        dataset.partition_by(["store"], target)

    assert made.list_files() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out"]


def test_calls_for_one_target_wait_for_each_other(tmp_path, monkeypatch):
    """R102: of calls at once, for the same folder and table, the first writes it, and the others find it."""
    sales().to_csv(tmp_path / "a.csv", index=False)
    flock, write = fcntl.flock, engine._write_file
    asked, written, made = threading.Semaphore(0), [], []

    def counted(file, how):
        asked.release()
        flock(file, how)

    def late(tables, file):
        if not written:
            assert all(asked.acquire(timeout=30) for _ in range(6))
        written.append(1)
        write(tables, file)

    def call():
        dataset = TabularDataset.from_delimited_files(tmp_path / "a.csv")
        made.append(dataset.partition_by(["store"], tmp_path / "out"))

    monkeypatch.setattr(work_folder.fcntl, "flock", counted)
    monkeypatch.setattr(engine, "_write_file", late)
    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)

    assert [len(one.to_pandas_dataframe()) for one in made] == [40] * 6
    assert len(written) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "out"]


def test_a_work_folder_is_one_call_s_alone(tmp_path):
    """R102: however often calls take turns, one at a time has the folder, finds it empty, and nothing stays."""
    inside, turns = [], []

    def take_turns():
        for _ in range(100):
            with work_folder.work_folder(tmp_path / "work") as folder:
                inside.append(1)
                (folder / "new").mkdir()
                turns.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)

    assert turns == [1] * 400
    assert list(tmp_path.iterdir()) == []


def test_fewer_files_are_no_table(tmp_path):
    """R102: where a file is gone, or another than was written, the dataset cannot be read: its rows
    would be fewer, and nobody would know; so after the folder's marker is gone."""
    frame = TabularDataset.from_pandas_dataframe(sales())
    for place, harm in enumerate(
        (
            lambda part, marker: part.unlink(),
            lambda part, marker: pq.write_table(pa.table({"x": [1]}), part),
            lambda part, marker: marker.unlink(),
        )
    ):
        target = tmp_path / f"out{place}"
        made = frame.partition_by(["store"], target)
        assert len(made.list_files()) == 4
        harm(target / "store=1" / "part-0.parquet", next(target.glob("_partition_by-*")))
        with pytest.raises(DatasetError, match=r"no longer has the files .*run it again"):
            made.to_pandas_dataframe()


def test_a_target_among_its_sources_is_refused(tmp_path):
    """R102: a folder that the table would be read from the next time cannot take it; one beside can."""
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    pq.write_table(pa.table({"k": [1, 2], "v": [1, 2]}), data / "a" / "1.parquet")
    (tmp_path / "link").symlink_to(data)
    for source, target in (
        ("data", "data/by-k"),
        ("data/**/*.parquet", "data/by-k"),
        ("data/*/*", "data/by-k"),
        ("data", "link/by-k"),
        ("link/**", "data/a"),
    ):
        with pytest.raises(ConfigError, match=r"target=.*the table itself is read from"):
            TabularDataset.from_parquet_files(tmp_path / source).partition_by(
                ["k"], tmp_path / target
            )
    assert sorted(path.name for path in data.rglob("*")) == ["1.parquet", "a"]
    for number, source in enumerate(("data/a", "data/*/1.parquet", "data/**/1.parquet")):
        dataset = TabularDataset.from_parquet_files(tmp_path / source)
        for _ in range(2):
            made = dataset.partition_by(["k"], data / f"by-k{number}")
            assert len(made.to_pandas_dataframe()) == 2
    with pytest.raises(ConfigError, match=r"target=.*the table itself is read from"):
        made.partition_by(["v"], data / "by-k2" / "by-v")


def test_a_linked_target_stays_a_link(tmp_path):
    """R102: the folder is made where the link leads, also where nothing is there yet."""
    dataset = TabularDataset.from_pandas_dataframe(sales())
    (tmp_path / "disk" / "real").mkdir(parents=True)
    for link, real in (("link", "disk/real"), ("dangling", "disk/deep/new")):
        (tmp_path / link).symlink_to(tmp_path / real)
        for _ in range(2):
            made = dataset.partition_by(["store"], tmp_path / link)
            assert len(made.to_pandas_dataframe()) == 40
        assert (tmp_path / link).is_symlink()
        assert len(list((tmp_path / real).iterdir())) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "disk", "link"]
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["deep", "real"]


@pytest.mark.parametrize(
    ("before", "since"),
    [
        ("1", "x"),
        ("1.5", "x"),
        ("true", "x"),
        ("2020-01-01", "x"),
    ],
)
def test_other_types_than_when_the_dataset_was_made(tmp_path, before, since):
    """R102: a dataset of before, held or registered, says so where the folder's keys have another type now."""
    source = tmp_path / "a.csv"
    source.write_text(f"k,v\n{before},1\n")
    old = TabularDataset.from_delimited_files(source).partition_by(["k"], tmp_path / "out")
    source.write_text(f"k,v\n{since},1\n")
    TabularDataset.from_delimited_files(source).partition_by(["k"], tmp_path / "out")

    with pytest.raises(DatasetError, match=r"k=x.*'x' is no .*run partition_by\(…\) again"):
        old.to_pandas_dataframe()


def test_zeros_of_both_signs_keep_their_order(tmp_path):
    """R102: -0.0 and 0.0 are one value, and its rows are in the order of the table."""
    frame = pd.DataFrame({"k": [0.0, -0.0, 1.0, -0.0, 0.0, -0.0], "row": range(6)})

    made = TabularDataset.from_pandas_dataframe(frame).partition_by(["k"], tmp_path / "out")

    found = made.to_pandas_dataframe()
    assert list(found[found["k"] == 0]["row"]) == [0, 1, 3, 4, 5]


def test_keys_that_cannot_be(tmp_path):
    """R102: what is no column, or cannot be one value, is refused before anything is written."""
    frame = pd.DataFrame({"a": [1], "lists": [[1, 2]], "b": ["x" * 300]})
    dataset = TabularDataset.from_pandas_dataframe(frame)
    for keys, why in (
        (["c"], r"the table has the columns \['a', 'lists', 'b'\]"),
        (["a", "lists", "b"], "leave a column"),
        (["lists"], "'lists' is list"),
        ([], "distinct names"),
        ("a", "distinct names"),
        (None, "distinct names"),
    ):
        with pytest.raises(ConfigError, match=f"partition_keys=.*{why}"):
            dataset.partition_by(keys, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"the value of 'b' that begins with 'xxx.*too long"):
        dataset.partition_by(["b"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_objects_in_json_are_not_changed_silently(tmp_path):
    """R102, R111: lists and objects of JSON lines cannot be kept in Parquet as they are: it says so."""
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": [1]}\n{"a": 2, "b": {"c": 1}}\n')
    dataset = TabularDataset.from_json_lines_files(tmp_path / "a.jsonl")

    # As a query's are fetched.
    marked = pa.field("b", pa.string(), metadata={row_groups.JSON: b""})
    table = pa.table([[1], ["[1]"]], schema=pa.schema([("a", pa.int64()), marked]))
    pq.write_table(table, tmp_path / "a.parquet")

    for one in (dataset, TabularDataset.from_parquet_files(tmp_path / "a.parquet")):
        with pytest.raises(DatasetError, match="column 'b' holds lists or objects"):
            one.partition_by(["a"], tmp_path / "out")


def test_a_table_without_rows(tmp_path):
    """R111: a header alone gives a dataset without mini-batches, whose DataFrame has all columns."""
    (tmp_path / "a.csv").write_text("a,b\n")
    dataset = TabularDataset.from_delimited_files(
        tmp_path / "a.csv", column_types={"a": "datetime64[ns]", "b": "int64"}
    )

    made = dataset.partition_by(["a"], tmp_path / "out")

    assert mini_batches(made, ["a"], tmp_path) == []
    expected = dataset.to_pandas_dataframe()
    assert list(expected.columns) == ["a", "b"]
    for one in (made, made.take(3), dataset.take(3)):
        pd.testing.assert_frame_equal(one.to_pandas_dataframe(), expected)


def test_memory_does_not_grow_with_the_table(tmp_path, monkeypatch):
    """R102: a table many times larger than what may be held, with 400 combinations, one of which
    has half of the rows, is written in bounded memory, each combination to one file, in order."""
    monkeypatch.setattr(engine, "_READ_BYTES", 256 << 10)
    monkeypatch.setattr(spill_module, "_CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(spill_module, "_GROUP_BYTES", 1 << 20)
    rows = 120_000
    random = np.random.default_rng(7)
    key = np.where(random.random(rows) < 0.5, 0, random.integers(0, 400, rows))
    table = pa.table(
        {"key": key, "row": np.arange(rows), **{f"x{n}": random.random(rows) for n in range(6)}}
    )
    pa.csv.write_csv(table, tmp_path / "a.csv")
    size, expected = table.nbytes, np.bincount(key, minlength=400)
    del table
    held_before = pa.total_allocated_bytes()
    peak = 0

    def spy(self, *arguments):
        nonlocal peak
        peak = max(peak, pa.total_allocated_bytes() - held_before)
        return take(self, *arguments)

    take = pa.ipc.RecordBatchFileWriter.write_batch
    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_batch", spy)
    made = TabularDataset.from_delimited_files(tmp_path / "a.csv").partition_by(
        ["key"], tmp_path / "out"
    )

    assert size > 7 << 20
    assert 0 < peak < 5 << 20
    found = made.to_pandas_dataframe()
    assert len(made.list_files()) == np.count_nonzero(expected)
    assert np.array_equal(np.bincount(found["key"], minlength=400), expected)
    assert found.groupby("key")["row"].is_monotonic_increasing.all()
