from __future__ import annotations

import sqlite3
import threading
import time

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptError, AttemptRecord, Outcome
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.recorder import Entry, Recorder


def record(mini_batch: int, **changes) -> AttemptRecord:
    fields = {
        "mini_batch": mini_batch,
        "attempt": 1,
        "final": True,
        "outcome": Outcome.SUCCEEDED,
        "node": "node000",
        "process": "process000",
        "items_total": 2,
        "items_succeeded": 2,
        "items_failed": 0,
        "rows": 2,
    }
    return AttemptRecord(**(fields | changes))


def error(message: str = "bad pixel", **changes) -> AttemptError:
    fields = {
        "category": "exception",
        "type": "ValueError",
        "message": message,
        "where": "score.py:12 in run",
        "traceback": f"Traceback …\nValueError: {message}",
    }
    return AttemptError(**(fields | changes))


def failed(mini_batch: int, why: AttemptError | None = None, **changes) -> AttemptRecord:
    fields = {
        "outcome": Outcome.FAILED,
        "items_succeeded": 0,
        "items_failed": 2,
        "rows": 0,
        "error": why,
    }
    return record(mini_batch, **(fields | changes))


def journal_of(path, *records: AttemptRecord) -> Journal:
    recorder = Recorder(path / "journal.sqlite")
    recorder.record([Entry(each, None, None, None) for each in records])
    recorder.close()
    return Journal(path / "journal.sqlite")


def test_attempts_read_back_as_they_were(tmp_path):
    """Every field of an attempt comes back from the journal."""
    first = record(
        7,
        attempt=3,
        final=False,
        outcome=Outcome.TIMED_OUT,
        node="node001",
        process="process003",
        items_total=5,
        items_succeeded=1,
        items_failed=4,
        rows=9,
        started_at=1_754_300_000.25,
        elapsed_s=1.5,
        cpu_s=0.75,
        run_s=1.25,
        error=error(category="timeout", stage="run"),
        items_sample=("/data/a b.png", "/data/ä.png", "/data/\udcff.png"),
        log_file="/logs/error/node001/process003.txt",
    )
    second = record(8)

    with journal_of(tmp_path, first, second) as journal:
        assert list(journal.attempts()) == [first, second]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1023, 5000])
def test_groups_of_any_size_are_recorded_whole(tmp_path, count):
    """No attempt is lost or doubled, however many come at once."""
    with journal_of(tmp_path, *(record(index) for index in range(count))) as journal:
        assert list(journal.done()) == list(range(count))
        assert journal.totals().attempts == count


def test_a_group_is_recorded_all_or_none(tmp_path):
    """If one attempt of a group is refused, none of the group is in the journal."""
    recorder = Recorder(tmp_path / "journal.sqlite")
    with pytest.raises(sqlite3.IntegrityError):
        recorder.record([Entry(record(index), None, None, None) for index in (0, 1, 0)])
    recorder.close()

    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.totals().attempts == 0


def test_segments_are_in_input_order_and_neighbours_are_one(tmp_path):
    """Segments follow the mini-batches; those that follow each other in the file are one."""
    recorder = Recorder(tmp_path / "journal.sqlite")
    places = {0: (0, 10), 1: (10, 5), 3: (15, 5), 2: (20, 7), 4: (27, 0), 5: (27, 3)}
    recorder.record([Entry(record(index), *place, None) for index, place in places.items()])
    recorder.close()

    with Journal(tmp_path / "journal.sqlite") as journal:
        assert list(journal.segments("input")) == [(0, 15), (20, 7), (15, 5), (27, 3)]
        assert list(journal.segments("completion")) == [(0, 30)]


def test_segments_of_many_pages_fit_together(tmp_path):
    """Neighbours are one segment also where a page of the journal ends between them."""
    recorder = Recorder(tmp_path / "journal.sqlite")
    recorder.record([Entry(record(index), index * 3, 3, None) for index in range(10_000)])
    recorder.close()

    with Journal(tmp_path / "journal.sqlite") as journal:
        assert list(journal.segments("input")) == [(0, 30_000)]


def test_equal_errors_are_stored_once(tmp_path):
    """Thousands of equal stack traces cost the room of one, and the group counts them all (R209)."""
    why = error(traceback="t" * 50_000)

    with journal_of(tmp_path, *(failed(index, why) for index in range(4_000))) as journal:
        (group,) = journal.error_groups()

    assert group.count == 4_000
    assert (tmp_path / "journal.sqlite").stat().st_size < 2_000_000


