"""From paths, folders and globs to files with their sizes and times, quickly."""
# Paths are text here, since Path objects would double the time for 100,000 files.
# ruff: noqa: PTH112, PTH113, PTH114, PTH116, PTH118, PTH120, PTH207

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import remote
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import DatasetError, NotThere

PathsArgument = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def located(
    paths: PathsArgument, storage_options: Mapping[str, Any] | None, credentials: object
) -> tuple[Storage, tuple[str, ...]]:
    """Return where paths and globs are, and they themselves; local ones absolute, since the working
    directory may change.

    Raises:
        ConfigError: there is none, one is no path, or they are in several storages; or what opens a
            storage cannot be used.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise errors.refuse("paths", paths, "give a path, a glob, a URL, or a list of them")
    found = [remote.located("paths", path, storage_options, credentials) for path in given]
    if not found:
        raise errors.refuse("paths", paths, "give at least one path")
    storage = found[0][0]
    for other, path in found:
        if other != storage:
            raise errors.refuse(
                "paths",
                path,
                f"the others are in {storage.protocol}://, or opened by another secret: give one dataset for "
                "each storage",
            )
    return storage, tuple(path for _, path in found)


def files_at(storage: Storage, paths: Iterable[str]) -> list[FileItem]:
    """Return the files that paths, folders and globs stand for, each once, sorted by path.

    Raises:
        DatasetError: a path does not exist, a folder or glob has no file, a link leads nowhere.
    """
    if not storage.is_local:
        return remote.files_at(storage, paths)
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
    """Return the path or URL itself, or the folder that a glob's matches are all in."""
    if remote.is_url(path):
        return remote.root_of(path)
    if not is_glob(path):
        return path
    while glob.has_magic(path):
        path = os.path.dirname(path)
    return path


def would_list(path: str, file: str) -> bool:
    """Say whether a path or glob would list a file, local or a URL, if that was there."""
    if remote.is_url(path):
        base, pattern = remote.base_and_pattern(path)
    else:
        base = root_of(path)
        pattern = path[len(base) :].lstrip("/") if is_glob(path) else ""
        base, file = os.path.realpath(base), os.path.realpath(file)
    start = base.rstrip("/") + "/"
    if not file.startswith(start) or os.path.isfile(base):
        return False
    # On this machine two stars are one where they are not all of a name.
    names = [name if name == "**" else name.replace("**", "*") for name in pattern.split("/")]
    return not pattern or remote.matcher("/".join(names))(file.removeprefix(start))


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
            return NotThere(f"{path} is a link to a file that does not exist")
        return NotThere(f"{path} does not exist")
    return DatasetError(f"{path} cannot be listed: {error.strerror}")
