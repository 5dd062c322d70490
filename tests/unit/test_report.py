from __future__ import annotations

import errno
import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptError, AttemptRecord, Counts, Outcome, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import failed_items, failure, job_report, job_result, summary
from prefect_parallelrun.report.driver_log import driver_log
from prefect_parallelrun.report.replaced import replaced


def succeeded(
    mini_batch: int, items: int = 10, missing: int = 0, part: tuple[int, int] | None = None
) -> AttemptRecord:
    return AttemptRecord(
        mini_batch=mini_batch,
        part=part,
        attempt=1,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=items,
        items_succeeded=items - missing,
        items_failed=missing,
        rows=items - missing,
    )


def failed(mini_batch: int, kind: str = "ValueError", items: int = 10, **changes) -> AttemptRecord:
    error = AttemptError(
        category="exception",
        type=kind,
        message=f"bad pixel in {mini_batch}",
        where="score.py:12 in run",
        traceback=f"Traceback (most recent call last):\n  …\n{kind}: bad pixel in {mini_batch}\n",
    )
    fields = {
        "mini_batch": mini_batch,
        "attempt": 3,
        "final": True,
        "outcome": Outcome.FAILED,
        "node": "node001",
        "process": "process002",
        "items_total": items,
        "items_succeeded": 0,
        "items_failed": items,
        "error": error,
        "items_sample": (f"/data/{mini_batch}-0.png", f"/data/{mini_batch}-1.png"),
        "log_file": "/logs/user/error/node001/process002.txt",
    }
    return AttemptRecord(**(fields | changes))


def run_of(root, *records: AttemptRecord) -> RunPaths:
    paths = RunPaths(root)
    with OutputWriter(paths, keep_rows=False) as output:
        for record in records:
            output.add(record)
    return paths


def summarise(paths: RunPaths) -> RunSummary:
    with Journal(paths.journal) as journal:
        return summary.summarise(journal)


def test_a_summary_counts_settled_mini_batches_and_items(tmp_path):
    """Only final attempts count; missing rows are failed items of mini-batches that succeeded (R16)."""
    paths = run_of(
        tmp_path,
        failed(0, final=False, items_failed=0, attempt=1),
        succeeded(0),
        succeeded(1, missing=2),
        failed(2),
    )

    found = summarise(paths)

    assert found.mini_batches == Counts(total=3, succeeded=2, failed=1)
    assert found.items == Counts(total=30, succeeded=18, failed=12)
    assert (found.attempts, found.rows, found.missing_rows) == (4, 18, 2)
    assert found.failed_mini_batches == (2,)
    assert [error.count for error in found.errors] == [2]


def test_what_was_not_run_is_in_the_summary(tmp_path):
    """With the plan's totals, a run that stopped early accounts for all of its input (R208)."""
    with Journal(run_of(tmp_path, succeeded(0), failed(1)).journal) as journal:
        stopped = summary.summarise(journal, mini_batches=9, items=90)

    assert stopped.mini_batches == Counts(total=9, succeeded=1, failed=1)
    assert summary.closing_line(stopped) == "in 90 = out 10 + failed 10 + not run 70 (items)"


@pytest.mark.parametrize(
    ("items", "line", "reason"),
    [
        (
            Counts(total=1_000_000, succeeded=999_988, failed=12),
            "in 1,000,000 = out 999,988 + failed 12 (items)",
            "complete",
        ),
        (
            Counts(total=100, succeeded=5, failed=12),
            "in 100 = out 5 + failed 12 + not run 83 (items)",
            "stopped early",
        ),
        (Counts(), "in 0 = out 0 + failed 0 (items)", "nothing to do"),
        (
            Counts(total=1, succeeded=2),
            "in 1 ≠ out 2 + failed 0 (items)",
            "a fault of ours is not hidden",
        ),
    ],
)
def test_the_closing_line_accounts_for_every_item(items, line, reason):
    """What came in is what went out, what failed and what was not run (R208)."""
    found = RunSummary(mini_batches=Counts(), items=items, attempts=0, rows=0)

    assert summary.closing_line(found) == line, reason