def test_error_groups_name_the_first_attempt(tmp_path):
    """A group has the message, items and place of the attempt that came first; most frequent first."""
    with journal_of(
        tmp_path,
        failed(9, error("one"), final=False, items_sample=("i9",), process="process001"),
        failed(3, error("two")),
        failed(4, error("other", type="KeyError", where="score.py:20 in run")),
        failed(5, error("three")),
        record(9, attempt=2),
    ) as journal:
        first, second = journal.error_groups()

    assert (first.type, first.count, first.message) == ("ValueError", 3, "one")
    assert (first.first_mini_batch, first.first_items, first.process) == (9, ("i9",), "process001")
    assert (second.type, second.count, second.where) == ("KeyError", 1, "score.py:20 in run")


def test_losing_a_node_is_no_error_of_the_script(tmp_path):
    """Lost nodes and cancellations are in the journal, but in no group, unless they were the end."""
    lost = error("node000 is gone", category="node_lost", type="NodeLost", where="")
    with journal_of(
        tmp_path,
        record(0, outcome=Outcome.NODE_LOST, final=False, error=lost),
        record(1, outcome=Outcome.CANCELLED, final=False, error=error("stop", type="Cancelled")),
    ) as journal:
        assert journal.error_groups() == []

    (tmp_path / "b").mkdir()
    with journal_of(tmp_path / "b", failed(0, lost, outcome=Outcome.NODE_LOST)) as journal:
        assert [group.type for group in journal.error_groups()] == ["NodeLost"]


def test_each_attempt_keeps_its_own_message_within_limits(tmp_path):
    """Messages of one group stay apart, and a huge one is cut, saying how long it was."""
    with journal_of(
        tmp_path, failed(0, error("a")), failed(1, error("b")), failed(2, error("c" * 1_000_000))
    ) as journal:
        messages = [each.error.message for each in journal.attempts()]

    assert messages[:2] == ["a", "b"]
    assert messages[2] == "c" * 2_000 + "… (1,000,000 characters)"


def test_text_that_is_not_utf8_is_journalled(tmp_path):
    """A path with bytes that are not UTF-8 in a message does not stop the run."""
    with journal_of(tmp_path, failed(0, error("no file /data/\udcff.png"))) as journal:
        (attempt,) = journal.attempts()

    assert attempt.error.message == r"no file /data/\udcff.png"


def test_failures_come_by_mini_batch(tmp_path):
    """Failures are those settled with failed items, missing rows included, in input order."""
    with journal_of(
        tmp_path,
        failed(5, error("late"), attempt=3),
        failed(1, error("early"), final=False),
        record(1, attempt=2),
        record(2, items_succeeded=1, items_failed=1),
        failed(9),
    ) as journal:
        failures = list(journal.failures())

    assert [failure.mini_batch for failure in failures] == [2, 5, 9]
    assert (failures[1].attempt, failures[1].message) == (3, "late")
    assert failures[0].category is None


def test_a_journal_that_is_not_there_is_named(tmp_path):
    """Reading a run folder without a journal says which file is missing, and makes none."""
    with pytest.raises(OutputError, match=r"nothing\.sqlite"):
        Journal(tmp_path / "nothing.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_path_of_any_name_can_be_opened(tmp_path):
    """Spaces, quotes, percent and question marks in a path are not taken for syntax."""
    folder = tmp_path / "a b'c\"d?e%20#f"
    folder.mkdir()

    with journal_of(folder, record(0)) as journal:
        assert list(journal.done()) == [0]


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /mnt/shared nfs4 rw 0 0
/dev/vdb /mnt/shared/local ext4 rw 0 0
store /mnt/with\\040space fuse.s3fs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected", "reason"),
    [
        ("/home/u/journal.sqlite", False, "the root file system is local"),
        ("/mnt/shared/r/journal.sqlite", True, "NFS"),
        ("/mnt/shared/local/journal.sqlite", False, "a local disk mounted below NFS"),
        ("/mnt/sharedother/journal.sqlite", False, "only the beginning of the name is the same"),
        ("/mnt/with space/journal.sqlite", True, "mount points are escaped"),
    ],
)
def test_network_file_systems_are_recognised(tmp_path, path, expected, reason):
    """The journal mode follows the file system that holds the run folder."""
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)

    assert schema.is_on_network(schema.Path(path), mounts) is expected, reason


def test_a_journal_on_a_network_file_system_works(tmp_path, monkeypatch):
    """Without the write-ahead log, which needs a local file system, all else is the same."""
    monkeypatch.setattr(schema, "is_on_network", lambda _: True)

    with journal_of(tmp_path, record(0)) as journal:
        assert list(journal.done()) == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.sqlite"]


@pytest.mark.timed
def test_a_busy_thread_of_the_flow_does_not_stop_the_journal(tmp_path):
    """Attempts are journalled and read in few steps: each waits for the interpreter's lock."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        began = time.monotonic()
        with journal_of(tmp_path, *(record(index) for index in range(10_000))) as journal:
            assert sum(1 for _ in journal.done()) == 10_000
        elapsed_s = time.monotonic() - began
    finally:
        stop.set()
        busy.join()

    assert elapsed_s < 10, "took longer"  # one by one it is about 50
