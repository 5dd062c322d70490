from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import writer
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

REPOSITORY = Path(__file__).parents[2]


def attempt(mini_batch: int, outcome: Outcome = Outcome.SUCCEEDED, **changes) -> AttemptRecord:
    succeeded = outcome is Outcome.SUCCEEDED
    fields = {
        "mini_batch": mini_batch,
        "attempt": 1,
        "final": True,
        "outcome": outcome,
        "node": "node000",
        "process": "process000",
        "items_total": 1,
        "items_succeeded": int(succeeded),
        "items_failed": int(not succeeded),
        "rows": 1,
    }
    return AttemptRecord(**(fields | changes))


def rows(mini_batch: int) -> bytes:
    return f"row {mini_batch} {'x' * (mini_batch % 7)}\n".encode()


@pytest.mark.parametrize("seed", range(3))
def test_output_is_the_same_bytes_whatever_the_order_of_completion(tmp_path, seed):
    """Rows come out in input order however mini-batches completed (R220)."""
    order = list(range(5_000))
    random.Random(seed).shuffle(order)
    paths = RunPaths(tmp_path / "run")

    with OutputWriter(paths, keep_rows=True) as output:
        for index in order:
            output.add(attempt(index), rows(index))
        published = output.publish(tmp_path / "out", "predictions.txt", order="input")

    assert published == tmp_path / "out" / "predictions.txt"
    assert published.read_bytes() == b"".join(rows(index) for index in range(5_000))
    assert os.listdir(tmp_path / "out") == ["predictions.txt"]


def test_completion_order_streams(tmp_path):
    """With order="completion" rows are in the order in which mini-batches ended."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        for index in (3, 0, 2, 1):
            output.add(attempt(index), rows(index))
        published = output.publish(tmp_path, "out.txt", order="completion")

    assert published.read_bytes() == rows(3) + rows(0) + rows(2) + rows(1)


def test_segments_of_every_size_are_copied(tmp_path):
    """Tiny, large and empty results end whole and in order in the output (R28)."""
    sizes = [0, 1, 3_000_000, 0, 20, (1 << 20) - 1, 1 << 20, 17, 9_000_000, 5]
    data = [random.Random(size).randbytes(size) for size in sizes]

    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        for index in reversed(range(len(data))):
            output.add(attempt(index), data[index])
        published = output.publish(tmp_path, "out.bin", order="input")

    assert published.read_bytes() == b"".join(data)


def test_only_final_successes_leave_rows(tmp_path):
    """A failed or superseded attempt is journalled, but its rows are not kept (R200)."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(attempt(0, Outcome.FAILED, final=False), b"bad\n")
        output.add(attempt(0, attempt=2), b"good\n")
        output.add(attempt(1, Outcome.TIMED_OUT), b"late\n")
        published = output.publish(tmp_path, "out.txt", order="input")
        totals = output.journal.totals()

    assert published.read_bytes() == b"good\n"
    assert (totals.attempts, totals.mini_batches, totals.mini_batches_succeeded) == (3, 2, 1)


def test_summary_only_has_no_partial_file(tmp_path):
    """Without rows to keep there is a journal and no partial file (R12)."""
    paths = RunPaths(tmp_path / "run")

    with OutputWriter(paths, keep_rows=False) as output:
        output.add(attempt(0), b"ignored\n")
        output.flush()
        assert list(output.journal.done()) == [0]

    assert not paths.partial.exists()


def test_flush_makes_everything_readable_by_others(tmp_path):
    """After flush() another reader of the journal sees all attempts, while the run goes on."""
    paths = RunPaths(tmp_path / "run")

    with OutputWriter(paths, keep_rows=True) as output:
        for index in range(3):
            output.add(attempt(index), rows(index))
        output.flush()
        with Journal(paths.journal) as other:
            assert list(other.done()) == [0, 1, 2]


