"""Runs that take over what another has done: what they tell, and what becomes of a base that fails (R202)."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path

import pytest

from prefect_parallelrun.driver import sitting
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import Counts
from prefect_parallelrun.output import taking_over
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.report_again import report_of
from prefect_parallelrun.report.verify import verify
from prefect_parallelrun.run_record import RunRecord

SCRIPT = """
    from pathlib import Path

    def init():
        print("init")

    def run(mini_batch):
        texts = [Path(path).read_text() for path in mini_batch]
        if "bad" in texts:
            raise ValueError("a bad file")
        return [f"{Path(path).name}={text}" for path, text in zip(mini_batch, texts)]
"""


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(9):
        (folder / f"{n}").write_text("bad" if n == 4 else "1")
    return folder


def rows_of(folder: Path) -> list[str]:
    return [f"{path.name}={path.read_text()}" for path in sorted(folder.iterdir())]


def test_what_was_taken_over_is_told_apart(run, data, caplog):
    """Log, result, job report, page and `verify` say of which run it is; attempts, nodes and times are of
    what this run did itself. Of a mini-batch that was split, the parts that succeeded hold (R202, R203)."""
    caplog.set_level(logging.INFO)
    settings = {"mini_batch_size": 3, "isolate_failures": True, "run_max_try": 1}
    base = run(SCRIPT, data, error_threshold=5, **settings)
    assert base.items == Counts(total=9, succeeded=8, failed=1)
    (data / "9").write_text("2")
    other = RunPaths(Path(base.run_directory))

    result = run(SCRIPT, data, error_threshold=5, bases=[other], **settings)

    paths = RunPaths(Path(result.run_directory))
    assert Path(result.append_row_file).read_text().split() == [
        row for row in rows_of(data) if "bad" not in row
    ]
    assert result.mini_batches == Counts(total=4, succeeded=4, failed=0, reused=2)
    assert result.items == Counts(total=10, succeeded=9, failed=1, reused=8)
    assert not result.reused
    assert f"taken over of run {other.root.name}: 2 mini-batches" in caplog.text
    assert RunRecord.read(paths).base == other.root.name
    found = verify(paths)
    assert found.findings == ()
    assert found.closing.endswith(f" (items), of which 8 are taken over of run {other.root.name}")
    taken = f"of these taken over of run {other.root.name}, or done before the run was resumed: 8"
    assert taken in paths.job_result.read_text()
    with paths.processed_mini_batches.open(newline="") as file:
        table = list(csv.DictReader(file))
    own = [row for row in table if row["Picked Count"] != "0"]
    assert result.attempts == len(own) == 2
    assert sum(int(row["Succeeded"]) + int(row["Failed"]) for row in table) == 10
    (failed,) = map(json.loads, paths.failed_items.read_text().splitlines())
    assert failed["item"] == str(data / "4")
    with paths.node_summary.open(newline="") as file:
        assert [row["Attempts"] for row in csv.DictReader(file)] == ["2"]
    assert f"run {other.root.name}" in report_of(paths).read_text()


def test_a_base_that_is_lost_on_the_way(run, data, monkeypatch, caplog):
    """Where it cannot be read when its rows are wanted, all is run, and the record tells why (R202, R210)."""
    (data / "4").write_text("1")
    other = RunPaths(Path(run(SCRIPT, data, mini_batch_size=3).run_directory))
    real = taking_over.take_over

    def lost(*args, **keywords):
        other.partial.unlink()
        return real(*args, **keywords)

    monkeypatch.setattr(taking_over, "take_over", lost)
    result = run(SCRIPT, data, mini_batch_size=3, bases=[other])

    assert (result.mini_batches.reused, result.attempts) == (0, 3)
    assert Path(result.append_row_file).read_text().split() == rows_of(data)
    record = RunRecord.read(RunPaths(Path(result.run_directory)))
    assert record.base is None
    assert record.reuse[0].startswith(f"nothing reused of run {other.root.name}: ")
    assert "rows of mini-batches that are done are lost" in record.reuse[0]
    assert record.reuse[0] in caplog.text


def test_what_was_taken_over_is_of_one_plan(run, data, tmp_path, monkeypatch):
    """A sitting that ended before it wrote down its plan leaves nothing to the next one, which may have
    another plan (R202)."""
    (data / "4").write_text("1")
    other = RunPaths(Path(run(SCRIPT, data, mini_batch_size=3).run_directory))
    folder = tmp_path / "runs" / "again"

    def full(*_, **__):
        raise OutputError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(sitting, "OutputWriter", full)
        with pytest.raises(OutputError, match="the disk is full"):
            run(SCRIPT, data, mini_batch_size=3, bases=[other], run_folder=folder)
    assert RunPaths(folder).partial.stat().st_size

    result = run(SCRIPT, data, mini_batch_size=2, run_folder=folder)

    assert (result.mini_batches.total, result.attempts, result.reused) == (5, 5, False)
    assert Path(result.append_row_file).read_text().split() == rows_of(data)
    assert verify(RunPaths(folder)).findings == ()


def test_a_base_in_which_all_is_done_in_part(run, data):
    """What is done of its mini-batches is taken over, and only the rest of them runs (R202, R210)."""
    settings = {"mini_batch_size": 9, "isolate_failures": True, "run_max_try": 1}
    other = RunPaths(Path(run(SCRIPT, data, error_threshold=5, **settings).run_directory))
    (data / "9").write_text("2")

    result = run(SCRIPT, data, error_threshold=5, bases=[other], **settings)

    assert result.items == Counts(total=10, succeeded=9, failed=1, reused=8)
    assert result.attempts == 2
    taken, left = RunRecord.read(RunPaths(Path(result.run_directory))).reuse
    assert taken.startswith(f"run {other.root.name} (Completed with 1 failed")
    assert left == (
        "mini-batches that did not change and run all the same: 1 done in part (the rest runs)"
    )


def test_a_base_with_parquet_rows_that_are_damaged(run, data):
    """Where only reading its rows shows it, everything runs (R202)."""
    (data / "4").write_text("1")
    script = SCRIPT.replace("return [f", "import pandas; return pandas.DataFrame([f").replace(
        "zip(mini_batch, texts)]", "zip(mini_batch, texts)], columns=['n'])"
    )
    settings = {"mini_batch_size": 3, "output_format": "parquet"}
    other = RunPaths(Path(run(script, data, **settings).run_directory))
    other.partial.write_bytes(os.urandom(other.partial.stat().st_size))

    result = run(script, data, bases=[other], **settings)

    assert (result.mini_batches.reused, result.attempts) == (0, 3)
    assert result.to_pandas().to_numpy().ravel().tolist() == rows_of(data)
    record = RunRecord.read(RunPaths(Path(result.run_directory)))
    told = f"nothing reused of run {other.root.name}: its rows are damaged: "
    assert record.reuse[0].startswith(told)
