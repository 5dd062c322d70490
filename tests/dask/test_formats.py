"""Output formats through the whole path: worker process, driver, journal, file, and back (R221)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from prefect_parallelrun import TabularDataset
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.verify import verify

FRAMES = """
    import pandas as pd
    from pathlib import Path

    def run(mini_batch):
        names = [Path(p).stem for p in mini_batch]
        return pd.DataFrame({
            "name": [f'{name}, "é"\\n' for name in names],
            "number": pd.array([None if int(n) % 10 == 3 else int(n) for n in names], dtype="Int64"),
            "half": [int(n) / 2 for n in names],
            "at": pd.to_datetime(["2024-02-29T12:00"] * len(names)).tz_localize("Europe/Berlin"),
        })
"""


def expected_frame():
    numbers = list(range(100))
    return pd.DataFrame(
        {
            "name": [f'{n:02d}, "é"\n' for n in numbers],
            "number": pd.array([None if n % 10 == 3 else n for n in numbers], dtype="Int64"),
            "half": [n / 2 for n in numbers],
            "at": pd.to_datetime(["2024-02-29T12:00"] * 100).tz_localize("Europe/Berlin"),
        }
    )


def run_paths(result):
    return RunPaths(Path(result.run_directory))


@pytest.mark.parametrize("order", ["input", "completion"])
@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_a_format_keeps_the_values(run, numbers, output_format, order):
    """Whatever is in the values, pandas reads it back, in the order that was asked for (R220, R221)."""
    result = run(
        FRAMES,
        numbers,
        mini_batch_size=7,
        output_format=output_format,
        output_order=order,
        append_row_file_name=f"out.{output_format}",
    )

    frame = result.to_pandas()
    if order == "completion":
        frame = frame.sort_values("half", ignore_index=True)
    wanted = expected_frame()
    if output_format != "parquet":  # these have no types
        frame["at"] = pd.to_datetime(frame["at"]).astype(wanted["at"].dtype)
        frame["number"] = frame["number"].astype("Int64")
    pd.testing.assert_frame_equal(frame, wanted)
    assert verify(run_paths(result)).findings == ()


@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_the_output_has_the_same_bytes_for_any_number_of_processes(run, numbers, output_format):
    """R220: one process and four write the same file, also where mini-batches differ in their types."""
    script = """
        from pathlib import Path
        import time

        def run(mini_batch):
            numbers = [int(Path(p).stem) for p in mini_batch]
            time.sleep(0.002 * (numbers[0] % 5))
            half = [n / 2 if numbers[0] % 3 else (None if numbers[0] % 2 else n) for n in numbers]
            return [{"n": n, "half": h} for n, h in zip(numbers, half)]
    """
    files = [
        Path(
            run(
                script,
                numbers,
                mini_batch_size=2,
                output_format=output_format,
                process_count_per_node=count,
            ).append_row_file
        ).read_bytes()
        for count in (1, 4)
    ]

    assert files[0] == files[1]


def test_rows_that_do_not_fit_fail_their_mini_batch_alone(run, numbers):
    """Other columns than the run's are a failed mini-batch that names them; the others go on (R221)."""
    script = """
        from pathlib import Path

        def run(mini_batch):
            names = [Path(p).stem for p in mini_batch]
            if "42" in names:
                return [{"n": name, "more": 1} for name in names]
            return [{"n": name, "half": int(name) / 2} for name in names]
    """
    result = run(script, numbers, output_format="csv", error_threshold=10, process_count_per_node=1)

    assert result.items.failed == 10
    assert len(result.to_pandas()) == 90
    record = json.loads(run_paths(result).failed_items.read_text().splitlines()[0])
    assert record["reason"] == "bad_return"
    assert "lacks 'half' and adds 'more'" in str(record["error"])
    assert "lacks 'half' and adds 'more'" in Path(record["log_files"][0]).read_text()
    with Journal(run_paths(result).journal) as journal:
        attempts = [one for one in journal.attempts() if one.error is not None]
    assert [one.attempt for one in attempts] == [1, 2, 3]
    assert verify(run_paths(result)).findings == ()


