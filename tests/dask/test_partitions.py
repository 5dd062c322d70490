"""Partition keys through the real path: one `run()` for each combination, which is told its values (R101, R102)."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from tests.dask.conftest import lines

SONGS = [
    "ann/summer/jazz.wav",
    "ann/summer/rock.wav",
    "ann/winter/jazz.wav",
    "bob/winter/jazz.wav",
    "bob/winter/rock.wav",
]


def make_files(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def sales() -> pd.DataFrame:
    rows = [
        (store, brand, week, store * 100.0 + week)
        for week in range(4)
        for store in (10, 9)
        for brand in ("x", "y/z", None)
    ]
    return pd.DataFrame(rows, columns=["store", "brand", "week", "sold"])


def test_the_sample_for_folders(run, tmp_path):
    """R101, R102: Azure's own sample script for partitioned files runs unchanged: it gets a list of
    paths, the values of the configured keys alone, and the mini-batch as a dataset."""
    folder = make_files(tmp_path / "songs", SONGS)
    songs = FileDataset.from_files(folder, partition_format=".../{user}/{season}/{genres}.wav")

    result = run(
        """
        import os
        import json
        from pathlib import Path

        def run(mini_batch, mini_batch_context):
            files = mini_batch_context.dataset.to_path()
            assert list(mini_batch) == files and all(os.path.isabs(path) for path in files)
            names = [Path(path).read_text() for path in mini_batch]
            key = mini_batch_context.partition_key_value
            row = json.dumps([mini_batch_context.minibatch_index, key, names])
            return [row] * len(mini_batch)
        """,
        [songs.as_named_input("songs")],
        partition_keys=["user", "genres"],
    )

    rows = list(dict.fromkeys(lines(result)))
    assert [json.loads(row) for row in rows] == [
        [0, {"user": "ann", "genres": "jazz"}, [SONGS[0], SONGS[2]]],
        [1, {"user": "ann", "genres": "rock"}, [SONGS[1]]],
        [2, {"user": "bob", "genres": "jazz"}, [SONGS[3]]],
        [3, {"user": "bob", "genres": "rock"}, [SONGS[4]]],
    ]
    assert (result.mini_batches.total, result.items.succeeded) == (4, 5)


def test_the_sample_for_tables(run, tmp_path):
    """R101, R102: Azure's sample for partitioned tables: each combination is one DataFrame with the
    columns and dtypes of the table, although the key columns are in the folders' names alone."""
    table = sales()
    dataset = TabularDataset.from_pandas_dataframe(table).partition_by(
        ["store", "brand"], tmp_path / "partitioned"
    )

    result = run(
        """
        def run(mini_batch, mini_batch_context):
            same = mini_batch_context.dataset.to_pandas_dataframe()
            assert same.equals(mini_batch) and same is not mini_batch
            kinds = " ".join(map(str, mini_batch.dtypes))
            mini_batch["key"] = repr(mini_batch_context.partition_key_value)
            mini_batch["kinds"] = kinds
            return [repr(list(row)) for row in mini_batch.itertuples(index=False, name=None)]
        """,
        [dataset],
        partition_keys=["store", "brand"],
    )

    kinds = " ".join(map(str, table.dtypes))
    expected = [
        repr([*row, repr({"store": store, "brand": None if pd.isna(brand) else brand}), kinds])
        for (store, brand), rows in table.groupby(["store", "brand"], dropna=False)
        for row in rows.itertuples(index=False, name=None)
    ]
    assert sorted(lines(result)) == sorted(expected)
    assert result.mini_batches.total == 6


def test_keys_that_are_not_named_are_merged(run, tmp_path):
    """R102: by store alone, each mini-batch has the rows of all brands, in path order; then by size,
    without partition keys, and nobody sees a difference but in the cut."""
    made = TabularDataset.from_pandas_dataframe(sales().astype({"brand": "str"})).partition_by(
        ["store", "brand"], tmp_path / "partitioned"
    )
    script = """
        def run(mini_batch, context):
            return [f"{context.partition_key_value} {s} {b} {w}" for s, b, w, _ in mini_batch.to_numpy()]
    """

    by_store = run(script, [made], partition_keys=["store"])
    by_size = run(script, [made], mini_batch_size="1KB")

    assert by_store.mini_batches.total == 2
    assert lines(by_store)[0] == "{'store': 10} 10 nan 0"
    rows = [row.partition("} ")[2] for row in lines(by_store)]
    assert rows == [row.removeprefix("None ") for row in lines(by_size)]
    assert len(rows) == len(sales())


