"""Reading segments of the partial file: few calls, bounded memory, whatever their number and size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from prefect_parallelrun.output.descriptors import read_into

_COPY_BYTES = 1 << 20
"""Segments from this size on are copied through one buffer; smaller ones are collected."""
_COLLECT_BYTES = 8 << 20
_COLLECT_SEGMENTS = 8192
_SPAN_BYTES = 16 << 20
_GAP_BYTES = 16 << 10
"""Reading so much that is not wanted costs less than another call."""


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


class Stream(io.RawIOBase):
    """The pieces as one file to read from."""

    def __init__(self, source: Iterator[bytes | memoryview]) -> None:
        self._source = source
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of the buffer as the piece at hand has."""
        while not self._piece:
            piece = next(self._source, None)
            if piece is None:
                return 0
            self._piece = memoryview(piece)
        into = memoryview(buffer).cast("B")
        count = min(len(into), len(self._piece))
        into[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count
