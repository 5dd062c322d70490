"""What another run has done and a new one need not do again: its rows and their places, copied (R202)."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import groupby, islice
from typing import Any

from prefect_parallelrun.models import UNKNOWN_S
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.descriptors import copy, sync_folder, write_all
from prefect_parallelrun.output.earlier import read_earlier
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.segments import pieces
from prefect_parallelrun.output.trouble import as_base, damaged_partial, explained
from prefect_parallelrun.paths import RunPaths

_LARGE_BYTES = 1 << 20
"""From here on, rows that are together are copied by the system, without passing through this process."""
_PAGE = 4096
# Each page is one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_KEEP = "INSERT OR IGNORE INTO kept SELECT value ->> 0, value ->> 1 FROM json_each(?)"
# `place` is where rows begin here: in the order in which they were done, with nothing between them.
# How many items a mini-batch has that was split stands in what was before: see `earlier`.
_READ = """
BEGIN;
CREATE TEMP TABLE taken AS
SELECT row_number() OVER done AS number, here, first, stop, final, outcome, items_total, items_succeeded,
    items_failed, rows, items_sample, offset, length, header,
    coalesce(sum(length) OVER (done ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS place
FROM base.attempts AS a CROSS JOIN kept ON there = a.mini_batch
WHERE final = 1 AND outcome = 'succeeded' WINDOW done AS (ORDER BY id) ORDER BY number;
INSERT INTO taken
SELECT NULL, here, 0, NULL, 0, outcome, max(items_total), 0, 0, 0, NULL, NULL, NULL, NULL, NULL
FROM kept CROSS JOIN base.attempts AS whole ON whole.mini_batch = there
WHERE final = 0 AND stop IS NULL AND EXISTS (SELECT 1 FROM base.attempts AS part
    WHERE part.final = 1 AND part.stop IS NOT NULL AND part.mini_batch = there)
GROUP BY here;
CREATE TEMP TABLE told AS SELECT * FROM base.headers;
COMMIT;
DETACH base;
"""
_TAKE = f"""
INSERT INTO main.attempts (
    id, mini_batch, first, stop, attempt, final, outcome, node, process, items_total, items_succeeded,
    items_failed, rows, started_at, elapsed_s, cpu_s, load_s, run_s, items_sample, offset, length, header)
SELECT number, here, first, stop, {schema.TAKEN_OVER}, final, outcome, '', '', items_total, items_succeeded,
    items_failed, rows, 0, 0, {UNKNOWN_S}, 0, 0, items_sample, CASE WHEN offset IS NOT NULL THEN place END,
    length, header
FROM taken ORDER BY rowid
"""
# Rows that were together and still are have moved by the same distance.
_SPANS = """
CREATE TEMP TABLE spans AS SELECT min(offset) AS start, sum(length) AS length FROM taken
WHERE length > 0 GROUP BY offset - place ORDER BY min(number)
"""
_SPANS_PAGE = """
SELECT json_group_array(json_array(start, length)) FROM (
    SELECT start, length FROM spans WHERE rowid > ? ORDER BY rowid LIMIT ?)
"""


def take_over(
    base: RunPaths,
    paths: RunPaths,
    kept: Iterable[tuple[int, int]],
    *,
    keep_rows: bool,
    output_format: str = "text",
    look: Callable[[], None] = lambda: None,
) -> None:
    """Take what another run has done, as though an earlier sitting of this one had done it.

    Of a mini-batch that is done in part, that part. The journal of this run has all of it or nothing;
    memory is bounded, however many mini-batches there are.

    Args:
        base: of the other run; another driver may be at work on it.
        paths: of this run, in which nothing has run yet.
        kept: index there and index here of each mini-batch that is the same, done or not; an index
            there that comes twice counts once.
        keep_rows: whether there is a partial file (`append_row`).
        output_format: of both runs.
        look: called now and then; ends it by raising.

    Raises:
        NotTaken: the other run cannot be read, or is damaged.
        OutputError: this one cannot be written.
    """
    with ExitStack() as held:
        rows = held.enter_context(_readable(base, keep_rows=keep_rows))
        held.enter_context(explained(paths.journal))
        connection = held.enter_context(closing(schema.open_for_writing(paths.journal)))
        connection.execute(
            "CREATE TEMP TABLE kept (there INTEGER PRIMARY KEY, here INTEGER NOT NULL)"
        )
        for page in _pages(kept):
            look()
            connection.execute(_KEEP, (page,))
        told = _read(connection, base)
        look()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO main.headers SELECT * FROM told")
        connection.execute(_TAKE)
        try:
            if keep_rows:
                _copy_rows(connection, base, rows, paths, look)
            if keep_rows and output_format == "parquet":
                # Arrow is imported where it is wanted only.
                from prefect_parallelrun.output import parquet_taken

                parquet_taken.tell_columns(connection, paths.partial, told, look)
        except BaseException:
            paths.partial.unlink(missing_ok=True)  # the disk may be full
            raise
        connection.execute("COMMIT")


def check(base: RunPaths, *, keep_rows: bool) -> None:
    """Look whether rows can be taken over of a run.

    Raises:
        NotTaken: it is damaged, or rows are lost.
    """
    with _readable(base, keep_rows=keep_rows):
        pass


def discard(paths: RunPaths) -> None:
    """Remove what a sitting took over that ended before it wrote down its plan: it may be another's now."""
    with explained(paths.journal):
        for file in (paths.partial, *schema.files(paths.journal)):
            file.unlink(missing_ok=True)


@contextmanager
def _readable(base: RunPaths, *, keep_rows: bool) -> Iterator[int]:
    """Open the rows of the other run, which may be removed from then on; -1 where there are none.

    Raises:
        NotTaken: it is damaged, or rows are lost.
    """
    with ExitStack() as held:
        with as_base(base):
            rows = -1
            if keep_rows and base.partial.exists():
                rows = held.enter_context(base.partial.open("rb")).fileno()
            with Journal(base.journal) as journal:
                journal.check()
                read_earlier(journal, retry_missing=False)
                ((end,),) = journal.select("SELECT coalesce(max(offset + length), 0) FROM attempts")
            # Now, since another driver may be at work on it: what it has journalled was written before.
            size = os.fstat(rows).st_size if rows >= 0 else 0
            if keep_rows and size < end:
                raise damaged_partial(base, size, end)
        yield rows


def _read(connection: sqlite3.Connection, base: RunPaths) -> list[tuple[str, int]]:
    """Read what is to be taken, and let go of the other journal: its driver may wait for that.

    Returns:
        What that journal has of the columns.

    Raises:
        NotTaken: it cannot be read.
    """
    with as_base(base):
        schema.attach(connection, base.journal, "base")
        connection.executescript(_READ)
        with Journal(base.journal) as journal:
            return journal.columns()


def _pages(values: Iterable[Any]) -> Iterator[str]:
    """Yield some values at a time, as JSON."""
    rest = iter(values)
    while page := list(islice(rest, _PAGE)):
        yield json.dumps(page)


def _copy_rows(
    connection: sqlite3.Connection,
    base: RunPaths,
    source: int,
    paths: RunPaths,
    look: Callable[[], None],
) -> None:
    """Copy the rows into a new partial file, in few calls, and sync it.

    Raises:
        NotTaken: they cannot be read.
    """
    connection.execute(_SPANS)
    ((spans,),) = connection.execute("SELECT count(*) FROM spans")
    with paths.partial.open("wb", buffering=0) as file:
        target = file.fileno()
        for after in range(0, spans, _PAGE):
            ((page,),) = connection.execute(_SPANS_PAGE, (after, _PAGE))
            for large, some in groupby(json.loads(page), lambda span: span[1] >= _LARGE_BYTES):
                if not large:
                    _through_here(base, source, target, map(tuple, some), look)
                    continue
                for offset, length in some:
                    copied = copy(source, target, offset, length, look)
                    rest = [(offset + copied, length - copied)]
                    _through_here(base, source, target, rest, look)
        os.fsync(target)
    sync_folder(paths.root)


def _through_here(
    base: RunPaths,
    source: int,
    target: int,
    spans: Iterable[tuple[int, int]],
    look: Callable[[], None],
) -> None:
    """Copy by reading and writing: only what is wrong with reading is a reason to leave it.

    Raises:
        NotTaken: they cannot be read.
    """
    found = pieces(source, spans)
    while True:
        look()
        with as_base(base):
            piece = next(found, None)
        if piece is None:
            return
        write_all(target, piece)