def test_failure_text_shows_the_scripts_own_error(tmp_path):
    """Cause, the script's error and stack trace, mini-batch, items, process and files (R206)."""
    paths = run_of(tmp_path, failed(17), failed(18), failed(3, "KeyError"))

    text = failure.failure_text(summarise(paths), cause="too many failed items", paths=paths)

    assert text.startswith("too many failed items\n")
    assert "ValueError: bad pixel in 17 (score.py:12 in run)" in text
    assert "in mini-batch 17 on node001 process002" in text
    assert "items: /data/17-0.png, /data/17-1.png" in text
    assert "stack trace in: /logs/user/error/node001/process002.txt" in text
    assert "Traceback (most recent call last)" in text
    assert (
        "2 distinct errors: ValueError × 2 (first at score.py:12 in run, mini-batch 17), "
        "KeyError × 1 (first at score.py:12 in run, mini-batch 3)"
    ) in text
    assert str(paths.error_summary) in text


def test_failure_text_without_an_error_of_the_script_names_the_log(tmp_path):
    """Where the script raised nothing, the reader is sent to the log of the run."""
    paths = run_of(tmp_path)

    text = failure.failure_text(summarise(paths), cause="no node", paths=paths)

    assert text == f"no node\n\nthe log of the run: {paths.driver_log}"


def test_failure_text_names_missing_rows(tmp_path):
    """Items that failed because run() returned too few elements are said to be that (R16)."""
    paths = run_of(tmp_path, succeeded(0, missing=4))

    text = failure.failure_text(summarise(paths), cause="4 items failed", paths=paths)

    assert "4 items failed because run() returned fewer elements" in text

    alone = run_of(tmp_path / "alone", succeeded(0, missing=1))
    text = failure.failure_text(summarise(alone), cause="1 item failed", paths=alone)
    assert "\n1 item failed because run() returned fewer elements" in text


def test_error_txt_has_each_distinct_error_once(tmp_path):
    """error.txt: how often, first mini-batch, first items, the file, the trace of the first (R59)."""
    paths = run_of(tmp_path, *(failed(index) for index in range(50)), failed(99, "KeyError"))

    path = failure.write_error_summary(paths, summarise(paths))

    assert path == paths.error_summary
    text = path.read_text(encoding="utf-8")
    assert text.count("Traceback (most recent call last)") == 2
    assert "2 distinct errors" in text.splitlines()[0]
    assert "50 times; first in mini-batch 0 on node001 process002" in text
    assert "items: /data/0-0.png" in text


def test_error_txt_counts_what_it_does_not_show(tmp_path):
    """Of very many distinct errors the rarest are left out, but counted (R209)."""
    kinds = [f"Error{number}" for number in range(120)]
    paths = run_of(
        tmp_path, *(failed(number, kind) for number, kind in enumerate([*kinds, *kinds[:30]]))
    )

    text = failure.write_error_summary(paths, summarise(paths)).read_text()

    first, second, third, *_ = text.splitlines()
    assert first.startswith("120 distinct errors: Error0 × 2 (first at score.py:12 in run, ")
    assert first.endswith(", and 115 more")
    assert (second, third) == ("failed 150 times", "below are the 100 most frequent")
    assert text.count("\n--- ") == 100


def test_an_error_that_came_once_without_a_place(tmp_path):
    """Where it was raised is not said of what nobody knows (R59)."""
    died = AttemptError(category="exit", type="ProcessDied", message="exit code 3")
    paths = run_of(tmp_path, failed(7, error=died))

    text = failure.write_error_summary(paths, summarise(paths)).read_text()

    assert text.startswith(
        "1 distinct error: ProcessDied × 1 (first in mini-batch 7)\nfailed once\n"
    )
    assert "--- 1. ProcessDied: exit code 3\nonce, in mini-batch 7 on node001" in text


