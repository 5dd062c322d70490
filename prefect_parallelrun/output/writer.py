"""Rows and attempts to disk by one thread of its own, so that the driver never waits for a disk.

What is on disk is always right: rows are synced to the partial file before the journal says that
they are there (R200). What a crash takes is at most the last half second.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import publication
from prefect_parallelrun.output.descriptors import sync_folder, write_all
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.output.recorder import Entry, Recorder
from prefect_parallelrun.paths import RunPaths

COMMIT_EVERY_S = 0.5
"""The journal is committed no later than this after an attempt was added."""
QUEUE_BYTES = 32 << 20
"""More than this is not taken in while the disk is slower than the run; `add` then waits."""
STALL_S = 600.0
"""A disk that takes nothing for so long is given up."""

_ROUND_BYTES = 4 << 20
_ROUND_ATTEMPTS = 16_384
_ATTEMPT_BYTES = 1024
"""What an attempt in the queue costs in memory, besides its rows."""
_JOIN_BYTES = 1 << 20
_KEPT = "All that the journal has is kept."

_Job = tuple[AttemptRecord, bytes, str | None]
_logger = logging.getLogger(__name__)


class OutputWriter:
    """Owns the partial file and the journal of one run while it is going on.

    Opened on the folder of an earlier sitting, it cuts the partial file to the last journalled row
    and goes on from there: `done()` then says which mini-batches need not run again.
    """

    def __init__(
        self,
        paths: RunPaths,
        *,
        keep_rows: bool,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = _logger,
    ) -> None:
        """Open, and make what is not there.

        Raises:
            OutputError: the run folder cannot be written, or its files contradict each other.
        """
        self._paths = paths
        self._log = log
        with _explained(paths), ExitStack() as undo:
            paths.root.mkdir(parents=True, exist_ok=True)
            self._recorder = undo.enter_context(closing(Recorder(paths.journal)))
            self._end = self._recorder.resume()
            self.journal = undo.enter_context(Journal(paths.journal))
            """For reading, from any thread; it shows what is committed."""
            self._partial = _open_partial(paths.partial, self._end) if keep_rows else None
            undo.pop_all()
        self._changed = threading.Condition()
        # All below, up to the next comment, under that lock.
        self._queue: list[_Job] = []
        self._queued_bytes = 0
        self._flushes_asked = 0
        self._flushes_done = 0
        self._idle = False
        self._closing = False
        self._ended = False
        self._failure: OutputError | None = None
        self._failure_told = False
        self._progress = 0
        # The writing thread's own.
        self._written: list[Entry] = []
        self._due = 0.0
        # A daemon: a flow that dies must not wait for it. Nothing is lost that a crash would keep.
        self._thread = threading.Thread(target=self._work, name="parallelrun-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> OutputWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close it; a failure to write does not hide an exception that is under way."""
        try:
            self.close()
        except OutputError as error:
            if kind is None:
                raise
            self._log.error("%s", error)

    def done(self) -> Iterator[int]:
        """Yield the index of every mini-batch whose success is journalled, ascending."""
        return self.journal.done()

    def add(self, record: AttemptRecord, data: bytes = b"", columns: str | None = None) -> None:
        """Take in an attempt that ended; of a final success its rows too, if rows are kept.

        Returns at once, unless the disk is far behind.

        Raises:
            OutputError: something added before could not be written.
        """
        with self._changed:
            if self._closing:
                raise ValueError("the writer is closed")
            if self._failure is not None or self._queued_bytes >= QUEUE_BYTES:
                self._wait(lambda: self._queued_bytes < QUEUE_BYTES)
            self._queue.append((record, data, columns))
            self._queued_bytes += len(data) + _ATTEMPT_BYTES
            if self._idle or self._queued_bytes >= _ROUND_BYTES:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when all that was added is on disk and in the journal.

        Raises:
            OutputError: something of it could not be written.
        """
        with self._changed:
            self._flushes_asked += 1
            wanted = self._flushes_asked
            self._changed.notify_all()
            self._wait(lambda: self._flushes_done >= wanted)

    def publish(self, destination: Path, file_name: str, *, order: Order) -> Path:
        """Put the rows of all mini-batches that succeeded into one file, in one step (R50, R220).

        Raises:
            OutputError: the file could not be written; an earlier one is as it was.
        """
        self.flush()
        if self._partial is None:
            raise ValueError("this run keeps no rows, so there is nothing to publish")
        return publication.publish(
            self.journal, self._paths, destination / file_name, order=order, log=self._log
        )

    def close(self) -> None:
        """Write what is left and let go of the files; a second call does nothing.

        Raises:
            OutputError: something could not be written, and nobody was told so far.
        """
        try:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
                if not self._failure_told:
                    self._wait(lambda: self._ended)
        finally:
            if self._ended:
                self._release()

    def _release(self) -> None:
        self._thread.join()
        self._recorder.close()
        self.journal.close()
        if self._partial is not None:
            os.close(self._partial)
            self._partial = None

    def _wait(self, until: Callable[[], bool]) -> None:
        """Wait, under the lock, for the writing thread; never without an end (R205)."""
        seen, since = self._progress, time.monotonic()
        while True:
            if self._failure is not None:
                self._failure_told = True
                raise self._failure
            if until():
                return
            self._changed.wait(STALL_S)
            if self._progress != seen:
                seen, since = self._progress, time.monotonic()
            elif time.monotonic() - since >= STALL_S:
                raise OutputError(
                    f"nothing could be written to {self._paths.root} for {STALL_S:.0f} seconds: "
                    "look at the disk or the network file system that holds it. " + _KEPT
                )

    def _work(self) -> None:
        """Write until closed; what goes wrong is told to whoever calls next."""
        failure = None
        try:
            while self._round():
                pass
        except BaseException as error:
            failure = _failed(self._paths, error)
        with self._changed:
            self._failure, self._ended = failure, True
            self._queue.clear()
            self._changed.notify_all()

    def _round(self) -> bool:
        """Write what has come in, and commit if it is time; return whether to go on."""
        jobs, flushes, last = self._take()
        self._append(jobs)
        late = time.monotonic() >= self._due
        if last or flushes > self._flushes_done or late or len(self._written) >= _ROUND_ATTEMPTS:
            self._commit()
        with self._changed:
            self._flushes_done = flushes
            self._progress += 1
            self._changed.notify_all()
        return not last

    def _take(self) -> tuple[list[_Job], int, bool]:
        """Wait until a round is worth it; return what came in, flushes asked for, and if it is the last."""
        with self._changed:
            while not (
                self._closing
                or self._flushes_asked > self._flushes_done
                or self._queued_bytes >= _ROUND_BYTES
            ):
                if self._queue or self._written:
                    left = self._due - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                else:
                    self._idle = True
                    self._changed.wait()
                    self._idle = False
                    self._due = time.monotonic() + COMMIT_EVERY_S
            jobs, self._queue = self._queue, []
            self._queued_bytes = 0
            self._changed.notify_all()
            return jobs, self._flushes_asked, self._closing

    def _append(self, jobs: Sequence[_Job]) -> None:
        pieces: list[bytes] = []
        for record, data, columns in jobs:
            kept = record.final and record.outcome is Outcome.SUCCEEDED
            if self._partial is None or not kept:
                self._written.append(Entry(record, None, None, None))
                continue
            self._written.append(Entry(record, self._end, len(data), columns))
            self._end += len(data)
            pieces.append(data)
        if self._partial is not None:
            _write(self._partial, pieces)

    def _commit(self) -> None:
        if self._written:
            if self._partial is not None:
                os.fdatasync(self._partial)
            self._recorder.record(self._written)
            self._written = []
        self._due = time.monotonic() + COMMIT_EVERY_S


def _open_partial(path: Path, end: int) -> int:
    """Open the partial file at `end`, cutting off what the journal does not know of."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size < end:
            raise OutputError(
                f"{path} has {size:,} bytes, but the journal beside it has rows up to {end:,}: "
                "something else changed this run folder, so it cannot be gone on with; "
                "start a new run"
            )
        if size > end:
            os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        sync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, pieces: list[bytes]) -> None:
    """Write all pieces; small ones together, since a call costs more than copying them."""
    position = 0
    while position < len(pieces):
        first, size = position, 0
        while position < len(pieces) and (first == position or size < _JOIN_BYTES):
            size += len(pieces[position])
            position += 1
        write_all(descriptor, b"".join(pieces[first:position]))


@contextmanager
def _explained(paths: RunPaths) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise _failed(paths, error) from error


def _failed(paths: RunPaths, error: BaseException) -> OutputError:
    """Build the error for a run folder that cannot be written: what is kept, and how to go on."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "disk is full" in str(error):
        remedy = "Free some space"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Make the folder writable"
    else:
        remedy = "Remove the cause"
    failure = OutputError(
        f"the output of the run could not be written in {paths.root}: "
        f"{type(error).__name__}: {error}. {_KEPT} {remedy} and run the step again: it goes on "
        "from there."
    )
    failure.__cause__ = error
    return failure
