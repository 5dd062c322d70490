"""Partitions in other storages than this machine's (R102, R231)."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.errors import ConfigError, DatasetError
from prefect_parallelrun.planning import partition_by as engine


@pytest.fixture(params=["s3", "azure"])
def place(request):
    """A bucket or container of this test."""
    return request.getfixturevalue(request.param)


def sales(stores: int = 3) -> pd.DataFrame:
    rows = [
        (store, brand, week)
        for week in range(4)
        for store in range(stores)
        for brand in ("x", "y/ü")
    ]
    return pd.DataFrame(rows, columns=["store", "brand", "week"])


def test_from_there_to_there_and_through_a_step(place, run):
    """R102, R231: a remote table is partitioned into the same storage, and each mini-batch of a step
    has the rows and the key of one combination, fetched by the nodes."""
    url = place.put("in/sales.csv", sales().to_csv(index=False))
    options = {"storage_options": place.storage_options}
    made = TabularDataset.from_delimited_files(url, **options).partition_by(
        ["store", "brand"], f"{place.url}/out", **options
    )

    assert len(made.list_files()) == 6
    result = run(
        """
        def run(mini_batch, context):
            assert list(mini_batch.columns) == ["store", "brand", "week"]
            store = context.partition_key_value["store"]
            assert set(mini_batch["store"]) == {store}
            return [f"{s}|{b}|{w}" for s, b, w in mini_batch.to_numpy()]
        """,
        [made],
        partition_keys=["store"],
    )
    found = Path(result.append_row_file).read_text().splitlines()
    assert sorted(found) == sorted(f"{s}|{b}|{w}" for s, b, w in sales().to_numpy())
    assert result.mini_batches.total == 3


def test_remote_paths_have_keys(place, run):
    """R102, R231: a `partition_format` reads URLs as it reads paths; the script gets local files."""
    for name in ("ann/1.txt", "ann/2.txt", "bob/1.txt"):
        place.put(f"in/{name}", name)
    songs = FileDataset.from_files(
        f"{place.url}/in", partition_format="{user}/*.txt", storage_options=place.storage_options
    )

    result = run(
        """
        from pathlib import Path

        def run(mini_batch, context):
            return [f"{context.partition_key_value} {Path(path).read_text()}" for path in mini_batch]
        """,
        [songs],
        partition_keys=["user"],
    )

    assert Path(result.append_row_file).read_text().splitlines() == [
        "{'user': 'ann'} ann/1.txt",
        "{'user': 'ann'} ann/2.txt",
        "{'user': 'bob'} bob/1.txt",
    ]


def test_what_is_not_complete_cannot_be_read(place, tmp_path, monkeypatch):
    """R102: as long as files are written, and after a crash, nobody takes the folder for a table; the
    same call then begins anew, an unchanged table leaves it alone, and others may not use it."""
    target, options = f"{place.url}/out", {"storage_options": place.storage_options}
    sales().to_csv(tmp_path / "a.csv", index=False)
    dataset = TabularDataset.from_delimited_files(tmp_path / "a.csv")
    groups = engine.Spill.groups

    def crashing(self):
        for number, group in enumerate(groups(self)):
            if number == 2:
                raise RuntimeError("power cut")
            yield group

    monkeypatch.setattr(engine.Spill, "groups", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        dataset.partition_by(["store", "brand"], target, **options)
    monkeypatch.undo()
    readers = TabularDataset.from_parquet_files(target, **options)
    with pytest.raises(DatasetError, match="is not complete"):
        readers.list_files()

    made = dataset.partition_by(["store", "brand"], target, **options)
    first = made.list_files()
    assert len(first) == 6
    assert dataset.partition_by(["store", "brand"], target, **options).list_files() == first

    sales(stores=2).to_csv(tmp_path / "a.csv", index=False)
    assert len(dataset.partition_by(["store", "brand"], target, **options).list_files()) == 4
    with pytest.raises(ConfigError, match="holds other files"):
        dataset.partition_by(["brand"], target, **options)


@pytest.fixture
def call(place, tmp_path):
    """Partition `tmp_path/a.csv` into the same target, each time."""
    sales().to_csv(tmp_path / "a.csv", index=False)

    def partitioned():
        return TabularDataset.from_delimited_files(tmp_path / "a.csv").partition_by(
            ["store", "brand"], f"{place.url}/out", storage_options=place.storage_options
        )

    return partitioned


def test_of_two_calls_at_once_the_later_one_wins(place, call, monkeypatch):
    """R102: a call whose files another one removes fails, and says why; the other one's result is whole."""
    uploaded, half, failed = threading.Event(), threading.Event(), threading.Event()
    groups, ends = engine.Spill.groups, {}

    def slow(self):
        for number, group in enumerate(groups(self)):
            if threading.current_thread().name == "later" and number == 3:
                half.set()
                assert failed.wait(30)
            yield group
        if threading.current_thread().name == "earlier":
            uploaded.set()
            assert half.wait(30)

    def end_of(name):
        try:
            ends[name] = call()
        except DatasetError as error:
            ends[name] = error
            failed.set()

    monkeypatch.setattr(engine.Spill, "groups", slow)
    earlier = threading.Thread(target=end_of, args=("earlier",), name="earlier")
    later = threading.Thread(target=end_of, args=("later",), name="later")
    earlier.start()
    assert uploaded.wait(30)
    later.start()
    earlier.join(40)
    later.join(40)

    assert "another partition_by(…) wrote there at the same time" in str(ends["earlier"])
    assert len(ends["later"].to_pandas_dataframe()) == len(sales())
    assert not [name for name in place.names() if name.endswith("-unfinished")]