def test_rows_of_any_structure_have_one_schema(run, numbers):
    """Structures with other fields, or none, are published; what would lose its time fails (R206, R221)."""
    script = """
        from datetime import date, datetime
        from pathlib import Path

        def run(mini_batch):
            rows = []
            for n in (int(Path(p).stem) for p in mini_batch):
                meta = {} if n < 40 else {"z": n} if n < 60 else {"a": 0.5, "z": n}
                rows.append({"n": n, "meta": meta, "none": [{}], "day": date(2024, 1, 1)})
                if n == 99:
                    rows[-1]["day"] = datetime(2024, 1, 1, 12)
            return rows
    """
    result = run(script, numbers, output_format="parquet", error_threshold=10, mini_batch_size=7)

    found = pq.read_table(result.append_row_file)
    assert found.column("n").to_pylist() == list(range(98))
    metas = found.column("meta").to_pylist()
    assert metas[0] == {"z": None, "a": None}
    assert metas[-1] == {"z": 97, "a": 0.5}
    assert found.column("none").to_pylist() == [[None]] * 98
    (record,) = map(json.loads, run_paths(result).failed_items.read_text().splitlines()[:1])
    assert "'day' with a date, " in str(record["error"])
    assert verify(run_paths(result)).findings == ()


def test_a_number_that_no_type_takes_fails_its_mini_batch(run, numbers):
    """Whole numbers beyond int64 among those with a sign cost their own mini-batch, not the run (R221)."""
    script = """
        from pathlib import Path
        import numpy as np
        import pandas as pd

        def run(mini_batch):
            n = np.array([int(Path(p).stem) for p in mini_batch])
            return pd.DataFrame({"n": n.astype("u8") + np.uint64(2**63) if n[0] == 50 else n})
    """
    result = run(
        script,
        numbers,
        output_format="parquet",
        mini_batch_size=50,
        process_count_per_node=1,
        error_threshold=-1,
        run_max_try=1,
    )

    assert result.to_pandas()["n"].tolist() == list(range(50))
    (record,) = map(json.loads, run_paths(result).failed_items.read_text().splitlines()[:1])
    assert "'n' as uint64, but it is int64" in str(record["error"])
    assert f"{2**63 + 50} in element 0" in str(record["error"])


def test_the_row_that_does_not_fit_is_found(run, numbers):
    """R203: with isolate_failures, the rows around one of another type are kept."""
    script = """
        from pathlib import Path

        def run(mini_batch):
            return [{"value": "bad" if "42" in p else int(Path(p).stem) / 2} for p in mini_batch]
    """
    result = run(
        script,
        numbers,
        output_format="parquet",
        mini_batch_size=20,
        isolate_failures=True,
        error_threshold=1,
        run_max_try=1,
        process_count_per_node=1,  # in order: the first rows settle the types
    )

    frame = result.to_pandas()
    assert frame["value"].tolist() == [n / 2 for n in range(100) if n != 42]
    (record,) = map(json.loads, run_paths(result).failed_items.read_text().splitlines())
    assert record["item"].endswith("42.txt")
    assert "'value' as string" in str(record["error"]) or "not of one type" in record["message"]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_schema(run, numbers, tmp_path):
    """R201: what earlier sittings wrote decides, and the file is that of a run in one sitting."""
    script = """
        from pathlib import Path

        def run(mini_batch):
            names = [Path(p).stem for p in mini_batch]
            if int(names[0]) >= 50 and not Path(FLAG).exists():
                raise RuntimeError("not yet")
            if names[0] == "90" and Path(FLAG).read_text():
                return [{"n": Path(FLAG).read_text()} for _ in names]
            return [{"n": int(name), "late": 1.5} if name > "70" else {"n": int(name)} for name in names]
    """.replace("FLAG", repr(str(tmp_path / "flag")))
    folder = tmp_path / "runs" / "one"
    settings = {"output_format": "parquet", "run_folder": folder, "run_max_try": 1}
    with pytest.raises(ParallelRunError, match="not yet"):
        run(script, numbers, **settings)

    (tmp_path / "flag").write_text("text")
    with pytest.raises(ParallelRunError, match="column 'n' as string, but it is int64"):
        run(script, numbers, **settings)

    (tmp_path / "flag").write_text("")
    resumed = run(script, numbers, **settings)
    in_one = run(script, numbers, output_format="parquet")

    assert resumed.mini_batches.reused > 0
    assert Path(resumed.append_row_file).read_bytes() == Path(in_one.append_row_file).read_bytes()
    assert resumed.to_pandas()["n"].tolist() == list(range(100))
    assert verify(run_paths(resumed)).findings == ()


