"""The journal as SQLite sees it: tables, and how a connection is opened."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.trouble import damaged_journal, explained
from prefect_parallelrun.paths import RunPaths

VERSION = 4
"""Counts up with every change that an older reader would misread."""

FAILED = "final = 1 AND (outcome <> 'succeeded' OR items_failed > 0)"
"""What settled items of which some failed; in a query, these words make it use its own index."""

TAKEN_OVER = 0
"""The number of an attempt that another run made, of which this one took over what it had done (R202)."""
OWN = f"attempt > {TAKEN_OVER}"
"""What this run itself has tried."""

_TABLES = f"""
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
    mini_batch INTEGER NOT NULL, first INTEGER NOT NULL DEFAULT 0, stop INTEGER,
    attempt INTEGER NOT NULL,
    final INTEGER NOT NULL, outcome TEXT NOT NULL,
    node TEXT NOT NULL, process TEXT NOT NULL,
    items_total INTEGER NOT NULL, items_succeeded INTEGER NOT NULL, items_failed INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    started_at REAL NOT NULL, elapsed_s REAL NOT NULL, cpu_s REAL NOT NULL, load_s REAL NOT NULL,
    run_s REAL NOT NULL,
    error INTEGER REFERENCES errors (id), message TEXT, items_sample TEXT, log_file TEXT,
    offset INTEGER, length INTEGER, header INTEGER REFERENCES headers (id)
);
CREATE TABLE nodes (
    node TEXT PRIMARY KEY, host TEXT NOT NULL, address TEXT NOT NULL,
    processes INTEGER NOT NULL, gpus INTEGER NOT NULL,
    joined_at REAL NOT NULL, left_at REAL, reason TEXT NOT NULL
);
CREATE TABLE processes (
    node TEXT NOT NULL, process TEXT NOT NULL, pid INTEGER NOT NULL,
    started_at REAL NOT NULL, ready_at REAL, init_s REAL NOT NULL, ended_at REAL,
    reason TEXT NOT NULL,
    PRIMARY KEY (node, process)
);
CREATE UNIQUE INDEX settled ON attempts (mini_batch, first) WHERE final = 1;
CREATE INDEX failed ON attempts (mini_batch, first) WHERE {FAILED};
CREATE INDEX parts ON attempts (mini_batch, first) WHERE final = 1 AND stop IS NOT NULL;
CREATE INDEX superseded ON attempts (mini_batch) WHERE final = 0;
"""
# `attempts.id` is the order in which attempts ended, and so that of their rows in the partial file.
# `first` and `stop` are the items of a part, `stop` is NULL for a whole mini-batch. `message` is
# kept only where it differs from the first of its kind in `errors`; `offset` and `length` (bytes)
# only where rows are in the partial file. The unique index is the last guard of R200: what is
# settled twice is refused by the database itself. The others hold little, as few attempts fail.
# What was taken over of another run comes first, without node, process and times, which are in its
# own folder.

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
        OutputError: the file cannot be made, is damaged, or is not a journal of this version.
    """
    with explained(path):
        _refuse_cut(path)
        connection = sqlite3.connect(
            path.absolute().as_uri(),
            uri=True,  # so that `attach` can name one
            isolation_level=None,
            check_same_thread=False,
            timeout=30.0,
        )
        try:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                _check_version(connection, path)
                check(connection, path)
            # The write-ahead log needs memory shared between processes, which only a local file
            # system has. The older mode is slower and correct everywhere.
            mode = "DELETE" if is_on_network(path) else "WAL"
            connection.execute(f"PRAGMA journal_mode = {mode}")
            connection.execute("PRAGMA synchronous = FULL")
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                connection.executescript(
                    f"BEGIN; {_TABLES} INSERT INTO meta VALUES ('version', {VERSION}); COMMIT;"
                )
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a journal that exists, also while its run is writing.

    Raises:
        OutputError: there is none, or it is not a journal of this version.
    """
    if not path.exists():
        raise OutputError(f"there is no journal {path}: nothing was run in this folder")
    with explained(path):
        connection = sqlite3.connect(
            _for_reading(path),
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


def attach(connection: sqlite3.Connection, path: Path, name: str) -> None:
    """Let the queries of a connection read another journal too, one that has been opened before."""
    connection.execute(f"ATTACH ? AS {name}", (_for_reading(path),))


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Read all of a journal for contradictions.

    Raises:
        OutputError: it is damaged.
    """
    # The quick check would not see that an index and its table differ: then rows could come twice.
    ((found,),) = connection.execute("PRAGMA integrity_check(1)")
    if found != "ok":
        raise damaged_journal(path, str(found))


def _for_reading(path: Path) -> str:
    # Where nothing can be written, SQLite could not even make its lock; then nobody writes either.
    lockable = os.access(path.parent, os.W_OK) or _size(_log_of(path))
    return f"{path.absolute().as_uri()}?{'mode=ro' if lockable else 'immutable=1'}"


def _refuse_cut(path: Path) -> None:
    """Refuse what SQLite would make the best of: it begins another, or takes zeros for what is gone."""
    size, logged, rows = map(_size, (path, _log_of(path), RunPaths(path.parent).partial))
    if not size and (logged or rows):
        what = "it is empty" if path.exists() else "it is gone"
        raise damaged_journal(path, f"{what}, though there is more of the run")
    # With a log, a torn page is what a crash may leave: the log has it whole.
    if size and not logged and not _size(Path(f"{path}-journal")):
        with path.open("rb") as file:
            page = int.from_bytes(file.read(18)[16:], "big")
        if page > 1 and size % page:  # 1 stands for 64 kB
            raise damaged_journal(path, f"it ends within a page, at {size:,} bytes")


def files(path: Path) -> list[Path]:
    """Return a journal and what SQLite may keep beside it."""
    return [path, *(Path(f"{path}-{suffix}") for suffix in ("wal", "shm", "journal"))]


def _log_of(path: Path) -> Path:
    """Return the write-ahead log of a journal."""
    return Path(f"{path}-wal")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
    if found != (VERSION,):
        raise OutputError(
            f"the journal {path} is of version {found and found[0]}, and this prefect-parallelrun "
            f"reads version {VERSION}: use the release that wrote it, or start a new run "
            "(allow_reuse=False)"
        )


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