def test_files_of_two_tables_are_never_mixed(place, call, tmp_path, monkeypatch):
    """R102: a call that began before the table changed, and goes on after another has written the
    changed one, fails; what is there cannot be read until the next call has repaired it."""
    groups, calls = engine.Spill.groups, []

    def overtaken(self):
        calls.append(1)
        if len(calls) == 1:
            changed = sales().assign(week=lambda table: table["week"] + 1)
            changed.to_csv(tmp_path / "a.csv", index=False)
            call()
        yield from groups(self)

    monkeypatch.setattr(engine.Spill, "groups", overtaken)
    with pytest.raises(DatasetError, match="another partition_by"):
        call()
    readers = TabularDataset.from_parquet_files(
        f"{place.url}/out", storage_options=place.storage_options
    )
    with pytest.raises(DatasetError, match="is not complete"):
        readers.list_files()

    assert set(call().to_pandas_dataframe()["week"]) == {1, 2, 3, 4}
    assert len(readers.list_files()) == 6


def test_fewer_files_are_no_table(place, call):
    """R102: where a file is gone the dataset cannot be read, until the next call has written it again."""
    made = call()
    place.delete(next(name for name in place.names() if name.endswith(".parquet")))

    with pytest.raises(DatasetError, match=r"no longer has the files .*run it again"):
        made.to_pandas_dataframe()

    assert len(call().to_pandas_dataframe()) == len(made.to_pandas_dataframe()) == len(sales())


def test_a_target_among_its_sources_is_refused(place):
    """R102: a place that the table would be read from the next time cannot take it."""
    place.put("in/a/sales.csv", sales().to_csv(index=False))
    options = {"storage_options": place.storage_options}
    for source in ("in", "in/**"):
        with pytest.raises(ConfigError, match=r"target=.*the table itself is read from"):
            TabularDataset.from_delimited_files(f"{place.url}/{source}", **options).partition_by(
                ["store"], f"{place.url}/in/by-store", **options
            )
    made = TabularDataset.from_delimited_files(f"{place.url}/in/*/*.csv", **options).partition_by(
        ["store"], f"{place.url}/in/by-store", **options
    )
    assert len(made.to_pandas_dataframe()) == len(sales())


def test_keys_of_chains_and_of_web_addresses(s3, http_server, tmp_path):
    """R102, R231: in an archive the paths within it have the values; in web addresses they are quoted,
    and a query is none of them."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for user in ("ann", "bob"):
            archive.writestr(f"{user}/1.csv", "a\n1\n")
    s3.put("x.zip", (tmp_path / "x.zip").read_bytes())
    http_server.put("cy d/1.csv", "a\n1\n")
    tables = (
        (f"zip://*/*.csv::{s3.url}/x.zip", s3.storage_options),
        (f"{http_server.url}/cy%20d/1.csv?version=a/b", None),
    )

    found = [
        TabularDataset.from_delimited_files(
            url, partition_format="{user}/*.csv", storage_options=options
        ).to_pandas_dataframe()
        for url, options in tables
    ]

    assert [list(frame["user"]) for frame in found] == [["ann", "bob"], ["cy d"]]
