"""Rows and attempts to disk by one thread of its own, so that the driver never waits for a disk.

What is on disk is always right: rows are synced to the partial file before the journal says that
they are there (R200). What a crash takes is at most what came in the last COMMIT_EVERY_S.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, NodeRecord, Outcome, ProcessRecord
from prefect_parallelrun.output import earlier, publication
from prefect_parallelrun.output.descriptors import sync_folder, write_all
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.output.recorder import Entry, Recorder
from prefect_parallelrun.output.trouble import KEPT, damaged_partial, explain, explained
from prefect_parallelrun.paths import RunPaths

COMMIT_EVERY_S = 0.2
"""The journal is committed no later than this after an attempt was added; with `policy.BUNDLE_LIMIT_S`
this stays below a second (R201)."""
QUEUE_BYTES = 32 << 20
"""More than this is not taken in while the disk is slower than the run; `add` then waits."""
STALL_S = 600.0
"""A disk that takes nothing for so long is given up."""

_ROUND_BYTES = 4 << 20
_ROUND_ATTEMPTS = 16_384
_ATTEMPT_BYTES = 1024
"""What an attempt in the queue costs in memory, besides its rows."""
_JOIN_BYTES = 1 << 20

_Job = tuple[AttemptRecord, bytes, str | None]
_logger = logging.getLogger(__name__)


class OutputWriter:
    """Owns the partial file and the journal of one run while it is going on.

    Opened on the folder of an earlier sitting, it cuts the partial file to the last journalled row
    and goes on from there: `earlier` and `done()` say what need not run again.
    """

    def __init__(
        self,
        paths: RunPaths,
        *,
        keep_rows: bool,
        retry_missing: bool = False,
        guard: Callable[[], None] = lambda: None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = _logger,
    ) -> None:
        """Open, and make what is not there.

        Args:
            paths: of the run.
            keep_rows: whether there is a partial file and an output (`append_row`).
            retry_missing: whether mini-batches, and parts, of which rows are missing (R16) are tried
                again; what then settles such a one takes the place of its earlier rows.
            guard: called before anything is written, in the writing thread; raises an OutputError
                where nothing may be written any more.
            log: gets what a user should know.

        Raises:
            OutputError: the run folder cannot be written, or its files are damaged.
        """
        self._paths = paths
        self._guard = guard
        self._log = log
        with explained(paths.journal), ExitStack() as undo:
            paths.root.mkdir(parents=True, exist_ok=True)
            self._recorder = undo.enter_context(closing(Recorder(paths.journal)))
            self._end = self._recorder.end
            self._partial = _open_partial(paths, self._end) if keep_rows else None
            if self._partial is not None:
                undo.callback(os.close, self._partial)
            self._recorder.resume()
            self.journal = undo.enter_context(Journal(paths.journal))
            """For reading, from any thread; it shows what is committed."""
            self.earlier = earlier.read_earlier(self.journal, retry_missing=retry_missing)
            """What earlier sittings have done, as it was when this one began."""
            undo.pop_all()
        self._changed = threading.Condition()
        # All below, up to the next comment, under that lock.
        self._queue: list[_Job] = []
        self._queued_bytes = 0
        self._notes: list[NodeRecord | ProcessRecord] = []
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
        """Yield the index of every mini-batch that need not run, ascending."""
        return earlier.done(self.journal, self.earlier)

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

    @property
    def has_room(self) -> bool:
        """Whether what is added now is neither waited for nor refused."""
        with self._changed:
            return self._failure is None and self._queued_bytes < QUEUE_BYTES

    def note(self, record: NodeRecord | ProcessRecord) -> None:
        """Take in what is known of a node or a worker process now; it takes the place of what was."""
        with self._changed:
            self._notes.append(record)
            if self._idle:
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

    def publish(
        self, destination: Path, file_name: str, *, order: Order, output_format: str = "text"
    ) -> Path:
        """Put the rows of all mini-batches that succeeded into one file, in one step (R50, R220, R221).

        Raises:
            OutputError: the file could not be written; an earlier one is as it was.
        """
        self.flush()
        if self._partial is None:
            raise ValueError("this run keeps no rows, so there is nothing to publish")
        return publication.publish(
            self.journal,
            self._paths,
            destination / file_name,
            order=order,
            log=self._log,
            output_format=output_format,
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
        self.journal.close()
        # The last to close puts all into the one file, which a connection for reading cannot.
        self._recorder.close()
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
                    "look at the disk or the network file system that holds it. " + KEPT
                )

    def _work(self) -> None:
        """Write until closed; what goes wrong is told to whoever calls next."""
        failure = None
        try:
            while self._round():
                pass
        except BaseException as error:
            if isinstance(error, OutputError):
                failure = error
            else:
                failure = explain(self._paths.journal, error)
        with self._changed:
            self._failure, self._ended = failure, True
            self._queue.clear()
            self._changed.notify_all()

    def _round(self) -> bool:
        """Write what has come in, and commit if it is time; return whether to go on."""
        jobs, flushes, last = self._take()
        self._guard()
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
                if self._queue or self._notes or self._written:
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
        with self._changed:
            notes, self._notes = self._notes, []
        if self._written or notes:
            if self._partial is not None and self._written:
                os.fdatasync(self._partial)
            self._recorder.record(self._written, notes)
            self._written = []
        self._due = time.monotonic() + COMMIT_EVERY_S


def _open_partial(paths: RunPaths, end: int) -> int:
    """Open the partial file at `end`, cutting off what the journal does not know of."""
    size = paths.partial.stat().st_size if paths.partial.exists() else 0
    if size < end:
        raise damaged_partial(paths, size, end)
    descriptor = os.open(paths.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if size > end:
            os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        sync_folder(paths.root)
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
