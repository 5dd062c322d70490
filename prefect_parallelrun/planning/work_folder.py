"""A folder for the files of one call, beside what it makes: calls that want the same one wait for each other."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LOCK = "lock"


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """Give a folder to one call at a time; it is removed at the end.

    What a call that was killed left in it is still there at the beginning.

    Raises:
        OSError: it cannot be made, or the file system has no locks.
    """
    with _locked(path):
        try:
            yield path
        finally:
            clear(path)
            # The last: who waits makes them anew, and finds nothing of this call.
            with suppress(OSError):
                (path / _LOCK).unlink()
                path.rmdir()


def clear(folder: Path) -> None:
    """Remove all that is in a work folder, which stays taken."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which its system takes from whoever dies."""
    while True:
        # Not by exist_ok, which fails if the folder is removed just then.
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            file = (folder / _LOCK).open("ab")
        except FileNotFoundError:
            continue  # it was removed in between
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_there(file, folder / _LOCK):
                yield
                return


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Say whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
