"""What whoever watches a whole run is told, and in which order."""

from __future__ import annotations

import pytest

from prefect_parallelrun.datasets import TabularDataset
from prefect_parallelrun.errors import EntryScriptError, ErrorThresholdExceeded
from prefect_parallelrun.report.observer import Observer

SCRIPT = """
from pathlib import Path

def run(mini_batch):
    names = [Path(path).name for path in mini_batch]
    if any(name.startswith("bad") for name in names):
        raise ValueError("no good: " + ", ".join(names))
    return names
"""


class Noting(Observer):
    """Notes the name of what it is told, with what tells one from another."""

    def __init__(self):
        self.told = []
        self.stages = []
        self.end = {}
        self.counts = None

    def began(self, record):
        self.told.append(("began", record.state, record.mini_batches))

    def cluster(self, dashboard):
        self.told.append(("cluster", dashboard.startswith("http://")))

    def progress(self, stage, standing):
        self.stages.append((stage, standing))

    def mini_batch_failed(self, attempt):
        self.told.append(("failed", attempt.mini_batch, attempt.part, attempt.attempt))

    def threshold_near(self, threshold, failed, tolerated):
        self.told.append(("near", threshold, failed, tolerated))

    def ended(self, record, summary, *, result, failure):
        self.told.append(("ended", record.state, summary.items.failed))
        self.end = {"result": result, "failure": failure}
        self.counts = record.mini_batches, record.items, summary.mini_batches.total


@pytest.fixture
def numbers(tmp_path):
    """Ten files of which every second is bad."""
    folder = tmp_path / "numbers"
    folder.mkdir()
    for number in range(10):
        (folder / f"{'bad' if number % 2 else 'good'}{number}.txt").write_text(str(number))
    return folder


def test_a_run_with_tolerated_failures_tells_all_of_it(run, numbers):
    """Beginning, nodes, each mini-batch that failed for good, each threshold once, the end (R26)."""
    seen = Noting()
    result = run(
        SCRIPT,
        numbers,
        observers=[seen],
        mini_batch_size="1",
        process_count_per_node=1,
        run_max_try=2,
        error_threshold=5,
        allowed_failed_count=100,
    )
    # Sorted by name, the bad ones come first; each had two attempts.
    assert sorted(one for one in seen.told if one[0] == "failed") == [
        ("failed", index, None, 2) for index in range(5)
    ]
    assert [one for one in seen.told if one[0] != "failed"] == [
        ("began", "Running", 10),
        ("cluster", True),
        ("near", "error_threshold", 4, 5),
        ("ended", "Completed with 5 failed items", 5),
    ]
    assert seen.told[-1][0] == "ended"
    assert seen.end == {"result": result, "failure": None}
    stages = [stage for stage, _ in seen.stages]
    assert "planning" in stages
    assert stages[-1] == "Completed with 5 failed items"
    assert seen.stages[-1][1].settled == 10


def test_of_a_mini_batch_that_is_split_its_failing_items_are_told(run, numbers):
    """What is told as failed is what failed: the items that stand alone in the end (R203)."""
    seen = Noting()
    settings = {"process_count_per_node": 1, "run_max_try": 1, "error_threshold": -1}
    run(
        SCRIPT,
        numbers,
        observers=[seen],
        mini_batch_size="10",
        isolate_failures=True,
        **settings,
    )
    parts = [one[2] for one in seen.told if one[0] == "failed"]
    assert sorted(parts) == [(item, item + 1) for item in range(5)]


def test_a_run_that_fails_tells_why(run, numbers, tmp_path):
    """The end of a run that exceeded a threshold has no result, but the text that people get (R26)."""
    seen, folder = Noting(), tmp_path / "runs" / "failing"
    with pytest.raises(ErrorThresholdExceeded) as raised:
        run(
            SCRIPT,
            numbers,
            observers=[seen],
            run_folder=folder,
            mini_batch_size="1",
            run_max_try=1,
            error_threshold=1,
        )
    assert [one[:2] for one in seen.told if one[0] != "failed"] == [
        ("began", "Running"),
        ("cluster", True),
        ("near", "error_threshold"),
        ("ended", "Failed"),
    ]
    assert seen.end == {"result": None, "failure": str(raised.value)}

    # Nothing is planned, so nothing began; but it has ended, and whoever watches can let go.
    again = Noting()
    with pytest.raises(KeyboardInterrupt):
        run(SCRIPT, numbers, observers=[again], run_folder=tmp_path / "x", watch=_interrupt)
    assert [one[:2] for one in again.told] == [("ended", "Cancelled")]


def test_a_table_that_fails_tells_what_is_known_of_its_size(run, tmp_path):
    """Once the whole input is cut, the end knows how many mini-batches there are, but not how many rows."""
    table = tmp_path / "table.csv"
    table.write_text("number\n" + "".join(f"{number:09d}\n" for number in range(1000)))
    seen = Noting()
    with pytest.raises(EntryScriptError):
        run(
            "def run(mini_batch):\n    raise ValueError(len(mini_batch))\n",
            [TabularDataset.from_delimited_files(str(table), support_multi_line=True)],
            observers=[seen],
            mini_batch_size="4KB",
            process_count_per_node=1,
            run_max_try=1,
            error_threshold=-1,
        )
    assert seen.told[0] == ("began", "Running", None)
    assert seen.counts == (3, None, 3)


def _interrupt():
    raise KeyboardInterrupt