def test_a_parquet_output_feeds_the_next_step(run, numbers):
    """The one file of a step is a table for the next, with its types."""
    first = run(FRAMES, numbers, output_format="parquet", append_row_file_name="rows.parquet")
    second = run(
        """
        def run(mini_batch):
            assert str(mini_batch["number"].dtype) == "Int64", mini_batch.dtypes
            return (mini_batch["half"] * 2).rename("twice")
        """,
        [TabularDataset.from_parquet_files(first.append_row_file)],
        output_format="csv",
    )

    assert second.to_pandas()["twice"].tolist() == [float(n) for n in range(100)]


@pytest.mark.parametrize("output_format", ["csv", "jsonl", "parquet"])
def test_an_output_without_rows(run, tmp_path, output_format):
    """A run over nothing has an empty output that can be read."""
    (tmp_path / "empty.csv").write_text("a,b\n")
    table = TabularDataset.from_delimited_files(str(tmp_path / "empty.csv"))
    result = run("def run(mini_batch): return mini_batch", [table], output_format=output_format)

    assert result.to_pandas().empty
    assert verify(run_paths(result)).findings == ()


def test_a_script_without_pyarrow_is_told(run, numbers):
    """Parquet needs pyarrow where the script runs; the error names the interpreter."""
    script = """
        import sys
        sys.modules["pyarrow"] = None

        def run(mini_batch):
            return [1 for _ in mini_batch]
    """
    with pytest.raises(ParallelRunError, match=r"needs pyarrow in the environment.*python"):
        run(script, numbers, output_format="parquet", run_max_try=1)


def test_an_output_that_was_tampered_with_is_found(run, numbers):
    """R208: verify finds a value, a row or a column that is not the run's, and damage."""
    result = run(FRAMES, numbers, output_format="parquet", append_row_file_name="o.parquet")
    file, paths = Path(result.append_row_file), run_paths(result)
    table, whole = pq.read_table(file), file.read_bytes()
    assert verify(paths).findings == ()
    halves = table["half"].to_pylist()
    place = table.column_names.index("half")
    other = table.set_column(place, table.schema.field("half"), [[0.5, *halves[1:]]])
    tampered = [
        (other, {}, "differs from the rows of the run in row group 0"),
        (table.slice(0, 99), {}, "row group 0"),
        (table, {"row_group_size": 50}, "row group 0"),
        (table.drop_columns(["half"]), {}, "other columns"),
        (table.replace_schema_metadata(None), {}, "other metadata"),
    ]

    for content, how, words in tampered:
        pq.write_table(content, file, **how)
        (finding,) = verify(paths).findings
        assert words in finding
    file.write_bytes(whole[:-5])
    (finding,) = verify(paths).findings
    assert "cannot be read as Parquet" in finding
    file.write_bytes(whole)
    assert verify(paths).findings == ()
    with contextlib.closing(sqlite3.connect(paths.journal)) as journal, journal:
        journal.execute("UPDATE attempts SET rows = rows + 1 WHERE mini_batch = 3")
    (finding,) = verify(paths).findings
    assert "has 100 rows, and run() returned 101 by the journal" in finding
