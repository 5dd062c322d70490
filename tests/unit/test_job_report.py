from __future__ import annotations

import csv
import json
import sqlite3
import tracemalloc
from datetime import UTC, datetime

import pytest

from prefect_parallelrun.driver.events import NodeJoined, NodeLost
from prefect_parallelrun.driver.history import History
from prefect_parallelrun.models import (
    UNKNOWN_S,
    AttemptError,
    AttemptRecord,
    NodeRecord,
    Outcome,
    ProcessRecord,
)
from prefect_parallelrun.output.error_shapes import SHAPES
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import job_result
from prefect_parallelrun.report.driver_log import driver_log
from prefect_parallelrun.report.job_report import write_job_report
from prefect_parallelrun.report.summary import summarise

NOON = datetime(2026, 8, 4, 12, tzinfo=UTC).timestamp()


def attempt(mini_batch: int, **changes) -> AttemptRecord:
    fields = {
        "mini_batch": mini_batch,
        "attempt": 1,
        "final": True,
        "outcome": Outcome.SUCCEEDED,
        "node": "node000",
        "process": "process000",
        "items_total": 10,
        "items_succeeded": 10,
        "items_failed": 0,
        "rows": 10,
        "started_at": NOON + mini_batch,
        "elapsed_s": 1.5,
        "cpu_s": 0.25,
        "load_s": 0.125,
        "run_s": 1.0,
    }
    return AttemptRecord(**(fields | changes))


def failure(mini_batch: int, message: str = "no", kind: str = "ValueError", **changes):
    error = AttemptError(category="exception", type=kind, message=message, where="s.py:1 in run")
    fields = {
        "outcome": Outcome.FAILED,
        "items_succeeded": 0,
        "items_failed": 10,
        "rows": 0,
        "error": error,
        "items_sample": ('/data/a "b".png', "/data/c,d.png"),
        "log_file": "/logs/p.txt",
    }
    return attempt(mini_batch, **(fields | changes))


def journalled(root, *records) -> RunPaths:
    paths = RunPaths(root)
    with OutputWriter(paths, keep_rows=False) as writer:
        for record in records:
            if isinstance(record, AttemptRecord):
                writer.add(record)
            else:
                writer.note(record)
    return paths


def reported(paths: RunPaths) -> None:
    with Journal(paths.journal) as journal:
        write_job_report(paths, journal)