@pytest.mark.timed
def test_attempts_are_committed_without_being_asked(tmp_path):
    """A finished mini-batch is on disk within a second (R201), with nobody calling flush()."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(attempt(0), rows(0))
        began = time.monotonic()
        while not list(output.journal.done()):
            assert time.monotonic() < began + 10
            time.sleep(0.01)

    # COMMIT_EVERY_S, and room for a busy machine.
    assert time.monotonic() - began < 5, "took longer"


def test_rows_are_synced_before_the_journal_has_them(tmp_path, monkeypatch):
    """The partial file is on disk before the journal says so: a loss of power tears nothing (R200)."""
    paths = RunPaths(tmp_path / "run")
    seen = []

    def sync(descriptor: int) -> None:
        with Journal(paths.journal) as journal:
            seen.append((os.fstat(descriptor).st_size, journal.totals().attempts))

    monkeypatch.setattr(writer.os, "fdatasync", sync)
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(attempt(0), b"12345")
        output.flush()
        output.add(attempt(1), b"678")
        output.flush()

    assert seen == [(5, 0), (8, 1)]


def test_a_mini_batch_is_settled_once(tmp_path):
    """The journal refuses a second final attempt of a mini-batch, loudly (R200)."""
    output = OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True)
    output.add(attempt(0), rows(0))
    output.flush()
    output.add(attempt(0, attempt=2), rows(0))

    with pytest.raises(OutputError, match="UNIQUE"):
        output.flush()
    output.close()


def test_a_full_disk_surfaces_and_says_how_to_go_on(tmp_path):
    """When the disk is full, the next call raises OutputError, saying what is kept and what to do."""
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.partial.symlink_to("/dev/full")
    output = OutputWriter(paths, keep_rows=True)
    output.add(attempt(0), rows(0))

    with pytest.raises(OutputError, match=r"No space left.*is kept.*Free some space.*again"):
        output.flush()
    with pytest.raises(OutputError, match="No space left"):
        output.add(attempt(1), rows(1))
    output.close()  # told already

    with Journal(paths.journal) as journal:
        assert journal.totals().attempts == 0


def test_close_tells_a_failure_that_nobody_has_heard_of(tmp_path):
    """No loss is silent: close() raises what no call before it has raised."""
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.partial.symlink_to("/dev/full")
    output = OutputWriter(paths, keep_rows=True)
    output.add(attempt(0), rows(0))

    with pytest.raises(OutputError, match="No space left"):
        output.close()


def test_closing_does_not_hide_the_exception_under_way(tmp_path):
    """An exception that ends the run stays the one that is seen, though writing failed too."""
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    paths.partial.symlink_to("/dev/full")

    def run() -> None:
        with OutputWriter(paths, keep_rows=True) as output:
            output.add(attempt(0), rows(0))
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        run()


def test_add_waits_for_a_slow_disk(tmp_path, monkeypatch):
    """What waits in memory for the disk is bounded: add() blocks until there is room."""
    monkeypatch.setattr(writer, "QUEUE_BYTES", 100_000)
    gate = threading.Event()
    really = writer.write_all
    monkeypatch.setattr(writer, "write_all", lambda *args: (gate.wait(30), really(*args))[1])
    monkeypatch.setattr(writer, "_ROUND_BYTES", 1)
    added = []

    def work() -> None:
        for index in range(20):
            output.add(attempt(index), b"x" * 50_000)
            added.append(index)

    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.3)
        held = len(added)
        gate.set()
        thread.join(30)
        output.flush()
        done = list(output.journal.done())

    assert held < 10
    assert done == list(range(20))


def test_a_disk_that_takes_nothing_is_given_up(tmp_path, monkeypatch):
    """No wait is without an end: a disk that hangs becomes an OutputError (R205)."""
    monkeypatch.setattr(writer, "STALL_S", 0.2)
    gate = threading.Event()
    monkeypatch.setattr(writer, "write_all", lambda *_: gate.wait(30))
    output = OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True)
    output.add(attempt(0), rows(0))

    with pytest.raises(OutputError, match="nothing could be written"):
        output.flush()

    gate.set()
    monkeypatch.setattr(writer, "STALL_S", 30.0)
    output.close()


def test_reopening_cuts_what_the_journal_does_not_know(tmp_path):
    """A run folder opened again goes on from the last journalled row; done() says what is done."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(attempt(0), rows(0))
        output.add(attempt(2), rows(2))
        output.add(attempt(3, Outcome.FAILED))
    with paths.partial.open("ab") as file:
        file.write(b"half a ro")

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0, 2]
        output.add(attempt(1), rows(1))
        output.add(attempt(3), rows(3))
        published = output.publish(tmp_path, "out.txt", order="input")
        totals = output.journal.totals()

    assert published.read_bytes() == b"".join(map(rows, range(4)))
    assert (totals.mini_batches, totals.mini_batches_succeeded) == (4, 4)
    assert (totals.mini_batches_reused, totals.items_reused) == (2, 2)