def test_dates_in_paths(run, tmp_path):
    """R102: `{date:yyyy/MM/dd}` is a datetime in the context and a column of datetime64[ns]; a text
    format is read in mini-batches by size as well, with the same columns."""
    for day, count in (("01", 3), ("02", 2)):
        folder = tmp_path / "logs" / "Accounts" / "2019" / "03" / day
        folder.mkdir(parents=True)
        lines_of_day = [json.dumps({"n": n}) + "\n" for n in range(count)]
        (folder / "data.jsonl").write_text("".join(lines_of_day))
    dataset = TabularDataset.from_json_lines_files(
        tmp_path / "logs", partition_format="/{Department}/{date:yyyy/MM/dd}/data.jsonl"
    )
    script = """
        def run(mini_batch, context):
            assert list(mini_batch.columns) == ["n", "Department", "date"]
            assert str(mini_batch.dtypes["date"]) == "datetime64[ns]"
            return [f"{context.partition_key_value}|{d.day} {n}" for n, _, d in mini_batch.to_numpy()]
    """

    by_date = run(script, [dataset], partition_keys=["date"])
    by_size = run(script, [dataset], mini_batch_size="10")

    days = [1, 1, 1, 2, 2]
    assert [row.partition("|")[0] for row in lines(by_date)] == [
        str({"date": datetime(2019, 3, day)}) for day in days
    ]
    ends = ["1 0", "1 1", "1 2", "2 0", "2 1"]
    assert [row.partition("|")[2] for row in lines(by_date)] == ends
    assert lines(by_size) == [f"None|{end}" for end in ends]
    assert by_size.mini_batches.total > by_date.mini_batches.total == 2


def test_a_failed_mini_batch_names_its_key(run, tmp_path):
    """R102, R206: the first thing that an error tells of the items are the values of the keys."""
    folder = make_files(tmp_path / "songs", SONGS)
    songs = FileDataset.from_files(folder, partition_format="{user}/{season}/*.wav")

    result = run(
        """
        def run(mini_batch, context):
            if context.partition_key_value == {"season": "winter"}:
                raise ValueError("too cold")
            return mini_batch
        """,
        [songs],
        partition_keys=["season"],
        run_max_try=1,
        error_threshold=-1,
    )

    assert (result.items.succeeded, result.items.failed) == (2, 3)
    logs = Path(result.logs_directory)
    told = [
        path.read_text() for path in logs.rglob("*") if path.is_file() and path.suffix == ".txt"
    ]
    assert any("season=winter, " + str(folder / SONGS[2]) in text for text in told)


@pytest.mark.parametrize("kind", ["files", "rows"])
def test_items_are_isolated_within_a_key(run, tmp_path, kind):
    """R102, R203: a mini-batch of a key is split like any other; its parts know the key as well."""
    if kind == "files":
        folder = make_files(tmp_path / "in", [f"{who}/{n}" for who in "ab" for n in range(6)])
        dataset = FileDataset.from_files(folder, partition_format="{who}/*")
    else:
        table = pd.DataFrame({"who": list("ab") * 6, "n": range(12), "part": [0] * 6 + [1] * 6})
        dataset = TabularDataset.from_pandas_dataframe(table).partition_by(
            ["who", "part"], tmp_path / "in"
        )

    result = run(
        """
        import os

        def run(mini_batch, context):
            who = context.partition_key_value["who"]
            if isinstance(mini_batch, list):
                names = [os.path.basename(path) for path in mini_batch]
            else:
                assert set(mini_batch["who"]) == {who}
                names = [str(n // 2) for n in mini_batch["n"]]
            if who == "b" and "3" in names:
                raise ValueError("3")
            return [who + name for name in names]
        """,
        [dataset],
        partition_keys=["who"],
        run_max_try=1,
        error_threshold=1,
        isolate_failures=True,
    )

    assert lines(result) == [f"a{n}" for n in range(6)] + [f"b{n}" for n in range(6) if n != 3]
    assert (result.items.succeeded, result.items.failed) == (11, 1)


def test_debug_tells_the_key_too(tmp_path):
    """R101: in the user's own process the script is given the same as in a worker process."""
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver import inline

    folder = make_files(tmp_path / "songs", SONGS)
    (tmp_path / "score.py").write_text(
        "def run(mini_batch, context):\n"
        "    return [(context.partition_key_value, context.minibatch_index)] * len(mini_batch)\n"
    )
    definition = StepDefinition(
        name="step",
        config=ParallelRunConfig(str(tmp_path / "score.py"), partition_keys=["season"]),
        inputs=(FileDataset.from_files(folder, partition_format="{season}/*.wav"),),
    )

    assert inline.debug(definition, mini_batches=2) == [
        [({"season": "summer"}, 0)] * 2,
        [({"season": "winter"}, 1)] * 3,
    ]


@pytest.mark.parametrize("kind", ["files", "table"])
def test_what_is_fetched_to_the_nodes_has_keys(run, tmp_path, kind):
    """R101, R102: `as_download` changes nothing of how an input is cut, nor of what the script sees."""
    if kind == "files":
        folder = make_files(tmp_path / "in", SONGS)
        dataset = FileDataset.from_files(folder, partition_format="{user}/*/*.wav")
        per_user = {"ann": 3, "bob": 2}
    else:
        table = pd.DataFrame(
            {"user": ["ann", "bob", "ann"], "season": ["s", "s", "w"], "n": [1, 2, 3]}
        )
        dataset = TabularDataset.from_pandas_dataframe(table).partition_by(
            ["user", "season"], tmp_path / "in"
        )
        per_user = {"ann": 2, "bob": 1}

    result = run(
        """
        def run(mini_batch, context):
            if isinstance(mini_batch, list):
                assert [open(path).read()[:3] for path in mini_batch] == [path.split("/")[-3] for path in mini_batch]
            return [context.partition_key_value["user"]] * len(mini_batch)
        """,
        [dataset.as_download()],
        partition_keys=["user"],
    )

    assert lines(result) == [user for user, count in per_user.items() for _ in range(count)]