def test_errors_of_processes_are_among_the_others_by_how_often_they_came(tmp_path):
    """What ended the run is quoted first where that is the start of processes (R206, R209)."""
    paths = run_of(tmp_path, *(failed(index) for index in range(3)), failed(3, "KeyError"))
    error = {"type": "OSError", "where": "s.py:3 in init", "message": "gone", "traceback": ""}
    event = {"node": "node000", "process": "process002", "error": error}
    groups = failure.process_errors([event, event], paths)

    found = summary.with_process_errors(summarise(paths), groups)

    assert [error.type for error in found.errors] == ["ValueError", "OSError", "KeyError"]
    assert (found.distinct_errors, found.errors_counted) == (3, 6)
    text = failure.failure_text(found, cause="it ended", paths=paths)
    assert text.startswith("it ended\n\nValueError: ")
    text = failure.failure_text(found, cause="init() failed", paths=paths, of_starts=True)
    assert text.startswith("init() failed\n\nOSError: gone")


def test_text_for_people_has_no_control_characters(tmp_path, caplog):
    """Neither a terminal nor `grep` stumbles over what a script says; lines of a message stay lines."""
    message = "nul\0 esc\x1b[31m\r\nnext"
    error = AttemptError(category="exception", type="ValueError", message=message, traceback="t\0")
    paths = run_of(tmp_path, failed(0, error=error))
    found = summarise(paths)
    with Journal(paths.journal) as journal:
        job_report.write_job_report(paths, journal)
    failure.write_error_summary(paths, found)
    text = failure.failure_text(found, cause=message, paths=paths)
    job_result_of(paths, "Failed", message)
    with driver_log(paths, "run-5", forward_to=logging.getLogger("test-flow")) as log:
        log.warning("%s", message)

    written = [text, *failure.first_errors(found), *caplog.messages]
    files = paths.error_summary, paths.job_result, paths.driver_log, paths.processed_mini_batches
    written += [path.read_bytes().decode() for path in files]
    assert len(written) == 7
    for one in written:
        assert r"nul\x00 esc\x1b[31m" in one
        assert not set(one) & set("\0\x1b\r")
    assert r"\x0d" + "\nnext" in text


def test_a_file_that_is_not_completed_leaves_the_earlier_one(tmp_path, monkeypatch):
    """A disk that takes no more destroys nothing, and what it does not remove hides no reason."""
    path = tmp_path / "result.txt"
    path.write_text("earlier")
    (tmp_path / "result.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), replaced(path) as file:
        file.write("later")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("result.txt", "earlier")
    ]

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(ZeroDivisionError), replaced(path):
        raise ZeroDivisionError


def test_a_list_of_failed_items_that_cannot_be_written_leaves_no_wrong_one(tmp_path):
    """What an earlier sitting listed may have succeeded since (R204)."""
    paths = run_of(tmp_path, failed(0, items=3))
    paths.failed_items.write_text("{}\n")
    paths.failed_items.with_suffix(".tmp").symlink_to("/dev/full")

    with Journal(paths.journal) as journal, pytest.raises(OSError, match="No space left"):
        failed_items.write_failed_items(paths, journal, items_of, kind="file")

    assert not paths.failed_items.exists()


def test_error_txt_is_not_there_without_errors(tmp_path):
    """A run without errors has no error.txt, not even one of before."""
    paths = run_of(tmp_path, succeeded(0))
    paths.error_summary.parent.mkdir(parents=True)
    paths.error_summary.write_text("old")

    assert failure.write_error_summary(paths, summarise(paths)) is None
    assert not paths.error_summary.exists()


def test_a_message_that_its_trace_lacks_is_not_lost(tmp_path):
    """A time-out's trace holds stacks only; error.txt has the message as well."""
    error = AttemptError(
        category="timeout", type="TimedOut", message="took longer\nthan 60 s", traceback="stack"
    )
    paths = run_of(tmp_path, failed(0, error=error, outcome=Outcome.TIMED_OUT))

    path = failure.write_error_summary(paths, summarise(paths))

    text = path.read_text(encoding="utf-8")
    assert "took longer\nthan 60 s" in text
    assert "stack" in text


