"""Registered datasets, kept by a real Prefect server (R78)."""

from __future__ import annotations

import asyncio
import threading
import uuid

import pandas as pd
import pytest
from prefect import flow
from prefect.blocks.core import Block

from prefect_parallelrun import ConfigError, DatasetError, FileDataset, TabularDataset
from prefect_parallelrun.blocks import S3Credentials, keep_version


@pytest.fixture
def name():
    """A name under which nothing is registered."""
    return f"data-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def keys():
    """The name of a credentials block."""
    name = f"keys-{uuid.uuid4().hex[:8]}"
    S3Credentials(access_key_id="someone", secret_access_key="wqTs81").save(name)
    return f"s3-credentials/{name}"


def test_a_dataset_comes_back_by_its_name(name, tmp_path):
    """What is registered is got by its name, with the version that it is (R78)."""
    (tmp_path / "a.txt").write_text("A")
    registered = FileDataset.from_files(str(tmp_path)).as_named_input("texts").register(name)

    found = FileDataset.get_by_name(name)

    assert (registered.version, found.version) == (1, 1)
    assert (found.name, found.paths) == ("texts", (str(tmp_path),))
    assert [file.path for file in found.list_files()] == [str(tmp_path / "a.txt")]


@pytest.mark.parametrize(
    "made",
    [
        lambda keys: FileDataset.from_files(
            ["s3://bucket/a", "s3://bucket/b/*.png"], credentials=keys, content=True
        ),
        lambda keys: (
            FileDataset.from_files("s3://bucket/in", credentials=keys)
            .as_named_input("labels")
            .as_download("/tmp/labels")
        ),
        lambda keys: TabularDataset.from_delimited_files(
            "s3://bucket/t.csv",
            separator=";",
            header=False,
            encoding="latin-1",
            support_multi_line=True,
            column_types={"Column1": "string"},
            credentials=keys,
        ),
        lambda keys: TabularDataset.from_json_lines_files("/data/*.jsonl").take(12),
        lambda _: TabularDataset.from_parquet_files("/data").as_download(),
        lambda _: FileDataset.from_files(
            "/data", partition_format="/data/{user}/{date:yyyy/MM/dd}.wav"
        ),
        lambda _: TabularDataset.from_parquet_files("/data", partition_format="{store}/x.parquet"),
        lambda _: TabularDataset.from_sql_query(
            "sqlite:////data/sales.db", "SELECT * FROM sales", partition_column="id"
        ),
        lambda _: TabularDataset.from_sql_query("sql-connection/sales", "SELECT 1"),
    ],
)
def test_all_of_a_dataset_survives(name, keys, made):
    """Paths, format, types, delivery and the name of the credentials come back as they were (R78)."""
    dataset = made(keys)
    dataset.register(name)

    found = type(dataset).get_by_name(name)

    assert vars(found) == {**vars(dataset), "version": 1}


def test_the_same_dataset_is_the_same_version(name):
    """Registering a dataset again makes no new version, whether or not one is asked for."""
    dataset = FileDataset.from_files("/data/a")
    assert dataset.register(name).version == 1
    assert dataset.register(name, create_new_version=True).version == 1
    assert dataset.register(name).version == 1
    assert FileDataset.versions(name) == [1]


def test_another_dataset_needs_a_new_version(name):
    """Another dataset under a name that is taken is refused, unless a new version is asked for (R78)."""
    FileDataset.from_files("/data/a").register(name)
    other = FileDataset.from_files("/data/b")

    with pytest.raises(ConfigError, match=r"version 1: register it with create_new_version=True"):
        other.register(name)

    assert other.register(name, create_new_version=True, description="the next").version == 2
    assert FileDataset.versions(name) == [1, 2]
    assert FileDataset.get_by_name(name, version=1).paths == ("/data/a",)
    assert FileDataset.get_by_name(name).paths == ("/data/b",)
    assert Block.load(f"registered-dataset/{name}-v2").description == "the next"