def test_failures_of_an_earlier_sitting_are_tried_again(tmp_path):
    """Opened again, failed mini-batches get fresh attempts; until then they are failed ones (R201)."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(attempt(0, Outcome.FAILED))

    with OutputWriter(paths, keep_rows=True) as output:
        before = output.journal.totals()
        done = list(output.done())
        output.add(attempt(0), rows(0))
        output.flush()
        after = output.journal.totals()

    assert done == []
    assert (before.mini_batches, before.items_succeeded > 0, before.items_failed > 0) == (
        1,
        False,
        True,
    )
    assert (after.mini_batches, after.items_succeeded > 0, after.items_failed > 0) == (
        1,
        True,
        False,
    )


def test_a_partial_file_that_lacks_journalled_rows_is_refused(tmp_path):
    """A run folder that somebody changed is refused instead of giving an output with holes."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(attempt(0), rows(0))
    paths.partial.write_bytes(b"")

    with pytest.raises(OutputError, match="0 bytes, but the journal"):
        OutputWriter(paths, keep_rows=True)


def test_a_journal_of_another_version_is_refused(tmp_path):
    """A journal written by another release is refused by name, not misread."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True):
        pass
    connection = sqlite3.connect(paths.journal)
    with connection:
        connection.execute("UPDATE meta SET value = 99 WHERE key = 'version'")
    connection.close()

    with pytest.raises(OutputError, match="version 99"):
        OutputWriter(paths, keep_rows=True)


def test_what_is_no_journal_is_refused(tmp_path):
    """A damaged journal is an OutputError that names the file."""
    paths = RunPaths(tmp_path)
    paths.journal.write_bytes(b"this is no database, whatever its name says" * 100)

    with pytest.raises(OutputError, match=r"journal\.sqlite"):
        OutputWriter(paths, keep_rows=True)


def test_a_closed_writer_takes_nothing(tmp_path):
    """add() after close() raises instead of losing the rows."""
    output = OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True)
    output.close()
    output.close()

    with pytest.raises(ValueError, match="closed"):
        output.add(attempt(0), rows(0))


CHILD = """
import sys
from pathlib import Path
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

output = OutputWriter(RunPaths(Path(sys.argv[1])), keep_rows=True)
done = set(output.done())
for index in range(10_000_000):
    if index in done:
        continue
    data = (f"{index} " + "x" * (index * 31 % 200) + "\\n").encode()
    output.add(AttemptRecord(mini_batch=index, attempt=1, final=True, outcome=Outcome.SUCCEEDED,
        node="node000", process="process000", items_total=1, items_succeeded=1, items_failed=0), data)
"""


def test_kill_9_loses_no_journalled_row_and_tears_none(tmp_path):
    """Killed at any moment, again and again, a run folder opens with whole rows, each once (R200)."""
    paths = RunPaths(tmp_path / "run")
    randomly = random.Random(os.getpid())
    counts = []

    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(paths.root)], env={"PYTHONPATH": str(REPOSITORY)}
        )
        wait_for_progress(child, paths, beyond=counts[-1] if counts else 0)
        time.sleep(randomly.random() * 0.3)  # the moment is the point, not a wait
        child.send_signal(signal.SIGKILL)
        child.wait()
        with OutputWriter(paths, keep_rows=True) as output:
            indices = list(output.done())
            published = output.publish(tmp_path, "out.txt", order="input")
        counts.append(len(indices))
        expected = [f"{index} " + "x" * (index * 31 % 200) for index in indices]
        assert published.read_text().splitlines() == expected
        assert paths.partial.stat().st_size == published.stat().st_size

    assert counts == sorted(set(counts))


def wait_for_progress(child: subprocess.Popen, paths: RunPaths, *, beyond: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert child.poll() is None
        if paths.journal.exists():
            try:
                with Journal(paths.journal) as journal:
                    if journal.totals().mini_batches > beyond:
                        return
            except OutputError:
                pass  # not made yet
        time.sleep(0.02)
    raise AssertionError("the child journalled nothing")