def job_result_of(paths: RunPaths, state: str, error: str | None = None) -> list[str]:
    path = job_result.write_job_result(
        paths,
        summarise(paths),
        step="predict",
        run_id="run-1",
        state=state,
        output="/data/out",
        started_at=datetime(2026, 8, 4, 10, 0, tzinfo=UTC),
        ended_at=datetime(2026, 8, 4, 10, 0, 12, 300_000, tzinfo=UTC),
        failure=error,
    )
    assert path == paths.job_result
    return path.read_text(encoding="utf-8").splitlines()


def test_job_result_of_a_completed_run(tmp_path):
    """job_result.txt begins with the result and accounts for all of the input (R85, R208)."""
    paths = run_of(tmp_path, succeeded(0), failed(1, items=2))

    lines = job_result_of(paths, "Completed with 2 failed items")

    assert lines[0] == "result: Completed with 2 failed items"
    assert "in 12 = out 10 + failed 2 (items)" in lines
    assert "in 2 = out 1 + failed 1 (mini-batches)" in lines
    assert "ended: 2026-08-04 10:00:12 UTC (after 12.3 seconds)" in lines
    assert "output: /data/out" in lines


def test_job_result_of_a_failed_run(tmp_path):
    """On failure job_result.txt has the cause, and which files to open (R85)."""
    paths = run_of(tmp_path, failed(1))
    failure.write_error_summary(paths, summarise(paths))

    lines = job_result_of(paths, "Failed", "no node left\nat all")

    assert lines[0] == "result: Failed"
    assert lines[-2:] == ["no node left", "at all"]
    assert f"errors of the script, each once: {paths.error_summary}" in lines
    assert f"log of the run: {paths.driver_log}" in lines


def items_of(indices):
    for index in indices:
        yield 0, [f"/data/{index}-{number}.png" for number in range(3)]


def test_failed_items_are_records(tmp_path):
    """Each item of a failed mini-batch is one record with all that is known of it (R204)."""
    paths = run_of(
        tmp_path,
        succeeded(0, 3),
        failed(1, items=3),
        failed(2, "KeyError", items=3),
        failed(3, items=3),
    )

    with Journal(paths.journal) as journal:
        written = failed_items.write_failed_items(paths, journal, items_of, kind="file")

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert written == len(records) == 9
    assert all(record["traceback"].endswith(record["error"]) for record in records)
    assert [record["item"] for record in records[:3]] == [f"/data/1-{n}.png" for n in range(3)]
    assert records[5] == {
        "item": "/data/2-2.png",
        "input": 0,
        "kind": "file",
        "mini_batch": 2,
        "reason": "exception",
        "attempts": 3,
        "node": "node001",
        "process": "process002",
        "error": "KeyError: bad pixel in 2",
        "traceback": "Traceback (most recent call last):\n  …\nKeyError: bad pixel in 2",
        "log_files": [
            str(paths.logs / "user" / kind / "node001" / name)
            for kind, name in [
                ("error", "process002.txt"),
                ("stderr", "process002.stderr.txt"),
                ("stdout", "process002.stdout.txt"),
            ]
        ],
        "rows": None,
        "count": 1,
    }


def test_missing_rows_are_one_record_with_candidates(tmp_path):
    """Of missing rows it is known how many, and among which items, not which (R204)."""
    paths = run_of(tmp_path, succeeded(4, items=3, missing=1))

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(paths, journal, items_of, kind="file")

    (record,) = map(json.loads, paths.failed_items.read_text().splitlines())
    assert (record["item"], record["count"], record["reason"]) == (None, 1, "missing_row")
    assert record["candidates"] == [f"/data/4-{n}.png" for n in range(3)]
    assert record["error"] == "run() returned 2 elements for 3 items"


