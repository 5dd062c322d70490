"""The journal as SQLite sees it: tables, and how a connection is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_parallelrun.errors import OutputError

VERSION = 1
"""Counts up with every change that an older reader would misread."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE errors (
    id INTEGER PRIMARY KEY,
    category TEXT NOT NULL, type TEXT NOT NULL, location TEXT NOT NULL, stage TEXT NOT NULL,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL
);
CREATE TABLE headers (id INTEGER PRIMARY KEY, line TEXT NOT NULL);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    mini_batch INTEGER NOT NULL, attempt INTEGER NOT NULL,
    final INTEGER NOT NULL, outcome TEXT NOT NULL,
    node TEXT NOT NULL, process TEXT NOT NULL,
    items_total INTEGER NOT NULL, items_succeeded INTEGER NOT NULL, items_failed INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    started_at REAL NOT NULL, elapsed_s REAL NOT NULL, cpu_s REAL NOT NULL, run_s REAL NOT NULL,
    error INTEGER REFERENCES errors (id), message TEXT, items_sample TEXT, log_file TEXT,
    offset INTEGER, length INTEGER, header INTEGER REFERENCES headers (id)
);
CREATE UNIQUE INDEX settled ON attempts (mini_batch) WHERE final = 1;
"""
# `attempts.id` is the order in which attempts ended, and so that of their rows in the partial file.
# `attempts.message` is kept only where it differs from the first of its kind in `errors`; `offset`
# and `length` (bytes) only where rows are in the partial file. The unique index is the last guard of
# R200: a mini-batch that is settled twice is refused by the database itself.

_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "lustre",
    "beegfs",
    "gpfs",
    "ceph",
    "gluster",
    "afs",
    "fuse.",
)


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the journal, made if it is not there; one thread at a time may use the connection.

    Raises:
        OutputError: the file cannot be made, or is not a journal of this version.
    """
    with explained(path):
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=30.0
        )
        try:
            # The write-ahead log needs memory shared between processes, which only a local file
            # system has. The older mode is slower and correct everywhere.
            mode = "DELETE" if is_on_network(path) else "WAL"
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute("PRAGMA synchronous = FULL")
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                connection.executescript(
                    f"BEGIN; {_TABLES} INSERT INTO meta VALUES ('version', {VERSION}); COMMIT;"
                )
            _check_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a journal that exists, also while its run is writing.

    Raises:
        OutputError: there is none, or it is not a journal of this version.
    """
    with explained(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=30.0,
        )
        try:
            _check_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    if found != (VERSION,):
        raise OutputError(
            f"the journal {path} is of version {found and found[0]}, and this prefect-parallelrun "
            f"reads version {VERSION}: use the release that wrote it, or start a new run"
        )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into an OutputError that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"the journal {path} cannot be used: {error}") from error


def is_on_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Tell whether a file would live on a file system that other machines share."""
    place = str(path.absolute().resolve())
    best, kind = "", ""
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        folder = _unescape(fields[1])
        inside = place == folder or place.startswith(folder.rstrip("/") + "/")
        # Of two mounts on one folder the later hides the earlier: hence >=.
        if inside and len(folder) >= len(best):
            best, kind = folder, fields[2]
    return kind.startswith(_NETWORK)


def _unescape(field: str) -> str:
    """Undo the octal escapes of /proc/self/mounts."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, character)
    return field
