"""From paths, folders and globs to files with their sizes and times, quickly."""
# Paths are text here, since Path objects would double the time for 100,000 files.
# ruff: noqa: PTH100, PTH111, PTH112, PTH114, PTH116, PTH118, PTH120, PTH207

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, urlsplit

from prefect_parallelrun import errors
from prefect_parallelrun.datasets.dataset import FileItem, refuse_later
from prefect_parallelrun.errors import DatasetError

PathsArgument = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def local_paths(
    paths: PathsArgument, partition_format: object, storage_options: object, credentials: object
) -> tuple[str, ...]:
    """Return paths and globs as given, made absolute now: the working directory may change.

    The other parameters are those of every dataset of files, none of which works yet.

    Raises:
        ConfigError: there is none, one is no path, or one is a URL of another kind than `file://`; or
            a parameter that is not supported yet has a value.
    """
    refuse_later(
        partition_format=partition_format, storage_options=storage_options, credentials=credentials
    )
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise errors.refuse("paths", paths, "give a path, a glob, or a list of them")
    found = tuple(absolute_path("paths", path) for path in given)
    if not found:
        raise errors.refuse("paths", paths, "give at least one path")
    return found


def absolute_path(parameter: str, path: object) -> str:
    """Return one path or glob made absolute, its `~` and `file://` resolved.

    Raises:
        ConfigError: it is no path, or a URL of another kind than `file://`.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise errors.refuse(parameter, path, "give a path as text or as a pathlib.Path")
    if "://" in text:
        url = urlsplit(text)
        if url.scheme != "file" or url.netloc not in ("", "localhost"):
            raise errors.refuse(
                parameter,
                f"{url.scheme}://…",
                "only local paths and file:// URLs are supported so far",
            )
        text = unquote(url.path)
    return os.path.abspath(os.path.expanduser(text))


def files_at(paths: Iterable[str]) -> list[FileItem]:
    """Return the files that absolute paths, folders and globs stand for, each once, sorted by path.

    Raises:
        DatasetError: a path does not exist, a folder or glob has no file, a link leads nowhere.
    """
    found: dict[str, FileItem] = {}
    for path in paths:
        empty = True
        for item in _files_of(path):
            found[item.path] = item
            empty = False
        if empty:
            what = "is a folder without any file"
            if is_glob(path):
                what = f"matches no file{_meant_as_it_stands(path)}"
            raise DatasetError(f"{path} {what}")
    return [found[path] for path in sorted(found)]


def is_glob(path: str) -> bool:
    """Say whether a path is a pattern; one that exists as it stands is none, whatever its name."""
    return glob.has_magic(path) and not os.path.lexists(path)


def root_of(path: str) -> str:
    """Return the path itself, or the folder that a glob's matches are all in."""
    if not is_glob(path):
        return path
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return path


def _files_of(path: str) -> Iterator[FileItem]:
    if is_glob(path):
        for match in _matches(path):
            status = _status(match)
            if stat.S_ISREG(status.st_mode):
                yield FileItem(match, status.st_size, status.st_mtime_ns)
        return
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        yield from _files_below(path, (_identity(status),))
    elif stat.S_ISREG(status.st_mode):
        yield FileItem(path, status.st_size, status.st_mtime_ns)
    else:
        raise DatasetError(f"{path} is neither a file nor a folder")


def _meant_as_it_stands(pattern: str) -> str:
    while glob.has_magic(pattern):
        if os.path.lexists(pattern):
            return f"; {pattern!r} itself is there: put glob.escape({pattern!r}) into the glob"
        pattern = os.path.dirname(pattern)
    return ""


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a glob matches; its `**` is walked here: `glob` goes round a circle of links 40 times."""
    before, mark, after = (pattern + "/").partition("/**/")
    if not mark:
        yield from glob.iglob(pattern)
        return
    while after.startswith("**/"):
        after = after.removeprefix("**/")
    for start in glob.iglob(before or "/"):
        if not os.path.isdir(start):
            continue
        for folder in _folders_below(start, (_identity(_status(start)),)):
            yield from _matches(os.path.join(glob.escape(folder), after.rstrip("/") or "*"))


def _folders_below(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield a folder and those below it, hidden ones left out."""
    yield folder
    try:
        with os.scandir(folder) as entries:
            folders = [e.path for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        raise _unlistable(folder, error) from None
    for path, here in _not_in_a_circle(folders, above):
        yield from _folders_below(path, here)


def _files_below(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[FileItem]:
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                    continue
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    yield FileItem(entry.path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise _unlistable(error.filename or folder, error) from None
    for path, here in _not_in_a_circle(folders, above):
        yield from _files_below(path, here)


def _not_in_a_circle(
    folders: Iterable[str], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    """Yield the folders that are none of those above them, each with all that are above what is in it."""
    for path in folders:
        identity = _identity(_status(path))
        # A link to a folder above it would be followed for ever.
        if identity not in above:
            yield path, (*above, identity)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise _unlistable(path, error) from None


def _unlistable(path: str, error: OSError) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return DatasetError(f"{path} is a link to a file that does not exist")
        return DatasetError(f"{path} does not exist")
    return DatasetError(f"{path} cannot be listed: {error.strerror}")