def test_failed_rows_of_a_table_are_one_record(tmp_path):
    """Rows have no names: a failed mini-batch of a table is one record with its range."""
    paths = run_of(tmp_path, failed(0, items=500))

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(
            paths,
            journal,
            lambda indices: iter([(next(iter(indices)), ["sales.csv bytes 0-1024"])]),
            kind="tabular",
        )

    (record,) = map(json.loads, paths.failed_items.read_text().splitlines())
    assert (record["count"], record["candidates"]) == (500, ["sales.csv bytes 0-1024"])


def test_of_a_split_mini_batch_only_its_failed_items_are_listed(tmp_path):
    """Each failed part has its own items, attempts and process; the good ones are not there (R203)."""
    paths = run_of(
        tmp_path,
        failed(1, items=3, final=False, items_failed=0),
        failed(1, "KeyError", items=1, part=(2, 3), attempt=6),
        succeeded(1, items=1, part=(1, 2)),
        failed(1, items=1, part=(0, 1), attempt=5, process="process007"),
        succeeded(2, items=2, missing=1, part=(1, 3)),
    )

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(paths, journal, items_of, kind="file")

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert [(each["item"], each["reason"], each["attempts"]) for each in records] == [
        ("/data/1-0.png", "exception", 5),
        ("/data/1-2.png", "exception", 6),
        (None, "missing_row", 1),
    ]
    assert records[0]["process"] == "process007"
    assert records[1]["error"] == "KeyError: bad pixel in 1"
    assert (records[2]["count"], records[2]["candidates"]) == (
        1,
        ["/data/2-1.png", "/data/2-2.png"],
    )
    assert all(each["rows"] is None for each in records)


def test_failed_rows_of_part_of_a_table_are_named(tmp_path):
    """Of a table's mini-batch that was split, the record has the rows of the part (R203, R204)."""
    paths = run_of(tmp_path, failed(0, items=1, part=(41, 42)), failed(0, items=9, part=(50, 59)))

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(
            paths,
            journal,
            lambda indices: ((index, ["sales.csv bytes 0-1024"]) for index in indices),
            kind="tabular",
        )

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert [(each["item"], each["rows"], each["count"]) for each in records] == [
        (None, [41, 42], 1),
        (None, [50, 59], 9),
    ]
    assert records[0]["candidates"] == ["sales.csv bytes 0-1024"]


@pytest.mark.parametrize(
    "reason",
    ["exception", "timeout", "memory", "signal", "exit", "bad_return", "load", "node_lost"],
)
def test_the_reason_is_that_of_the_error(tmp_path, reason):
    """Whatever failed, its record has the class of the reason (R204)."""
    error = AttemptError(category=reason, type="Some", message="thing")
    paths = run_of(tmp_path, failed(0, items=3, error=error))

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(paths, journal, items_of, kind="file")

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert [record["reason"] for record in records] == [reason] * 3


def test_what_no_process_had_has_no_log_files(tmp_path):
    """Where a node was lost with the mini-batch there is no process to look at."""
    error = AttemptError(category="node_lost", type="NodeLost", message="gone")
    lost = failed(0, items=3, outcome=Outcome.NODE_LOST, process="", error=error)
    paths = run_of(tmp_path, lost)

    with Journal(paths.journal) as journal:
        failed_items.write_failed_items(paths, journal, items_of, kind="file")

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert [record["log_files"] for record in records] == [[], [], []]


def test_a_resumed_run_accounts_for_everything(tmp_path):
    """The closing line is of the whole run; how much was done before is said as well (R208)."""
    run_of(
        tmp_path,
        succeeded(0),
        failed(1, "OSError", final=False),
        succeeded(1, items=8, part=(2, 10)),
        failed(2),
    )
    paths = run_of(tmp_path, succeeded(2), failed(1, items=2, part=(0, 2)))

    lines = job_result_of(paths, "Completed with 2 failed items")

    assert "in 30 = out 28 + failed 2 (items)" in lines
    assert "in 3 = out 3 + failed 0 (mini-batches)" in lines
    assert "of these before the run was resumed: 18 (items), 1 (mini-batches)" in lines
    assert "attempts: 6" in lines
    assert [error.type for error in summarise(paths).errors] == ["ValueError"]


