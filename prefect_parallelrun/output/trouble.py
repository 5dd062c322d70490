"""What goes wrong with the files of a run, in words: what is kept, and how to go on."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths

KEPT = "All that the journal has is kept."

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SOMEHOW = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class NotTaken(OutputError):
    """An earlier run cannot be read, or is damaged; nothing was taken over of it."""


@contextmanager
def explained(journal: Path) -> Iterator[None]:
    """Turn what the system or SQLite raises into an OutputError that says how to go on."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise explain(journal, error) from error


def explain(journal: Path, error: BaseException) -> OutputError:
    """Build the error for a run folder that cannot be written or read; `journal` is the file in it."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGE:
        return damaged_journal(journal, str(error))
    number = getattr(error, "errno", None)
    full, read_only = (
        # SQLite does not say why the system refused it.
        _disk(journal.parent) if code in _SOMEHOW else (False, False)
    )
    if full or number in _FULL or code == sqlite3.SQLITE_FULL:
        remedy = "Free some space"
    elif read_only or number in _READ_ONLY or code == sqlite3.SQLITE_READONLY:
        remedy = "Make the folder writable"
    elif code in _SOMEHOW:
        remedy = "See to the disk (quota, limits, whether it works)"
    else:
        remedy = "Remove the cause"
    place = f"{journal.name}: " if isinstance(error, sqlite3.Error) else ""
    failure = OutputError(
        f"the run folder {journal.parent} could not be written or read: {place}"
        f"{type(error).__name__}: {error}. {KEPT} {remedy} and run the step again: it goes on "
        "from there"
    )
    failure.__cause__ = error
    return failure


def explain_output(folder: Path, node: str, error: BaseException) -> OutputError:
    """Build the error for an output folder that cannot take what came from a node that does not see it."""
    number = getattr(error, "errno", None)
    remedy = "Remove the cause"
    if number in _FULL:
        remedy = "Free some space"
    elif number in _READ_ONLY:
        remedy = "Make the folder writable"
    failure = OutputError(
        f"what {node} has written could not be kept in the output folder {folder}: "
        f"{type(error).__name__}: {error}. {KEPT} {remedy} and run the step again: it goes on from there"
    )
    failure.__cause__ = error
    return failure


@contextmanager
def as_base(base: RunPaths) -> Iterator[None]:
    """Turn what is raised while an earlier run is read into a NotTaken that says what is wrong with it."""
    try:
        yield
    except OutputError as error:
        # What follows is how to go on with that run.
        raise NotTaken(str(error).partition(". ")[0]) from error
    except (OSError, sqlite3.Error) as error:
        raise NotTaken(f"{base.root} cannot be read: {error}") from error


def damaged_journal(journal: Path, what: str) -> OutputError:
    """Build the error for a journal that lacks something, or is none; nothing was changed."""
    partial = RunPaths(journal.parent).partial
    rows = partial.stat().st_size if partial.exists() else 0
    kept = "it kept no rows; what the script itself wrote is as it was"
    if rows:
        kept = (
            f"{partial} with {rows:,} bytes of rows is kept, but which mini-batches they are of "
            "only the journal knew"
        )
    return OutputError(f"the journal {journal} is damaged: {what}. {kept}. {_how(journal)}")


def damaged_partial(paths: RunPaths, size: int, end: int) -> OutputError:
    """Build the error for rows that are journalled and not there; nothing was changed."""
    return OutputError(
        f"{paths.partial} has {size:,} bytes, but the journal beside it has rows up to {end:,}: "
        f"rows of mini-batches that are done are lost. The journal and the {size:,} bytes are "
        f"kept. {_how(paths.partial)}"
    )


def _disk(folder: Path) -> tuple[bool, bool]:
    """Return whether the file system of a folder is full, and whether it is read-only."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return False, False
    return state.f_bavail == 0, bool(state.f_flag & os.ST_RDONLY)


def _how(file: Path) -> str:
    return (
        f"Restore {file.name} as it was and run the step again; or start anew, with "
        f"allow_reuse=False or by removing the run folder {file.parent}"
    )
