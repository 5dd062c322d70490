"""What a node has written for a run folder that it does not see: logs, samples, outputs of the script.

They are in a mirror of the run folder on the node's own disk. The driver takes home what is new there, in
small pieces, while the run goes on and at its end; each piece says where it belongs, so that one which
comes twice changes nothing.
"""

from __future__ import annotations

import itertools
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MOST = 4 << 20
"""Bytes that are taken home at a time."""
TICK_NS = 100_000_000
"""A file may be written again within so short a time, and its time of change be the same."""


class Piece(NamedTuple):
    """Bytes of a file that the driver is to write down."""

    name: str
    """Of the file, relative to the mirror."""
    at: int
    """Where they begin."""
    data: bytes
    size: int
    """Of the file as it is now: what lies behind that at home is no part of it any more. -1: it is gone."""


class Taken(NamedTuple):
    """What is taken home at a time."""

    number: int
    pieces: list[Piece]
    complete: bool
    """Whether that is all there was when it was looked for."""
    unread: tuple[str, ...] = ()
    """With the last of a look: some of what there is that cannot be read, and why."""


@dataclass(slots=True)
class _Known:
    """A file as it was when it was last taken from."""

    identity: tuple[int, int]
    """Device and inode: another file may have come to its place."""
    changed_ns: int
    size: int
    sent: int
    """So many bytes from its beginning have been given out."""
    checksum: int = 0
    """CRC-32 of those, of an output file."""


class Homeward:
    """Gives out what is new in a mirror, until it is known to have arrived.

    Args:
        mirror: folder that stands for the run folder.
        outputs: name of the folder in it where scripts write, who may write anywhere in a file; to logs
            something is only ever added.
    """

    def __init__(self, mirror: Path, outputs: str) -> None:
        self._mirror = mirror
        self._outputs = outputs
        self._known: dict[str, _Known] = {}
        self._last = Taken(0, [], complete=False)
        self._queue: Iterator[Piece] | None = None
        self._unread: dict[str, OSError] = {}

    def take(self, arrived: int) -> Taken:
        """Return what is new since the last time, at most `MOST` bytes of it; the same again if it is lost.

        Args:
            arrived: number of what came home last; 0: nothing has.
        """
        if arrived != self._last.number:
            return self._last
        pieces: list[Piece] = []
        room = MOST
        self._queue = self._queue or self._new()
        for piece in self._queue:
            pieces.append(piece)
            room -= len(piece.data) + 100
            if room <= 0:
                self._last = Taken(arrived + 1, pieces, complete=False)
                return self._last
        self._queue = None
        some = itertools.islice(self._unread.items(), 10)
        unread = tuple(f"{name}: {error.strerror}" for name, error in some)
        self._last = Taken(arrived + 1, pieces, complete=True, unread=unread)
        return self._last

    # -- inside ------------------------------------------------------------------------------

    def _new(self) -> Iterator[Piece]:
        """Look through the mirror once."""
        there: set[str] = set()
        self._unread = {}
        looked_ns = time.time_ns()
        for name, status in self._files():
            there.add(name)
            known = self._known.get(name)
            identity = (status.st_dev, status.st_ino)
            if known is None or known.identity != identity or status.st_size < known.sent:
                known = self._known[name] = _Known(identity, -1, -1, 0)
            elif (
                known.changed_ns == status.st_mtime_ns
                and known.size == status.st_size == known.sent
            ):
                continue
            elif not self._is_begun_as_sent(name, known, grown=status.st_size > known.size):
                known.sent = known.checksum = 0  # written over, in place
            known.size = status.st_size
            # What is written within the same tick of the clock leaves the time as it is.
            is_settled = looked_ns - status.st_mtime_ns > TICK_NS
            known.changed_ns = status.st_mtime_ns if is_settled else -1
            if known.sent < known.size or not known.size:
                yield from self._rest(name, known)
        for name in self._known.keys() - there:
            if any(f"{name}/".startswith(f"{one}/") for one in self._unread):
                continue  # nobody knows
            del self._known[name]
            yield Piece(name, 0, b"", -1)

    def _is_begun_as_sent(self, name: str, known: _Known, *, grown: bool) -> bool:
        """Return whether a file that was changed still has what has been given out."""
        if not name.startswith(f"{self._outputs}/"):
            return grown or known.changed_ns < 0
        left, found = known.sent, 0
        try:
            with (self._mirror / name).open("rb") as file:
                while left > 0 and (data := file.read(min(MOST, left))):
                    left -= len(data)
                    found = zlib.crc32(data, found)
        except FileNotFoundError:
            return True  # the next look tells
        except OSError as error:
            self._cannot_read(name, error)
            return True
        return not left and found == known.checksum

    def _rest(self, name: str, known: _Known) -> Iterator[Piece]:
        try:
            with (self._mirror / name).open("rb") as file:
                while True:
                    file.seek(known.sent)
                    # No further than it was: what is being written comes with the next look.
                    data = file.read(min(MOST, max(0, known.size - known.sent)))
                    at, known.sent = known.sent, known.sent + len(data)
                    known.checksum = zlib.crc32(data, known.checksum)
                    yield Piece(name, at, data, known.size)
                    if not data or known.sent >= known.size:
                        return
        except FileNotFoundError:
            return  # the next look tells
        except OSError as error:
            self._cannot_read(name, error)

    def _cannot_read(self, name: str, error: OSError) -> None:
        """Note that a file or folder cannot be read now; the other ones are not held up by that."""
        self._unread[name] = error
        if known := self._known.get(name):
            known.changed_ns = -1

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._mirror / folder) as entries:
                    found = list(entries)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._cannot_read(folder, error)
                continue
            for entry in found:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    continue
                try:
                    if entry.is_file():
                        yield name, entry.stat()
                except FileNotFoundError:
                    continue  # that one alone is gone: a script gives files their names in the end
                except OSError as error:
                    if not entry.is_symlink():  # one that leads in circles leads nowhere
                        self._cannot_read(name, error)
