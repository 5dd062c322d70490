"""The lines on Prefect's pages, for whatever a run may be at."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from prefect_parallelrun.models import Counts, ErrorGroup, RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.progress import RUNNING, Standing
from prefect_parallelrun.run_record import RunRecord
from prefect_parallelrun.ui import wording
from prefect_parallelrun.ui.page import pause_after_s

HALF = Standing(
    planned=40,
    created=40,
    succeeded=18,
    failed=2,
    retried=3,
    running=2,
    items_succeeded=180,
    items_failed=20,
    rows=180,
    rate=1.5,
    left_s=13.4,
    elapsed_s=20.0,
)
START = replace(
    HALF, succeeded=0, failed=0, retried=0, rate=0.0, left_s=None, doing=("node000: 2 ready",)
)


def ended(state, failure, *, failed=20, opened=True, planned=40, items=400):
    record = RunRecord(
        step="score",
        run_id="r1",
        fingerprint="",
        started_at=datetime.now(UTC),
        state=state,
        output="out",
        mini_batches=planned,
        items=items,
    )
    summary = RunSummary(
        mini_batches=Counts(total=planned or 20, succeeded=18, failed=2),
        items=Counts(total=items or 180 + failed, succeeded=180, failed=failed),
        attempts=23,
        rows=180,
    )
    return wording.Ended(
        record=record,
        summary=summary,
        output=None,
        failure=failure,
        opened=opened,
        at=0.0,
        took_s=61.0,
    )


@pytest.mark.parametrize(
    ("stage", "standing", "end", "per_cent", "line"),
    [
        ("starting 2 nodes", START, None, 0.0, "0 of 40 mini-batches; node000: 2 ready"),
        (
            RUNNING,
            HALF,
            None,
            50.0,
            "20 of 40 mini-batches, 2 failed, 3 retried, 1.5/s, 0:00:13 left",
        ),
        (
            RUNNING,
            replace(HALF, planned=None, left_s=None),
            None,
            0.0,
            "20 of an unknown number of mini-batches, 2 failed, 3 retried, 1.5/s",
        ),
        (
            "publishing the output",
            replace(HALF, succeeded=40, failed=0, retried=0),
            None,
            100.0,
            "40 of 40 mini-batches; publishing the output",
        ),
        (
            "Failed",
            HALF,
            ended("Failed", "why"),
            45.0,
            "Failed: 20 of 40 mini-batches, 2 failed, 3 retried, in 0:01:01",
        ),
        (
            # What was done in part, and runs again: the bar left it out, but it is kept.
            "Cancelled",
            replace(HALF, succeeded=10, failed=0, retried=0),
            ended("Cancelled", "why"),
            45.0,
            "Cancelled: 20 of 40 mini-batches, 2 failed, in 0:01:01",
        ),
        (
            "Failed",
            replace(HALF, planned=None, retried=0),
            ended("Failed", "why", planned=None, items=None),
            0.0,
            "Failed: 20 of an unknown number of mini-batches, 2 failed, in 0:01:01",
        ),
        (
            "Completed",
            replace(HALF, planned=None, succeeded=0, failed=0, retried=0),
            ended("Completed", None, planned=20, items=None),
            100.0,
            "Completed: 20 of 20 mini-batches, 2 failed, in 0:01:01",
        ),
    ],
)
def test_progress(stage, standing, end, per_cent, line):
    """One line says where a run stands; at the end how it ended, and not 100 % unless it completed (R240)."""
    content = wording.progress(stage, standing, end)
    assert (content.data, content.description) == (per_cent, line)


@pytest.mark.parametrize(
    ("planned", "items", "mini_batches_row", "items_row"),
    [
        (40, 400, "40 | 18 | 0 | 2 | 20", "400 | 180 | 0 | 20 | 200"),
        # Rows: of mini-batches that nobody has read, nobody knows how many they have.
        (40, None, "40 | 18 | 0 | 2 | 20", "unknown | 180 | 0 | 20 | unknown"),
        (None, None, "unknown | 18 | 0 | 2 | unknown", "unknown | 180 | 0 | 20 | unknown"),
        (20, None, "20 | 18 | 0 | 2 | 0", "200 | 180 | 0 | 20 | 0"),
    ],
)
def test_what_is_not_known_is_said_to_be_so(tmp_path, planned, items, mini_batches_row, items_row):
    """The table of the summary has no figure that only the rest of the input would tell (R208)."""
    end = ended("Failed", "why", planned=planned, items=items)
    text = wording.summary(RunPaths(tmp_path), end).data
    assert f"\n| mini-batches | {mini_batches_row} |\n| items | {items_row} |\n" in text
    assert ("only reading them tells" in text) == ("unknown" in items_row)


def test_one_of_a_kind_and_which_items_an_error_is_among(tmp_path):
    """One attempt is no `1 attempts`; of several items it is not said that all had the error (R209)."""

    def error(*items):
        return ErrorGroup(
            type="ValueError",
            where="",
            message="",
            count=1,
            first_mini_batch=6,
            first_items=items,
            node="node000",
            process="",
            log_file="",
            traceback="",
        )

    end = ended("Completed", None)
    account = replace(
        end.summary, attempts=1, rows=0, missing_rows=1, errors=(error("a"), error(*"abcd"))
    )
    text = wording.summary(RunPaths(tmp_path), replace(end, summary=account)).data
    assert "\n1 attempt, 0 rows\n" in text
    assert "\n1 item failed because `run()` returned" in text
    assert "first in mini-batch 6 on node000: `a`\n" in text
    assert "first in mini-batch 6 on node000: among `a`, `b`, `c`, …\n" in text


def test_failed_items_that_nobody_can_name(tmp_path):
    """Where it is not known which items failed, the table says among which they are (R204)."""
    paths = RunPaths(tmp_path)
    record = {
        "item": None,
        "count": 2,
        "candidates": list("abcde"),
        "mini_batch": 7,
        "reason": "missing_row",
        "error": None,
        "attempts": 1,
        "node": "node000",
        "process": "",
        "log_files": [],
    }
    paths.failed_items.write_text(json.dumps(record) + "\n")
    content = wording.failed_items(paths, ended("Completed", None, failed=2))
    (row,) = json.loads(content.data)
    assert row["Item"] == "2 of a, b, c and 2 more"
    assert (row["Error"], row["Process"], row["Log"]) == ("", "node000", "")
    assert content.description == "2 items failed"
    # Of an earlier sitting: nothing of this one ran.
    assert wording.failed_items(paths, ended("Failed", "why", opened=False)) is None


def test_how_often_the_pages_change():
    """The longer a run, the less often; never more than every three seconds (R240)."""
    assert [pause_after_s(after) for after in (0, 300, 1000, 86_400)] == [3.0, 3.0, 10.0, 15.0]