def table(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_cpu_time_that_nobody_knows_is_no_figure(tmp_path):
    """An attempt that was lost with its node has an empty cell, and adds nothing to the sums (R120)."""
    lost = failure(2, outcome=Outcome.NODE_LOST, cpu_s=UNKNOWN_S)
    paths = journalled(tmp_path, attempt(1), lost, attempt(3))

    reported(paths)

    attempts = table(paths.processed_mini_batches)
    assert [row["Process Seconds"] for row in attempts] == ["0.250000", "", "0.250000"]
    (process,) = table(paths.process_summary)
    assert process["Process Seconds"] == "0.500000"


def test_each_attempt_is_a_row(tmp_path):
    """Who had it, how often it was picked up, items, times and how it ended (R120)."""
    paths = journalled(
        tmp_path,
        failure(3, final=False, items_failed=0),
        attempt(3, attempt=2, process="process001", part=(2, 9), items_total=7, items_succeeded=7),
    )

    reported(paths)

    first, second = table(paths.processed_mini_batches)
    detail = json.loads(first.pop("Mini-batch Detail"))
    assert first == {
        "Mini-batch Id": "3",
        "Picked Count": "1",
        "Node": "node000",
        "Process": "process000",
        "Process Start Time": "2026-08-04T12:00:03.000Z",
        "Total": "10",
        "Succeeded": "0",
        "Failed": "0",
        "Elapsed Seconds": "1.500000",
        "Process Seconds": "0.250000",
        "Run Method Seconds": "1.000000",
        "Load Seconds": "0.125000",
        "Status": "failed",
        "Error Category": "exception",
        "Error Message": "ValueError: no",
    }
    assert detail == {
        "final": False,
        "rows": 0,
        "items": ['/data/a "b".png', "/data/c,d.png"],
        "log_file": "/logs/p.txt",
    }
    assert (second["Picked Count"], second["Status"], second["Error Message"]) == (
        "2",
        "succeeded",
        "",
    )
    assert json.loads(second["Mini-batch Detail"]) == {"final": True, "rows": 10, "part": [2, 9]}


def test_a_mini_batch_lost_with_its_node_has_no_process_and_no_start(tmp_path):
    """What is not known is an empty cell, and no made-up moment (R120)."""
    lost = failure(0, outcome=Outcome.NODE_LOST, process="", started_at=0.0, elapsed_s=0.0)
    paths = journalled(tmp_path, lost)

    reported(paths)

    (row,) = table(paths.processed_mini_batches)
    assert (row["Process"], row["Process Start Time"], row["Status"]) == ("", "", "node_lost")
    assert table(paths.process_summary) == []
    (node,) = table(paths.node_summary)
    assert (node["Node"], node["Attempts"], node["Join Time"]) == ("node000", "1", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_nothing_is_a_formula(tmp_path, start):
    """A type that a script chose, and with it its cell, may begin so; a spreadsheet takes it for text."""
    paths = journalled(tmp_path, failure(0, kind=f"{start}cmd|' /C calc'!A0"))

    reported(paths)

    (row,) = table(paths.processed_mini_batches)
    assert row["Error Message"].startswith("'")


def test_a_row_is_a_line_whatever_the_message(tmp_path):
    """Quotes, commas and ends of lines in messages break neither `csv` nor `grep` (R120)."""
    paths = journalled(tmp_path, failure(0, 'a "quoted", thing\r\nin two lines – é'), attempt(1))

    reported(paths)

    text = paths.processed_mini_batches.read_bytes()
    assert text.count(b"\n") == 3
    assert b"\r" not in text
    first, second = table(paths.processed_mini_batches)
    assert first["Error Message"] == 'ValueError: a "quoted", thing\\r\\nin two lines – é'
    assert second["Mini-batch Id"] == "1"


def test_processes_and_nodes_are_sums_of_their_attempts(tmp_path):
    """How often, how many items, how long; and how each began and ended (R120)."""
    paths = journalled(
        tmp_path,
        NodeRecord(
            node="node000",
            host="big",
            address="tcp://10.0.0.7:1",
            processes=2,
            gpus=1,
            joined_at=NOON,
            left_at=NOON + 9,
            reason="its Dask worker is gone",
        ),
        ProcessRecord(
            node="node000",
            process="process000",
            pid=17,
            started_at=NOON,
            ready_at=NOON + 2,
            init_s=1.5,
            ended_at=NOON + 8.25,
            reason="timeout",
        ),
        ProcessRecord(node="node000", process="process001", pid=18, started_at=NOON),
        attempt(0),
        attempt(1, items_succeeded=9, items_failed=1),
        failure(2),
        attempt(3, process="process002"),
    )

    reported(paths)

    first, idle, unknown = table(paths.process_summary)
    assert first == {
        "Node": "node000",
        "Process": "process000",
        "Process Id": "17",
        "Start Time": "2026-08-04T12:00:00.000Z",
        "Ready Time": "2026-08-04T12:00:02.000Z",
        "Init Seconds": "1.500000",
        "End Time": "2026-08-04T12:00:08.250Z",
        "End Reason": "timeout",
        "Attempts": "3",
        "Failed Attempts": "1",
        "Mini-batches Succeeded": "2",
        "Total": "30",
        "Succeeded": "19",
        "Failed": "11",
        "Elapsed Seconds": "4.500000",
        "Process Seconds": "0.750000",
        "Run Method Seconds": "3.000000",
        "Load Seconds": "0.375000",
    }
    assert (idle["Ready Time"], idle["Init Seconds"], idle["End Time"]) == ("", "", "")
    assert (idle["Attempts"], idle["Elapsed Seconds"]) == ("0", "0.000000")
    assert (unknown["Process"], unknown["Process Id"], unknown["Attempts"]) == (
        "process002",
        "",
        "1",
    )
    (node,) = table(paths.node_summary)
    assert (node["Host"], node["Processes At Once"], node["GPUs"]) == ("big", "2", "1")
    assert (node["Leave Time"], node["Leave Reason"]) == (
        "2026-08-04T12:00:09.000Z",
        "its Dask worker is gone",
    )
    assert (node["Processes Started"], node["Attempts"], node["Elapsed Seconds"]) == (
        "2",
        "4",
        "6.000000",
    )


def test_names_sort_by_their_numbers(tmp_path):
    """After node999 comes node1000, and so with processes."""
    names = [("node999", "process999"), ("node999", "process1000"), ("node1000", "process000")]
    paths = journalled(
        tmp_path,
        *(attempt(n, node=node, process=name) for n, (node, name) in enumerate(names)),
    )

    reported(paths)

    found = [(row["Node"], row["Process"]) for row in table(paths.process_summary)]
    assert found == names
    assert [row["Node"] for row in table(paths.node_summary)] == ["node999", "node1000"]


def test_the_job_report_covers_every_sitting(tmp_path):
    """What was journalled before a driver was killed is in the tables of the next sitting (R201)."""
    journalled(tmp_path, failure(0, process="process007"))
    paths = journalled(tmp_path, attempt(0, node="node001"))

    reported(paths)

    assert [row["Status"] for row in table(paths.processed_mini_batches)] == ["failed", "succeeded"]
    assert [row["Node"] for row in table(paths.node_summary)] == ["node000", "node001"]


def test_memory_does_not_grow_with_the_attempts(tmp_path):
    """The rows pass through: ten thousand attempts take less than the table has bytes (design, 6)."""
    paths = journalled(tmp_path, *(attempt(index) for index in range(10_000)))

    tracemalloc.start()
    try:
        reported(paths)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert paths.processed_mini_batches.stat().st_size > 1_000_000
    assert peak < 400_000


def test_what_has_succeeded_since_is_not_counted_as_failed(tmp_path):
    """Two sittings of one mini-batch: items that succeeded and failed are not more than there are (R120, R201)."""
    journalled(tmp_path, failure(0), attempt(1, items_succeeded=9, items_failed=1))
    paths = journalled(tmp_path, attempt(0), attempt(1))

    reported(paths)

    rows = table(paths.processed_mini_batches)
    assert [(row["Succeeded"], row["Failed"]) for row in rows][-2:] == [("10", "0")] * 2
    for each in (paths.process_summary, paths.node_summary):
        (row,) = table(each)
        assert (row["Attempts"], row["Succeeded"], row["Failed"]) == ("4", "20", "0")


def test_exceptions_of_the_driver_have_a_file_of_their_own(tmp_path):
    """Each with its time (UTC) and stack trace, and nothing else; without any there is no file (R80)."""
    paths = RunPaths(tmp_path)
    with driver_log(paths, "r") as log:
        log.error("no exception")
        assert not paths.driver_error.exists()
        try:
            raise KeyError("lost")
        except KeyError:
            log.warning("something broke", exc_info=True)

    first, *rest = paths.driver_error.read_text().splitlines()
    assert datetime.fromisoformat(first.split(" ")[0]).tzinfo is UTC
    assert first.endswith("WARNING something broke")
    assert rest[-1] == "KeyError: 'lost'"


def test_errors_of_an_earlier_sitting_are_not_named_again(tmp_path):
    """job_result.txt is of the sitting that ended (R85)."""
    paths = journalled(tmp_path, attempt(0))
    paths.driver_error.parent.mkdir(parents=True)
    paths.driver_error.write_text("old")
    later = datetime.fromtimestamp(paths.driver_error.stat().st_mtime + 1, UTC)
    with Journal(paths.journal) as journal:
        summary = summarise(journal)

    written = job_result.write_job_result(
        paths,
        summary,
        step="s",
        run_id="r",
        state="Completed",
        output=None,
        started_at=later,
        ended_at=later,
    )

    assert str(paths.driver_error) not in written.read_text()


def load_error(mini_batch: int, message: str) -> AttemptRecord:
    error = AttemptError(category="load", type="LoadError", message=message, stage="load")
    return failure(mini_batch, error=error)


def groups_of(paths: RunPaths) -> list[tuple[str, int]]:
    with Journal(paths.journal) as journal:
        return [(group.message, group.count) for group in journal.error_groups(1000)]


def test_errors_without_a_place_are_told_apart_by_their_messages(tmp_path):
    """Names, numbers and what is quoted differ within one distinct error; words do not (R209)."""
    fit = "{}: row {}: column 'a' is int64, and {!r} does not fit"
    messages = [
        fit.format("/data/one.csv", 3, "x"),
        fit.format("/data/two words/b c.csv", 1_234, "it's"),
        "/data/one.csv vanished: it was there when the step was planned",
        fit.format("https://h/x.csv", 7, "y"),
    ]
    paths = journalled(tmp_path, *(load_error(n, text) for n, text in enumerate(messages)))

    assert groups_of(paths) == [(messages[0], 3), (messages[2], 1)]


def test_errors_with_a_place_are_one_whatever_their_messages(tmp_path):
    """The line of the script says which error it is (R209)."""
    paths = journalled(tmp_path, failure(0, "one thing"), failure(1, "quite another"))

    assert groups_of(paths) == [("one thing", 2)]


def test_messages_of_many_shapes_are_at_most_so_many_errors(tmp_path):
    """Free text makes no more groups than people read, in however many sittings (R209)."""

    def word(number: int) -> str:
        return "".join("abcdefghij"[int(digit)] for digit in str(number))

    count = SHAPES + 30
    journalled(tmp_path, *(load_error(n, f"odd {word(n)}") for n in range(count)))
    paths = journalled(
        tmp_path, *(load_error(n, f"odd {word(n)}") for n in range(count, 2 * count))
    )

    with sqlite3.connect(paths.journal) as connection:
        ((kinds,),) = connection.execute("SELECT count(*) FROM errors")
        ((attempts,),) = connection.execute("SELECT count(*) FROM attempts WHERE error IS NOT NULL")
    connection.close()
    assert (kinds, attempts) == (SHAPES + 1, 2 * count)


def joined(node: str) -> NodeJoined:
    return NodeJoined(node=node, host="h", address="tcp://h:1", processes=2, gpus=0, joined_at=NOON)


def news(name: str, process: str, at: float, **more):
    return {"name": name, "node": "node000", "process": process, "pid": 9, "at": at, **more}


def test_the_history_of_a_process_is_noted_as_it_is_heard():
    """Start, readiness with the seconds of init(), end with its reason; also before its node joined."""
    notes = []
    history = History(notes.append)

    history.heard(news("process_started", "process000", NOON))
    history.node_joined(joined("node000"))
    history.heard(news("process_ready", "process000", NOON + 2, seconds=1.5))
    history.heard(news("process_ended", "process000", NOON + 3, reason="memory"))
    history.heard(news("process_ended", "process000", NOON + 4, reason="exit"))

    processes = [note for note in notes if isinstance(note, ProcessRecord)]
    assert processes[-1] == ProcessRecord(
        node="node000",
        process="process000",
        pid=9,
        started_at=NOON,
        ready_at=NOON + 2,
        init_s=1.5,
        ended_at=NOON + 3,
        reason="memory",
    )
    assert len(processes) == 3


def test_at_the_end_of_a_sitting_everything_has_an_end():
    """So have nodes, and processes that said no more: why, is for the sitting to say."""
    notes = []
    history = History(notes.append)
    history.node_joined(joined("node000"))
    history.heard(news("process_started", "process000", NOON))

    history.end("cancelled")
    history.end("cancelled")

    process, node = notes[2:]
    assert process.ended_at is not None
    assert process.reason == "cancelled"
    assert node.left_at is not None
    assert node.reason == ""


def test_of_a_lost_node_nobody_saw_the_processes_end():
    """The node has its reason; what its processes came to is not made up."""
    notes = []
    history = History(notes.append)
    history.node_joined(joined("node000"))
    history.heard(news("process_started", "process000", NOON))

    history.node_lost(NodeLost(node="node000", reason="its Dask worker is gone"))
    history.node_lost(NodeLost(node="node001", reason="it never came to be"))
    history.end("stopped")

    assert notes[-1].reason == "its Dask worker is gone"
    assert len(notes) == 3


def test_a_process_that_could_not_be_started_is_in_the_history():
    """The system may refuse one; a start that failed in import or init() ends by its own news."""
    notes = []
    history = History(notes.append)

    history.heard(news("start_failed", "process000", NOON))
    history.heard(news("process_started", "process001", NOON))
    history.heard(news("start_failed", "process001", NOON + 1))

    assert [(note.process, note.reason) for note in notes] == [
        ("process000", "not started"),
        ("process001", ""),
    ]
