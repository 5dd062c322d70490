"""Frames between agent, supervisor and worker process: a fixed prefix, a JSON header, raw bytes.

No pickles: the worker process may be another interpreter with other packages, and what a script
returns must never run code in the Dask worker. The supervisor passes results on without opening
them, so all that it needs for that is in the prefix.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

PREFIX = struct.Struct("<BIIQ")
"""kind, tag (the bundle's number; 0 where there is none), bytes of the header, bytes of the payload"""

SETTINGS = 1
"""To supervisor and worker process, once, first: a `messages.Settings`."""
BUNDLE = 2
"""To both: header `messages.BundleHeader`, payload a JSON list of `messages.Task`."""
STOP = 3
"""To both: finish what is running, call `shutdown()`, end. No header."""
CANCEL = 4
"""To the supervisor: give up the bundle `tag`; whatever runs of it is killed."""
RESULT = 5
"""From both: one attempt ended; header `messages.Result`, payload the encoded rows."""
BUNDLE_END = 6
"""From both: no more results for bundle `tag`; header `messages.BundleEnd`."""
EVENT = 7
"""From both: something else happened; header `messages.Event`."""


class Frame(NamedTuple):
    """One message."""

    kind: int
    tag: int
    header: bytes
    payload: bytes

    def json(self) -> Any:
        """Return the header, decoded."""
        return json.loads(self.header)


def pack(kind: int, tag: int = 0, header: Any = None, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame; `header` is anything that JSON can say."""
    head = b"" if header is None else json.dumps(header, separators=(",", ":")).encode()
    return PREFIX.pack(kind, tag, len(head), len(payload)) + head + payload


def frames(data: bytes) -> Iterator[Frame]:
    """Yield the frames of `data`, which must hold whole frames.

    Raises:
        ValueError: the data ends within a frame.
    """
    position = 0
    while position < len(data):
        kind, tag, head, body = PREFIX.unpack_from(data, position)
        start = position + PREFIX.size
        position = start + head + body
        if position > len(data):
            raise ValueError(f"a frame of {head + body} bytes is cut short")
        yield Frame(kind, tag, data[start : start + head], data[start + head : position])


class Splitter:
    """Collects bytes as they arrive and gives back whole frames, unopened.

    Linear in the bytes, however they are cut: a 500 MB result that comes in pieces of 256 KB is
    joined once.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = PREFIX.size

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return (kind, tag, bytes of the whole frame) for each frame that `data` completes."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        done: list[tuple[int, int, bytes]] = []
        position, end = 0, len(buffer)
        self._need = PREFIX.size
        while end - position >= PREFIX.size:
            kind, tag, head, body = PREFIX.unpack_from(buffer, position)
            length = PREFIX.size + head + body
            if end - position < length:
                self._need = length
                break
            done.append((kind, tag, buffer[position : position + length]))
            position += length
        rest = buffer[position:] if position else buffer
        self._pieces = [rest] if rest else []
        self._have = len(rest)
        return done
