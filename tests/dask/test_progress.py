"""What is told of a run while it goes on, through real runs."""

from __future__ import annotations

import itertools
import json
import logging
import re
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from prefect_parallelrun.driver import sitting
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import overview

SCRIPT = """
import os, time

def init():
    time.sleep(1.2)

def run(mini_batch):
    time.sleep(0.1)
    return [open(path).read() for path in mini_batch]
"""
INTERVAL_S = 0.4
MARGIN_S = 1.0
"""What a busy machine may add; and the clock of the lines has whole seconds."""


@pytest.fixture
def _often(monkeypatch):
    monkeypatch.setattr(overview, "PROGRESS_S", INTERVAL_S)


def told(paths):
    files = paths.progress_overviews()  # two where midnight has passed
    return [line for file in files for line in file.read_text().splitlines()]


def texts(lines):
    return [line.split(" ", 1)[1] for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("_often")
def test_a_run_is_never_silent_whatever_its_driver_does(run, numbers, monkeypatch, caplog):
    """R54: not while it plans, starts, waits for init(), runs, or publishes; each says what it is."""
    caplog.set_level(logging.INFO)

    def slowly(function):
        def call(*args, **keywords):
            time.sleep(1.5)  # the driver's thread is in there, and cannot speak
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(sitting, "MiniBatches", slowly(sitting.MiniBatches))
    monkeypatch.setattr(sitting.Delivery, "publish", slowly(sitting.Delivery.publish))
    result = run(SCRIPT, numbers, mini_batch_size=5)

    lines = told(RunPaths(Path(result.run_directory)))
    times = [datetime.fromisoformat(line.split()[0]).timestamp() for line in lines]
    assert max(b - a for a, b in itertools.pairwise(times)) <= INTERVAL_S + MARGIN_S
    said = texts(lines)
    stages = [
        "Planning.",
        "Packing the source.",
        "Starting 1 node.",
        "Running.",
        "Ending the nodes.",
        "Publishing the output.",
        "Writing the reports.",
    ]
    assert [text for text in said if text in stages] == stages
    for stage in ("Planning for 0:00:01.", "Publishing the output for 0:00:01."):
        assert stage in said
        assert stage in caplog.text
    waiting = [text for text in said if text.startswith("No task has been processed yet.")]
    assert any("node000: 2 processes in import or init() for 1 s (since " in t for t in waiting)
    processed = [text for text in said if text.startswith("Processed ")]
    running = [int(re.search(r" (\d+) running", text)[1]) for text in processed]
    assert 1 <= max(running) <= 2  # of 20 created: no more than there are processes
    assert "Scheduling finished. Created 20 mini-batches in" in "\n".join(said)
    assert said[-1].startswith("Completed: in 100 = out 100 + failed 0 (items); output: ")


def test_the_driver_writes_down_what_it_does(run, numbers):
    """R55: creation of mini-batches, nodes, progress and result; and programs read how it ended."""
    result = run(SCRIPT.replace("1.2", "0"), numbers, mini_batch_size=50)
    paths = RunPaths(Path(result.run_directory))
    role = texts(paths.master_log.read_text().splitlines())
    assert role[0].startswith("Started: step test-step, run ")
    assert any(text.startswith("node000 joined: ") for text in role)
    assert any(text.startswith("Scheduling finished. Created 2 mini-batches") for text in role)
    assert role[-1].startswith("Completed: in 100 = out 100")
    progress = json.loads(paths.progress.read_text())
    assert progress["stage"] == "Completed"
    standing = progress["standing"]
    assert (standing["planned"], standing["created"], standing["succeeded"]) == (2, 2, 2)
    assert (standing["rows"], standing["items_succeeded"], standing["left_s"]) == (100, 100, None)
    assert abs(progress["at"] - result.ended_at.timestamp()) < 5


def test_a_failed_run_says_the_error_and_where_to_start_looking(run, numbers, tmp_path):
    """R79: the script's own error, and the files to open."""
    folder = tmp_path / "run"
    with pytest.raises(ParallelRunError):
        run(
            "def run(mini_batch):\n    raise ValueError('unlucky')",
            numbers,
            mini_batch_size=50,
            run_max_try=1,
            run_folder=folder,
        )
    paths = RunPaths(folder)
    text = "\n".join(told(paths))
    end = text[text.index("Z Failed: ") :]
    assert "ValueError: unlucky" in end
    assert f"Start looking in {paths.job_result}, then in {paths.driver_log}" in end
    assert json.loads(paths.progress.read_text())["stage"] == "Failed"
    assert end in paths.master_log.read_text()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_however_a_run_ends_nothing_is_told_after_it(run, numbers, tmp_path, kind):
    """The thread ends with the sitting, and the overview with how that ended."""
    folder = tmp_path / "run"
    began = time.monotonic()

    def watch():
        if time.monotonic() > began + 0.5:
            raise kind

    with pytest.raises(kind):
        run(SCRIPT, numbers, run_folder=folder, watch=watch)
    assert "parallelrun-overview" not in {thread.name for thread in threading.enumerate()}
    state = "Failed" if kind is ZeroDivisionError else "Cancelled"
    assert json.loads(RunPaths(folder).progress.read_text())["stage"] == state
    assert f"Z {state}: " in "\n".join(told(RunPaths(folder)))


def test_a_place_that_takes_no_lines_costs_the_run_nothing(run, numbers, tmp_path, caplog):
    """What is only watched never fails a run; it is said once."""
    folder = tmp_path / "run"
    RunPaths(folder).progress.mkdir(parents=True)
    RunPaths(folder).master_log.mkdir(parents=True)
    result = run(SCRIPT.replace("1.2", "0"), numbers, run_folder=folder, mini_batch_size=50)
    assert result.state == "Completed"
    said = [m for m in caplog.messages if "progress of the run cannot be written" in m]
    assert len(said) == 1


def test_a_resumed_run_goes_on_in_the_same_overview(run, numbers, tmp_path):
    """R54: what is done already counts as processed, and the rate is of this sitting."""
    folder = tmp_path / "run"
    flag = tmp_path / "fail"
    flag.write_text("")
    script = f"""
    import os
    def run(mini_batch):
        if os.path.exists({str(flag)!r}) and mini_batch[0].endswith("50.txt"):
            raise ValueError("unlucky")
        return [open(path).read() for path in mini_batch]
    """
    with pytest.raises(ParallelRunError):
        run(script, numbers, run_folder=folder, mini_batch_size=10, run_max_try=1)
    flag.unlink()
    run(script, numbers, run_folder=folder, mini_batch_size=10, run_max_try=1)
    assert sum("Z Started: " in line for line in told(RunPaths(folder))) == 2
    standing = json.loads(RunPaths(folder).progress.read_text())["standing"]
    assert (standing["succeeded"], standing["planned"], standing["rows"]) == (10, 10, 100)
