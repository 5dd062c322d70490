"""Parts of a mini-batch: what `run()` gets of a table when only some of its rows are to run (R203)."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.planning import make_plan
from prefect_parallelrun_runtime.ahead import Ahead
from prefect_parallelrun_runtime.load import LoadError, load, needs_reading

ROWS = 30


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "n": np.arange(ROWS),
            "x": np.arange(ROWS) / 4,
            "name": [f"row {place}" for place in range(ROWS)],
        }
    )


def csv(folder):
    path = folder / "rows.csv"
    rows().to_csv(path, index=False)
    return TabularDataset.from_delimited_files(path)


def csv_with_newlines(folder):
    path = folder / "rows.csv"
    path.write_text("n,name\n" + "".join(f'{n},"a\n{n}"\n' for n in range(ROWS)))
    return TabularDataset.from_delimited_files(path, support_multi_line=True)


def json_lines(folder):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows().to_dict("records")))
    return TabularDataset.from_json_lines_files(path)


def parquet(folder):
    path = folder / "rows.parquet"
    rows().to_parquet(path, row_group_size=10)
    return TabularDataset.from_parquet_files(path)


READERS = [csv, csv_with_newlines, json_lines, parquet]
SIZES = ["100", "1MB"]
"""Several mini-batches to a file, and one that has all of it."""


def planned(dataset, size, scratch):
    plan = make_plan([dataset], [dataset.list_files()], mini_batch_size=size, scratch=scratch)
    return plan.readers[0], [batch.work for batch in plan]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", READERS)
def test_any_part_is_those_rows_of_the_mini_batch(make, size, tmp_path):
    """A part has the rows from its first to before its stop, numbered from 0, with the same types (R203)."""
    reader, works = planned(make(tmp_path), size, tmp_path)

    for work in works:
        whole = load(work, reader).data
        for first in range(0, len(whole), 3):
            for stop in range(first + 1, len(whole) + 1, 4):
                part = load({**work, "part": [first, stop]}, reader)
                expected = whole.iloc[first:stop].reset_index(drop=True)
                pd.testing.assert_frame_equal(part.data, expected)
                assert part.items == stop - first
                in_context = part.dataset.to_pandas_dataframe()
                pd.testing.assert_frame_equal(in_context, expected)


@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize("part", [[0, ROWS + 1], [ROWS, ROWS + 1], [5, 5], [-1, 2]])
def test_a_part_that_is_not_there_is_an_error(make, part, tmp_path):
    """A part beyond the rows that there are is never fewer rows in silence (R208)."""
    reader, (work,) = planned(make(tmp_path), "1MB", tmp_path)

    with pytest.raises(LoadError, match=r"rows\..*it has 30 rows now: the file was changed"):
        load({**work, "part": part}, reader)


def test_the_first_rows_of_a_file_have_parts_too(tmp_path):
    """Of `take(n)` a part is of the n rows, and none of those behind them (R203)."""
    reader, (work,) = planned(csv(tmp_path).take(10), "1MB", tmp_path)

    assert load({**work, "part": [8, 10]}, reader).data["n"].tolist() == [8, 9]
    with pytest.raises(LoadError, match="has 10 rows"):
        load({**work, "part": [8, 11]}, reader)


def test_an_index_of_the_users_own_is_kept(tmp_path):
    """Only row numbers begin anew; labels that a Parquet file has for its rows stay with them."""
    path = tmp_path / "rows.parquet"
    rows().set_index("name").to_parquet(path)
    reader, (work,) = planned(TabularDataset.from_parquet_files(path), "1MB", tmp_path)

    part = load({**work, "part": [3, 5]}, reader).data

    assert part.index.tolist() == ["row 3", "row 4"]


def test_a_script_may_write_into_its_part(tmp_path):
    """A part is a table of its own: to add a column to it raises no warning."""
    reader, (work,) = planned(csv(tmp_path), "1MB", tmp_path)
    part = load({**work, "part": [3, 5]}, reader).data

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part["y"] = 1
        part.loc[0, "x"] = 7.0

    assert part["x"].tolist() == [7.0, 1.0]


def test_a_part_is_loaded_ahead_like_any_other(tmp_path):
    """The thread that loads the next mini-batch loads its part, and raises the same error."""
    reader, (work,) = planned(csv(tmp_path), "1MB", tmp_path)

    assert needs_reading({**work, "part": [3, 5]})
    assert Ahead({**work, "part": [3, 5]}, reader).take().data["n"].tolist() == [3, 4]
    with pytest.raises(LoadError, match="has 30 rows"):
        Ahead({**work, "part": [3, 31]}, reader).take()


@pytest.fixture(scope="module")
def one_csv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    reader, (work,) = planned(csv(folder), "1MB", folder)
    return reader, work


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, ROWS - 1), max_size=8))
def test_the_parts_of_a_mini_batch_are_its_rows_once(one_csv, cuts):
    """However a mini-batch is cut, its parts together are all its rows, each once and in order (R200)."""
    reader, work = one_csv
    edges = [0, *sorted(cuts), ROWS]

    parts = [
        load({**work, "part": [first, stop]}, reader).data
        for first, stop in itertools.pairwise(edges)
    ]

    together = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(together, load(work, reader).data)
