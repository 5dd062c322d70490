"""Tables through the real path: what is planned, read ahead and given to run() is the table, each row once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from prefect_parallelrun.datasets import TabularDataset
from tests.dask.conftest import lines

DESCRIBE = """
    def run(mini_batch):
        rows = mini_batch.to_dict("records")
        kinds = " ".join(map(str, mini_batch.dtypes))
        return [f"{row['key']}|{row['value']!r}|{kinds}" for row in rows]
"""
"""Gives for each row its key, its value, and the dtypes of the mini-batch that it came in."""


def described(table: pd.DataFrame) -> list[str]:
    """Return what DESCRIBE gives for the whole table."""
    kinds = " ".join(map(str, table.dtypes))
    return [f"{row['key']}|{row['value']!r}|{kinds}" for row in table.to_dict("records")]


def numbers(count: int) -> pd.DataFrame:
    return pd.DataFrame({"key": range(count), "value": [n / 2 for n in range(count)]})


@pytest.mark.parametrize("kind", ["JSON lines", "Parquet", "gzip", "DataFrame"])
def test_each_row_once_in_order_and_typed_as_the_whole(run, tmp_path, kind):
    """R7, R23-R25, R111: whatever the table is in, run() gets its rows, in order, with its dtypes."""
    table = numbers(1_000)
    if kind == "JSON lines":
        table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        dataset = TabularDataset.from_json_lines_files(tmp_path / "a.jsonl")
    elif kind == "Parquet":
        table.to_parquet(tmp_path / "a.parquet", row_group_size=100)
        dataset = TabularDataset.from_parquet_files(tmp_path / "a.parquet")
    elif kind == "gzip":
        data = table.to_csv(index=False).encode()
        (tmp_path / "a.csv.gz").write_bytes(gzip.compress(data))
        dataset = TabularDataset.from_delimited_files(tmp_path / "a.csv.gz")
    else:
        dataset = TabularDataset.from_pandas_dataframe(table)

    result = run(DESCRIBE, [dataset], mini_batch_size="3KB")

    assert lines(result) == described(table)
    assert (result.items.total, result.items.succeeded) == (1_000, 1_000)
    # A compressed file cannot be cut.
    assert (result.mini_batches.total == 1) == (kind == "gzip")


def test_values_that_hold_newlines(run, tmp_path):
    """R24: with support_multi_line no quoted newline ends a row, wherever the table is cut."""
    table = pd.DataFrame({"key": range(500), "value": [f"one\n{n},\ntwo" for n in range(500)]})
    table.to_csv(tmp_path / "a.csv", index=False)
    dataset = TabularDataset.from_delimited_files(tmp_path / "a.csv", support_multi_line=True)

    result = run(DESCRIBE, [dataset], mini_batch_size="1KB")

    assert lines(result) == described(table)
    assert result.mini_batches.total > 5


@pytest.mark.parametrize("multi_line", [False, True])
def test_a_table_file_that_vanishes_fails_its_own_mini_batch(run, tmp_path, multi_line):
    """A file that is gone when it is its turn: its mini-batch fails and says so; the others' rows are kept."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for part in range(10):
        numbers(100)[part * 10 : part * 10 + 10].to_csv(folder / f"{part}.csv", index=False)
    result = run(
        """
        import os

        def init():
            if os.path.exists(os.environ["LAST"]):
                os.unlink(os.environ["LAST"])

        def run(mini_batch):
            return mini_batch["key"].tolist()
        """,
        [TabularDataset.from_delimited_files(folder, support_multi_line=multi_line)],
        process_count_per_node=1,
        run_max_try=1,
        error_threshold=-1,
        environment_variables={"LAST": str(folder / "9.csv")},
    )

    assert lines(result) == [str(n) for n in range(90)]
    assert (result.mini_batches.succeeded, result.mini_batches.failed) == (9, 1)
    text = Path(result.logs_directory, "user", "error.txt").read_text()
    assert "9.csv vanished" in text


def test_a_value_that_does_not_fit_fails_its_own_mini_batch(run, tmp_path, monkeypatch):
    """R111: error.txt names file, row and column of what the sample did not show, and what to do."""
    monkeypatch.setattr("prefect_parallelrun.datasets.sampling.SAMPLE_BYTES", 12 << 10)
    path = tmp_path / "late.csv"
    rows = [f"{n},{n}" for n in range(10_000)]
    rows[3_000] = "3000,x"
    path.write_text("\n".join(["key,value", *rows]))

    result = run(
        """
        def run(mini_batch):
            return mini_batch["key"].tolist()
        """,
        [TabularDataset.from_delimited_files(path)],
        mini_batch_size="4KB",
        run_max_try=1,
        error_threshold=-1,
    )

    kept = {int(key) for key in lines(result)}
    assert 3_000 not in kept
    assert result.mini_batches.failed == 1
    assert len(kept) > 9_000
    text = Path(result.logs_directory, "user", "error.txt").read_text()
    assert f"{path}, row 3,001: column 'value' is int64, and 'x' does not fit" in text
    assert "column_types={'value': 'string'}" in text
