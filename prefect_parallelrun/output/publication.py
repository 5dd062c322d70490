"""From segments of the partial file to the output file: in order, and in one step."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prefect_parallelrun.errors import OutputError, refuse
from prefect_parallelrun.output.descriptors import read_into, sync_folder, write_all
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.output.trouble import damaged_partial
from prefect_parallelrun.paths import RunPaths

_COPY_BYTES = 1 << 20
"""Segments from this size on are copied through one buffer; smaller ones are collected."""
_COLLECT_BYTES = 8 << 20
_COLLECT_SEGMENTS = 8192
_SPAN_BYTES = 16 << 20
_GAP_BYTES = 16 << 10
"""Reading so much that is not wanted costs less than another call."""

_NOT_NAMELESS = (
    errno.EOPNOTSUPP,
    errno.EISDIR,
    errno.EINVAL,
    errno.ENOENT,
    errno.EXDEV,
    errno.EPERM,
)
"""What file systems and kernels say that have no files without a name, or cannot name them later."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def check_destination(folder: Path, file_name: str | None = None) -> None:
    """Make the output folder and prove that it can be written, before any worker starts.

    Raises:
        ConfigError: it cannot, or the output file's name is taken by a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits say nothing to root, nor of a read-only mount: so really try.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\n")
            probe.flush()
    except OSError as error:
        raise refuse(
            "output",
            str(folder),
            f"a folder is needed that can be made and written ({_reason(error)})",
        ) from None
    if file_name is not None and (folder / file_name).is_dir():
        raise refuse(
            "append_row_file_name",
            file_name,
            f"{folder / file_name} is a folder; name another file, or another output",
        )


def publish(journal: Journal, paths: RunPaths, target: Path, *, order: Order, log: Log) -> Path:
    """Write the rows into a new file and give it the name of `target`, in one step.

    A reader sees the earlier file or the whole new one, never anything between. Where the file
    system can do that, the new file has no name before it is whole, so that a driver that is killed
    meanwhile leaves nothing.

    Raises:
        OutputError: it could not be written; an earlier file is as it was.
    """
    ((end,),) = journal.select("SELECT coalesce(max(offset + length), 0) FROM attempts")
    size = paths.partial.stat().st_size if paths.partial.exists() else 0
    if size < end:
        raise damaged_partial(paths, size, end)

    def fill(descriptor: int) -> None:
        write_all(descriptor, header(journal, log))
        with paths.partial.open("rb") as partial:
            for piece in pieces(partial.fileno(), journal.segments(order)):
                write_all(descriptor, piece)
        os.fsync(descriptor)

    # Named after the run: where a driver was killed before the last step, the one that goes on
    # finds it.
    temporary = target.parent / f".parallelrun-{paths.root.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            if not _write_nameless(temporary, fill):
                with temporary.open("wb", buffering=0) as file:
                    fill(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise OutputError(
            f"the output file {target} could not be written: {_reason(error)}. What was there "
            f"before is as it was, and all rows are kept in {paths.root}: run the step again "
            "once the cause is gone"
        ) from error
    return target


def _write_nameless(path: Path, fill: Callable[[int], None]) -> bool:
    """Fill a file that gets its name when it is whole; return False where that cannot be done."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            fill(descriptor)
            # Only with a folder given, be the path absolute or not, is the link followed.
            source = f"/proc/self/fd/{descriptor}"
            os.link(source, path, src_dir_fd=descriptor, follow_symlinks=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NOT_NAMELESS:
            return False
        raise
    return True


def header(journal: Journal, log: Log) -> bytes:
    """Return what comes before all rows: the header line, where one is wanted (R103)."""
    lines = journal.headers()
    if len(lines) > 1:
        log.warning(
            "mini-batches returned DataFrames with %d different headers; the output file has that "
            "of the first, %r, but there is also %r",
            len(lines),
            lines[0],
            lines[1],
        )
    return lines[0].encode() if lines else b""


def pieces(source: int, segments: Iterable[tuple[int, int]]) -> Iterator[bytes | memoryview]:
    """Yield what segments (offset and length in bytes) of a descriptor hold, in order.

    Each piece holds until the next is asked for. Memory is bounded, and calls are few even for
    millions of tiny segments: each would let go of the interpreter's lock, which is slow to come
    back while another thread of the flow computes.
    """
    small: list[tuple[int, int]] = []
    size = 0
    for offset, length in segments:
        if length < _COPY_BYTES:
            small.append((offset, length))
            size += length
        if length >= _COPY_BYTES or size >= _COLLECT_BYTES or len(small) >= _COLLECT_SEGMENTS:
            yield _collect(source, small)
            small, size = [], 0
        if length >= _COPY_BYTES:
            yield from _one(source, offset, length)
    yield _collect(source, small)


def _collect(source: int, segments: list[tuple[int, int]]) -> bytes:
    """Return the segments joined in the given order, read in the order of the file."""
    pieces: dict[int, bytes] = {}
    waiting: list[tuple[int, int]] = []
    first = end = 0
    for offset, length in sorted(segments):
        if waiting and (offset - end > _GAP_BYTES or offset + length - first > _SPAN_BYTES):
            _slice(source, waiting, pieces)
            waiting = []
        if not waiting:
            first = offset
        waiting.append((offset, length))
        end = offset + length
    if waiting:
        _slice(source, waiting, pieces)
    return b"".join([pieces[offset] for offset, _ in segments])


def _slice(source: int, segments: list[tuple[int, int]], pieces: dict[int, bytes]) -> None:
    """Read the span of some segments, ascending, and put each into `pieces`."""
    first = segments[0][0]
    end = sum(segments[-1])
    data = bytearray(end - first)
    read_into(source, memoryview(data), first)
    for offset, length in segments:
        pieces[offset] = bytes(data[offset - first : offset - first + length])


def _one(source: int, offset: int, length: int) -> Iterator[memoryview]:
    """Yield a large segment through one buffer."""
    buffer = memoryview(bytearray(_COPY_BYTES))
    while length:
        part = buffer[: min(length, _COPY_BYTES)]
        read_into(source, part, offset)
        yield part
        offset += len(part)
        length -= len(part)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
