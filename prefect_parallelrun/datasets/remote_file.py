"""Files of other storages, read by the driver in small pieces: headers, samples, footers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, cast

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import transport
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun_runtime import source_path
from prefect_parallelrun_runtime.source_path import SourcePath

AT_ONCE = 16
"""Requests at the same time, where the storage can."""
_MOST = 8 << 20
"""Bytes of a request, where a file is read from its beginning to its end."""
_OVERHANG = 4 << 10
"""What is fetched of the row that goes on over the end of a range; a longer one costs a request more."""


class Opened:
    """A filesystem that is open, with what its errors must not show."""

    def __init__(self, filesystem: Any, options: Mapping[str, Any]) -> None:
        self.filesystem = filesystem
        self.options = options
        self._hosts: dict[str, bool] = {}

    @property
    def at_once(self) -> int:
        """How many requests may be made at the same time."""
        # The others are for one thread each.
        return AT_ONCE if self.filesystem.async_impl else 1

    def gives_parts(self, path: str, url: str, size: int) -> bool:
        """Say whether a file can be read from its middle: not every web server can, and no archive."""
        before, _, after = source_path.chained(url)
        if before or after:
            return False
        protocol, _, rest = url.partition("://")
        if protocol not in ("http", "https") or size < 2:
            return True
        host = rest.partition("/")[0]
        if host not in self._hosts:
            self._hosts[host] = transport.retried(
                lambda: self._heeds_ranges(path, size), what=url, options=self.options
            )
        return self._hosts[host]

    def _heeds_ranges(self, path: str, size: int) -> bool:
        # By a file that looks at what the server answers, for cat_file would take all of it.
        with self.filesystem.open(path, "rb", cache_type="none", size=size) as file:
            file.seek(1)
            try:
                return len(file.read(1)) == 1
            except ValueError:
                return False


class RemotePath(SourcePath):
    """The URL of a file, which opens itself here; pickled or copied, it is the URL alone."""

    __slots__ = ("_opened", "_path", "_size", "pieces")

    def __new__(cls, url: str, opened: Opened, path: str, size: int) -> RemotePath:
        """Make it of the URL, and of the path and size that the filesystem knows the file by."""
        self = super().__new__(cls, url)
        self._opened, self._path, self._size = opened, path, size
        self.pieces = []
        return self

    _opened: Opened
    _path: str
    _size: int
    pieces: list[tuple[int, bytes]]
    """What was fetched ahead: where it begins, and the bytes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What opens it may hold secrets, and stays in this process.
        return str, (str(self),)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def at_once(self) -> int:
        """How many requests may be made at the same time."""
        return self._opened.at_once

    @property
    def has_parts(self) -> bool:
        """Whether it can be read from its middle."""
        return self._opened.gives_parts(self._path, str(self), self._size)

    def open(self) -> IO[bytes]:
        """Open the file; a short read ends at its end, or where something was fetched ahead.

        Raises:
            DatasetError: now or while it is read; the storage does not give it.
        """
        if self.has_parts:
            return cast("IO[bytes]", _Parts(self))
        whole = {} if "::" in self else {"block_size": 0}
        stream = transport.retried(
            lambda: self._opened.filesystem.open(self._path, "rb", **whole),
            what=str(self),
            options=self._opened.options,
        )
        return cast("IO[bytes]", _Stream(str(self), stream))

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end).

        Raises:
            DatasetError: the storage does not give them.
        """

        def part() -> bytes:
            data: bytes = self._opened.filesystem.cat_file(self._path, start=start, end=end)
            if len(data) != end - start:
                raise OSError(
                    f"{len(data):,} bytes came instead of {end - start:,}: it was changed since it was listed"
                )
            return data

        return transport.retried(part, what=str(self), options=self._opened.options)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges at the same time, for what is opened from now on."""
        bounds = [(max(first, 0), min(end, self._size)) for first, end in ranges]
        bounds = [(first, end) for first, end in bounds if first < end]
        found = self._opened.filesystem.cat_ranges(
            [self._path] * len(bounds),
            [first for first, _ in bounds],
            [end for _, end in bounds],
            batch_size=AT_ONCE,
            on_error="return",
        )
        # What failed is asked for again where it is needed.
        self.pieces = [
            (first, data)
            for (first, end), data in zip(bounds, found, strict=True)
            if isinstance(data, bytes) and len(data) == end - first
        ]


def at_once(files: Sequence[FileItem]) -> int:
    """Return how many of the files may be read at the same time: one, of this machine's."""
    path = files[0].path if files else ""
    return path.at_once if isinstance(path, RemotePath) else 1


@contextmanager
def fetched(path: str, ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Have ranges of a remote file at hand, each with the byte before it and a bit of what follows."""
    if not isinstance(path, RemotePath) or path.at_once == 1:
        yield
        return
    path.fetch([(start - 1, end + _OVERHANG) for start, end in ranges])
    try:
        yield
    finally:
        path.pieces = []


class _Parts(io.RawIOBase):
    """Reads what is asked for; more at a time, the longer it is read from one end to the other."""

    def __init__(self, source: RemotePath) -> None:
        self._source = source
        self._place = 0
        self._held = (0, b"")
        self.name = str(source)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._source.size}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._source.size - self._place)
        done = 0
        while done < wanted:
            ahead = _within(self._place, wanted - done, self._source.pieces)
            data = ahead or _within(self._place, wanted - done, [self._held])
            if not data:
                self._fetch(wanted - done)
                continue
            buffer[done : done + len(data)] = data
            done += len(data)
            self._place += len(data)
            if ahead:
                break
        return done

    def _fetch(self, length: int) -> None:
        first, last = self._held
        if last and self._place == first + len(last):
            length = max(length, min(2 * len(last), _MOST))
        end = min(self._place + length, self._source.size)
        self._held = (self._place, self._source.read(self._place, end))


def _within(place: int, length: int, pieces: Sequence[tuple[int, bytes]]) -> bytes:
    for first, piece in pieces:
        if first <= place < first + len(piece):
            return piece[place - first : place - first + length]
    return b""


class _Stream(io.RawIOBase):
    """Reads a file that has no parts from its beginning; of an archive also as that lets one."""

    def __init__(self, url: str, stream: Any) -> None:
        self._stream = stream
        self.name = url

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        place: int = self._stream.tell()
        return place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            place: int = self._stream.seek(offset, whence)
        except ValueError:
            # Said by fsspec in other words, of all that it cannot seek in.
            raise OSError(
                "its web server gives no parts of files (no answer to Range requests)"
            ) from None
        return place

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except Exception as error:
            raise OSError(f"the answer broke off ({type(error).__name__})") from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
