"""From segments of the partial file to the output file: in order, and in one step."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prefect_parallelrun.errors import OutputError, refuse
from prefect_parallelrun.output.descriptors import read_into, sync_folder, write_all
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.paths import RunPaths

_COPY_BYTES = 1 << 20
"""Segments from this size on are copied through one buffer; smaller ones are collected."""
_COLLECT_BYTES = 8 << 20
_COLLECT_SEGMENTS = 8192
_SPAN_BYTES = 16 << 20
_GAP_BYTES = 16 << 10
"""Reading so much that is not wanted costs less than another call."""


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


def publish(
    journal: Journal,
    paths: RunPaths,
    target: Path,
    *,
    order: Order,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> Path:
    """Write the rows into a file beside `target` and rename it into place.

    A reader sees the earlier file or the whole new one, never anything between.

    Raises:
        OutputError: it could not be written; an earlier file is as it was.
    """
    # Named after the run, so that what a killed driver left is overwritten by the one that goes on.
    temporary = target.parent / f".parallelrun-{paths.root.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb", buffering=0) as file, paths.partial.open("rb") as partial:
                file.write(_header(journal, log))
                copy(partial.fileno(), file.fileno(), journal.segments(order))
                os.fsync(file.fileno())
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


def _header(journal: Journal, log: logging.Logger | logging.LoggerAdapter[logging.Logger]) -> bytes:
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


def copy(source: int, target: int, segments: Iterable[tuple[int, int]]) -> None:
    """Append the segments (offset and length in bytes) of one descriptor to another, in order.

    Memory is bounded, and calls are few even for millions of tiny segments: each would let go of
    the interpreter's lock, which is slow to come back while another thread of the flow computes.
    """
    small: list[tuple[int, int]] = []
    size = 0
    for offset, length in segments:
        if length < _COPY_BYTES:
            small.append((offset, length))
            size += length
        if length >= _COPY_BYTES or size >= _COLLECT_BYTES or len(small) >= _COLLECT_SEGMENTS:
            write_all(target, _collect(source, small))
            small, size = [], 0
        if length >= _COPY_BYTES:
            _copy_one(source, target, offset, length)
    write_all(target, _collect(source, small))


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


def _copy_one(source: int, target: int, offset: int, length: int) -> None:
    buffer = memoryview(bytearray(_COPY_BYTES))
    while length:
        part = buffer[: min(length, _COPY_BYTES)]
        read_into(source, part, offset)
        write_all(target, part)
        offset += len(part)
        length -= len(part)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