def test_a_run_of_one_sitting_has_reused_nothing(tmp_path):
    """Nothing is said of reuse where there is none."""
    assert "resumed" not in "\n".join(job_result_of(run_of(tmp_path, succeeded(0)), "Completed"))


def test_equal_traces_do_not_fill_the_disk(tmp_path):
    """All failed items have a record, but the same stack trace is in the first hundred only."""
    paths = run_of(tmp_path, *(failed(index, items=3) for index in range(60)))

    with Journal(paths.journal) as journal:
        assert failed_items.write_failed_items(paths, journal, items_of, kind="file") == 180

    records = [json.loads(line) for line in paths.failed_items.read_text().splitlines()]
    assert sum(record["traceback"] is not None for record in records) == 100
    assert all(record["log_files"] for record in records)


def test_without_failures_there_is_no_list_of_them(tmp_path):
    """No failed items, no file: what an earlier sitting left is removed."""
    paths = run_of(tmp_path, succeeded(0))
    paths.failed_items.write_text("{}\n")

    with Journal(paths.journal) as journal:
        assert failed_items.write_failed_items(paths, journal, items_of, kind="file") == 0
    assert not paths.failed_items.exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_two_runs_at_once_write_each_its_own_log(tmp_path):
    """Runs in one process never write into each other's 70_driver_log.txt (R53)."""
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with driver_log(RunPaths(tmp_path / name), name) as log:
            both.wait(10)
            log.info("this is %s", name)
            both.wait(10)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for name in ("one", "two"):
        (line,) = RunPaths(tmp_path / name).driver_log.read_text().splitlines()
        assert line.endswith(f"INFO this is {name}")


def test_the_flows_log_gets_what_the_run_logs(tmp_path, caplog):
    """Lines go to the file and to the flow's log, a percent sign in them notwithstanding."""
    flow = logging.getLogger("test-flow")

    with driver_log(RunPaths(tmp_path), "run-1", forward_to=flow) as log:
        log.warning("%s of the disk", "100%")
        log.debug("too small")
    log.warning("after the run")

    assert [(each.name, each.getMessage()) for each in caplog.records] == [
        ("test-flow", "100% of the disk"),
        ("prefect_parallelrun.run.run-1", "after the run"),
    ]
    assert RunPaths(tmp_path).driver_log.read_text().count("\n") == 1


def test_the_log_level_is_kept_to(tmp_path):
    """With DEBUG the file has the details (R36)."""
    with driver_log(RunPaths(tmp_path), "run-2", level="DEBUG") as log:
        log.debug("detail")

    assert "DEBUG detail" in RunPaths(tmp_path).driver_log.read_text()


def test_a_disk_that_takes_no_log_hides_no_error(tmp_path, caplog, capsys):
    """It is told once, and without stack traces; lines are still pending when the log is closed (R206)."""
    paths = RunPaths(tmp_path)
    paths.driver_error.mkdir(parents=True)
    paths.driver_log.symlink_to("/dev/full")

    def run(*failure: Exception) -> None:
        with driver_log(paths, "run-3", forward_to=logging.getLogger("test-flow")) as log:
            for _ in range(3):
                log.info("no room for this")
                log.warning("nor for that", exc_info=OSError("x"))
            for error in failure:
                raise error

    with pytest.raises(OutputError, match="is kept"):
        run(OutputError("what is done is kept"))
    told = [text for text in caplog.messages if "cannot be written" in text]
    assert [text.partition(" cannot")[0] for text in told] == [
        str(paths.driver_log),
        str(paths.driver_error),
    ]
    assert capsys.readouterr().err == ""
    run()  # nor is it a failure
