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

KINDS = range(SETTINGS, EVENT + 1)
HEADER_LIMIT = 1 << 26
"""Bytes; the largest are the column names of a very wide table."""


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
    return pack_before(kind, tag, head, len(payload)) + payload


def pack_before(kind: int, tag: int, head: bytes, length: int) -> bytes:
    """Return what goes before a payload of that many bytes, which may be too large to copy."""
    return PREFIX.pack(kind, tag, len(head), length) + head


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


class Garbage(ValueError):
    """Bytes came that are no frame of ours: somebody else has written into the channel."""

    def __init__(self, complete: list[tuple[int, int, bytes]]) -> None:
        super().__init__("what came over the channel is no frame")
        self.complete = complete
        """What had come before, as `Splitter.feed` would return it."""


class Splitter:
    """Collects bytes as they arrive and gives back whole frames, unopened.

    Linear in the bytes, however they are cut: a 500 MB result that comes in pieces of 64 KB is
    joined once.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = PREFIX.size

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return (kind, tag, bytes of the whole frame) for each frame that `data` completes.

        Raises:
            Garbage: where a frame should begin, there is none. Nothing can be read any more.
        """
        done: list[tuple[int, int, bytes]] = []
        missing = self._need - self._have
        if len(data) < missing:
            self._keep(data)
            return done
        if self._need > PREFIX.size:
            # The rest of a frame that may be large: what comes behind it is not joined to it.
            self._pieces.append(data[:missing])
            frame = b"".join(self._pieces)
            kind, tag, _head, _body = PREFIX.unpack_from(frame)
            done.append((kind, tag, frame))
            data = data[missing:]
        elif self._pieces:
            data = b"".join((*self._pieces, data))
        self._pieces, self._have, self._need = [], 0, PREFIX.size
        position, end = 0, len(data)
        while end - position >= PREFIX.size:
            kind, tag, head, body = PREFIX.unpack_from(data, position)
            if kind not in KINDS or head > HEADER_LIMIT:
                raise Garbage(done)
            length = PREFIX.size + head + body
            if end - position < length:
                self._need = length
                break
            done.append((kind, tag, data[position : position + length]))
            position += length
        self._keep(data[position:])
        return done

    def _keep(self, rest: bytes) -> None:
        if rest:
            self._pieces.append(rest)
            self._have += len(rest)
