from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import lock
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import LockLost, RunLock
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

HOLDER = """
import sys, time
from pathlib import Path
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.paths import RunPaths
with RunLock(RunPaths(Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path)


@pytest.fixture
def holder(paths):
    """Another process that has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(paths.root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def _as_of(paths, **changes):
    """Make the owner in the lock file another one."""
    owner = json.loads(paths.lock.read_text())
    paths.lock.write_text(json.dumps({**owner, **changes}))


def _silent_for(paths, seconds):
    moment = time.time() - seconds
    os.utime(paths.lock, (moment, moment))


def test_a_second_process_is_told_who_works(paths, holder):
    """Two drivers never work on one run: the second hears who has it, and what to do (R200)."""
    with pytest.raises(OutputError) as error, RunLock(paths):
        pass

    for told in (f"process {holder.pid}", "Wait", "allow_reuse=False", str(paths.root), "UTC"):
        assert told in str(error.value)


def test_a_killed_process_is_succeeded_at_once(paths, holder):
    """On one machine the process decides, not the heartbeat; that it is not reaped yet changes nothing."""
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie

    with RunLock(paths) as taken:
        assert taken.before is not None
        assert taken.before.pid == holder.pid


def test_a_stopped_process_keeps_its_lock(paths, holder):
    """A driver of this machine that was stopped for an hour is alive, and has the run."""
    os.kill(holder.pid, signal.SIGSTOP)
    _silent_for(paths, 3600)

    with pytest.raises(OutputError, match="last heard of 36"), RunLock(paths):
        pass


def test_a_process_number_that_is_used_again(paths, holder):
    """A process with the number of a dead driver is not that driver: it began at another time."""
    _as_of(paths, started=1)

    with RunLock(paths) as taken:
        assert taken.before is not None


def test_another_thread_of_this_process(paths):
    """The threads of one process exclude each other as well; after the first the second may (R200)."""
    refused = []

    def second():
        try:
            with RunLock(paths):
                pass
        except OutputError as error:
            refused.append(str(error))

    with RunLock(paths):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
    second()

    assert len(refused) == 1
    assert f"process {os.getpid()}" in refused[0]


@pytest.mark.parametrize("other", ["boot", "namespace"])
def test_a_driver_elsewhere(paths, holder, other):
    """Of another machine, or another container, only the heartbeat tells whether the driver lives."""
    _as_of(paths, **{other: "another"})
    _silent_for(paths, lock.STALE_S - 10)
    with pytest.raises(OutputError, match="last heard of 50 seconds ago"), RunLock(paths):
        pass

    _silent_for(paths, lock.STALE_S + 1)
    with RunLock(paths) as taken:
        assert taken.before is not None


def test_the_clock_of_the_file_system_counts(paths, holder, monkeypatch):
    """A machine whose own clock is wrong takes nothing over: the file system's clock is asked."""
    _as_of(paths, boot="another")
    monkeypatch.setattr(time, "time", lambda: 4e9)

    with pytest.raises(OutputError, match=r"last heard of [0-9] seconds ago"), RunLock(paths):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "1"}'])
def test_a_lock_file_that_says_nothing(paths, content):
    """A driver killed while it wrote its name down has no lock."""
    paths.lock.write_text(content)

    with RunLock(paths) as taken:
        assert taken.before is None


def test_the_heartbeat(paths, monkeypatch):
    """The owner touches the lock file as long as it has it, and leaves it free (design 5)."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.02)
    with RunLock(paths) as owned:
        _silent_for(paths, 100)
        deadline = time.monotonic() + 10
        while time.time() - paths.lock.stat().st_mtime > 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - paths.lock.stat().st_mtime < 50
        owned.check()
        owned.confirm()
    with RunLock(paths) as again:
        assert again.before is None


def test_a_driver_that_lost_its_lock_stops(paths):
    """One that did not run for a while, and was succeeded, is told so; the successor is left alone."""
    with RunLock(paths) as slept:
        _as_of(paths, token="1", host="elsewhere", boot="another")
        with pytest.raises(LockLost, match="elsewhere"):
            slept.confirm()
        with pytest.raises(LockLost, match="took over"):
            slept.check()

    assert json.loads(paths.lock.read_text())["host"] == "elsewhere"


def test_a_driver_that_slept_looks_before_it_goes_on(paths, monkeypatch):
    """After a gap between heartbeats the first check looks, whatever the heartbeat's thread has seen."""
    with RunLock(paths) as slept:
        _as_of(paths, token="1", host="elsewhere", boot="another")
        slept.check()  # nothing is known yet, and nothing is in doubt
        real = lock._now
        monkeypatch.setattr(lock, "_now", lambda: real() + lock.STALE_S)
        with pytest.raises(LockLost):
            slept.check()


def test_a_run_folder_that_is_removed(paths):
    """Whoever removes the lock file, or the folder, ends the run."""
    with RunLock(paths) as owned:
        paths.lock.unlink()
        with pytest.raises(LockLost, match="its lock file is gone"):
            owned.confirm()


def test_a_race(paths):
    """Of many that try at once exactly one gets the lock."""
    with RunLock(paths):
        _as_of(paths, token="dead", boot="another")
        _silent_for(paths, lock.STALE_S + 1)
    got, refused, together = [], [], threading.Barrier(8)
    done = threading.Event()

    def attempt():
        together.wait()
        try:
            with RunLock(paths) as owned:
                got.append(owned)
                done.wait(10)
        except OutputError:
            refused.append(1)
            if len(refused) == 7:
                done.set()

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(got), len(refused)) == (1, 7)


def test_a_file_system_without_locks(paths, monkeypatch):
    """Where two drivers could not be kept apart, none begins."""
    monkeypatch.setattr(lock.fcntl, "flock", _no_locks)

    with pytest.raises(OutputError, match=r"cannot be locked.*RUN_ROOT"), RunLock(paths):
        pass


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "Make the folder writable")],
)
def test_a_lock_that_cannot_be_written(paths, monkeypatch, number, remedy):
    """A full or read-only disk is named as such, with what to do about it (R206)."""

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.os, "pwrite", refused)

    with pytest.raises(OutputError, match=f"{remedy} and run the step again"), RunLock(paths):
        pass


def _no_locks(*_):
    raise OSError(95, "Operation not supported")


def test_without_the_lock_nothing_is_written(paths):
    """Rows that wait to be written when the lock is lost are not: their place is another driver's now."""
    with RunLock(paths) as slept:
        writer = OutputWriter(paths, keep_rows=True, guard=slept.confirm)
        _as_of(paths, token="1", host="elsewhere", boot="another")
        writer.add(
            AttemptRecord(
                mini_batch=0,
                attempt=1,
                final=True,
                outcome=Outcome.SUCCEEDED,
                node="node000",
                process="process000",
                items_total=1,
                items_succeeded=1,
                items_failed=0,
            ),
            b"row\n",
        )
        with pytest.raises(LockLost, match="elsewhere"):
            writer.close()

    assert paths.partial.read_bytes() == b""
    with Journal(paths.journal) as journal:
        assert journal.totals().attempts == 0
