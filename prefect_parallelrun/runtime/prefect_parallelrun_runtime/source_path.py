"""One way to open every path: most are files of this machine, some know by themselves how to be opened."""

from __future__ import annotations

from typing import IO


class SourcePath(str):
    """The URL of a file that opens itself. Worker processes meet none: their files have been fetched."""

    __slots__ = ()

    @property
    def has_parts(self) -> bool:
        """Whether it can be read from its middle; else `open` gives a stream."""
        raise NotImplementedError

    def open(self) -> IO[bytes]:
        """Open the file."""
        raise NotImplementedError


def open_file(path: str) -> IO[bytes]:
    """Open a file, unbuffered."""
    return path.open() if isinstance(path, SourcePath) else open(path, "rb", buffering=0)


def for_arrow(path: str) -> str | IO[bytes]:
    """Return what Arrow, gzip and their like can open: a path, or an open file."""
    return path.open() if isinstance(path, SourcePath) else path


def chained(path: str) -> tuple[str, str, str]:
    """Return a URL's own part, and what comes before and after it in a chain of fsspec's.

    Of `simplecache::s3://b/a.txt` that is the second part, of `zip://a.txt::s3://b/x.zip` the first. A
    local path is absolute, and no chain, whatever is in it.
    """
    parts = [path] if path.startswith("/") else path.split("::")
    place = next((number for number, part in enumerate(parts) if "://" in part), 0)
    before = "".join(f"{part}::" for part in parts[:place])
    return before, parts[place], "".join(f"::{part}" for part in parts[place + 1 :])


def file_name(path: str) -> str:
    """Return the last part of a path or URL, without a query."""
    own = chained(path)[1]
    if "://" in own and not own.startswith("/"):
        own = own.partition("?")[0]
    return own.rstrip("/").rpartition("/")[2]