def test_two_that_register_at_once_get_two_versions(name):
    """Each dataset registered at the same time has a version of its own, and none is lost (R78)."""
    got = {}

    def register(path):
        got[path] = FileDataset.from_files(path).register(name, create_new_version=True).version

    threads = [threading.Thread(target=register, args=(f"/data/{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(got.values()) == [1, 2, 3, 4, 5, 6]
    for path, version in got.items():
        assert FileDataset.get_by_name(name, version).paths == (path,)


def test_names_do_not_run_into_each_other(name):
    """Versions of a dataset whose name begins with another's are none of that other."""
    FileDataset.from_files("/data/a").register(name)
    FileDataset.from_files("/data/b").register(f"{name}-v1")
    FileDataset.from_files("/data/c").register(f"more-{name}")

    assert FileDataset.versions(name) == [1]
    assert FileDataset.get_by_name(f"{name}-v1").paths == ("/data/b",)


def test_more_versions_than_a_page(name, monkeypatch):
    """All versions are found, however many there are."""
    monkeypatch.setattr("prefect_parallelrun.blocks.registered._PAGE", 2)
    for n in range(5):
        FileDataset.from_files(f"/data/{n}").register(name, create_new_version=True)

    assert FileDataset.versions(name) == [1, 2, 3, 4, 5]
    assert FileDataset.get_by_name(name).paths == ("/data/4",)


def test_what_is_not_there(name):
    """The error for an unknown name, version or kind says what there is."""
    with pytest.raises(DatasetError, match=f"no dataset is registered as '{name}'"):
        FileDataset.get_by_name(name)
    assert FileDataset.versions(name) == []
    FileDataset.from_files("/data/a").register(name)
    FileDataset.from_files("/data/b").register(name, create_new_version=True)

    with pytest.raises(DatasetError, match=r"no version 7; it is registered in versions 1, 2"):
        FileDataset.get_by_name(name, version=7)
    with pytest.raises(DatasetError, match=r"version 2 .* is a FileDataset.*FileDataset\.get_by"):
        TabularDataset.get_by_name(name)


@pytest.mark.parametrize("bad", ["", "Data", "a_b", "-a", "a-", "a/b", None, "ä"])
def test_a_name_that_prefect_would_refuse(bad):
    """A name that no block can have is refused before anything is asked of Prefect."""
    with pytest.raises(ConfigError, match="name="):
        FileDataset.from_files("/data/a").register(bad)
    with pytest.raises(ConfigError, match="name="):
        FileDataset.get_by_name(bad)


@pytest.mark.parametrize(
    "definition",
    [
        {},
        {"format": 2, "dataset": {}},
        {"format": 1, "dataset": {"record": "files:os", "fields": {}}},
        {"format": 1, "dataset": {"record": "no.such:Thing", "fields": {}}},
        {"format": 1, "dataset": "hello"},
        {"format": 1, "dataset": {"record": "storage:Storage", "fields": {"protocol": "s3"}}},
    ],
)
def test_a_definition_that_nobody_can_read(name, definition):
    """What another version registered, or somebody edited, is an error that says what to do."""
    assert keep_version(name, 1, definition, None)

    with pytest.raises(DatasetError, match=r"version 1 .*cannot be read.*register it again"):
        FileDataset.get_by_name(name)


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        (lambda fields: fields.pop("content"), r"lacks: \['content'\]"),
        (lambda fields: fields.update(compression="gz"), r"unknown here: \['compression'\]"),
        (lambda fields: fields["storage"]["fields"].update(region="x"), "region"),
        (lambda fields: fields["storage"]["fields"].pop("protocol"), "protocol"),
    ],
)
def test_a_definition_of_another_version(name, edited, says):
    """What another version writes down, or does not, is an error at once that names it (R78)."""
    FileDataset.from_files("s3://bucket/a").register(name)
    definition = Block.load(f"registered-dataset/{name}-v1").definition
    edited(definition["dataset"]["fields"])
    assert keep_version(f"{name}-edited", 1, definition, None)

    with pytest.raises(DatasetError, match=f"cannot be read by this version .*{says}.*again"):
        FileDataset.get_by_name(f"{name}-edited")


class Mine(FileDataset):
    """A dataset of a user's own class."""


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Mine.from_files("/data"), "a Mine cannot be registered.*register a FileDataset"),
        (FileDataset.from_files("/data/\udcff"), r"udcff' cannot be registered.*not UTF-8"),
    ],
)
def test_what_others_could_not_get(name, dataset, says):
    """A class of the user's own, and a path that is no text, are refused with what would be right (R78)."""
    with pytest.raises(ConfigError, match=says):
        dataset.register(name)
    assert FileDataset.versions(name) == []


@pytest.mark.parametrize("bad", [0, -1, "newest", True, 1.0])
def test_a_version_that_is_none(name, bad):
    """A version is a number from 1 on, or "latest"."""
    with pytest.raises(ConfigError, match="version="):
        FileDataset.get_by_name(name, version=bad)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (
            FileDataset.from_files("s3://b/a", storage_options={"secret": "wqTs81"}),
            "storage_options",
        ),
        (FileDataset.from_files("https://example.org/a?sig=wqTs81"), "signature|storage_options"),
        (
            TabularDataset.from_sql_query("postgresql+psycopg://me:wqTs81@localhost/a", "SELECT 1"),
            "password",
        ),
        (TabularDataset.from_pandas_dataframe(pd.DataFrame({"a": ["wqTs81"]})), "DataFrame"),
    ],
)
def test_a_secret_is_not_registered(name, dataset, says):
    """A dataset that holds a secret, or the rows themselves, is refused, and nothing is kept (R78)."""
    with pytest.raises(ConfigError, match=says) as caught:
        dataset.register(name)

    assert "wqTs81" not in str(caught.value)
    assert FileDataset.versions(name) == []


def test_partitions_come_back(name, tmp_path):
    """What `partition_by` made is registered with its keys and types (R78, R102)."""
    frame = pd.DataFrame({"store": ["a", "b", "a"], "sold": [1, 2, 3]})
    table = TabularDataset.from_pandas_dataframe(frame)
    made = table.partition_by(["store"], str(tmp_path / "parts"))
    made.register(name)

    found = TabularDataset.get_by_name(name)

    assert found.partition_keys == made.partition_keys == ("store",)
    assert found.to_pandas_dataframe().equals(made.to_pandas_dataframe())


def test_in_flows(name, files):
    """Datasets are registered and got in sync and async flows, and a step runs over them (R78)."""

    @flow
    def sync():
        return FileDataset.from_files(str(files.data)).register(name).version

    @flow
    async def asynchronous():
        found = FileDataset.get_by_name(name)
        return found.version, await asyncio.to_thread(lambda: FileDataset.get_by_name(name).version)

    @flow
    def score():
        return files.step(inputs=[FileDataset.get_by_name(name)])()

    assert sync() == 1
    assert asyncio.run(asynchronous()) == (1, 1)
    assert score().items.succeeded == 3
