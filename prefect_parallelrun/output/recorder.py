"""The writing side of the journal: attempts in, one transaction per group."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from prefect_parallelrun.errors import printable
from prefect_parallelrun.models import AttemptError, AttemptRecord, NodeRecord, ProcessRecord
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.error_shapes import SHAPES, shape

MESSAGE_LIMIT = 2_000
"""Characters kept of an error's message, per attempt."""
TRACEBACK_LIMIT = 100_000
"""Characters kept of the first stack trace of each distinct error."""

_COLUMNS = (
    "id, mini_batch, first, stop, attempt, final, outcome, node, process, items_total, items_succeeded, "
    "items_failed, rows, started_at, elapsed_s, cpu_s, load_s, run_s, error, message, items_sample, "
    "log_file, offset, length, header"
)
_WIDTH = _COLUMNS.count(",") + 1
# Each step of SQLite lets go of the interpreter's lock, and getting it back costs up to 5 ms while
# another thread of the flow computes (measured: 2.8 ms per row with executemany, 0.04 ms so).
_ROWS_PER_STATEMENT = 256
# Of this connection only, and left out where nothing failed before: it is asked at every insert.
_GIVE_WAY = f"""
CREATE TEMP TRIGGER give_way BEFORE INSERT ON main.attempts WHEN NEW.final = 1 BEGIN
    UPDATE attempts SET final = 0
    WHERE {schema.FAILED} AND mini_batch = NEW.mini_batch AND id <= {{resumed_after}}
        AND (NEW.stop IS NULL OR first < NEW.stop) AND (stop IS NULL OR NEW.first < stop);
END
"""


class Entry(NamedTuple):
    """One attempt, and where its rows are."""

    record: AttemptRecord
    offset: int | None
    """Bytes from the start of the partial file; None where the attempt left no rows there."""
    length: int | None
    columns: str | None
    """The header line of the rows, where one is wanted."""


class Recorder:
    """Owns the journal's one writing connection; after an error it is not to be used again."""

    def __init__(self, path: Path) -> None:
        self._connection = schema.open_for_writing(path)
        self._next = self._number("SELECT coalesce(max(id), 0) + 1 FROM attempts")
        self._errors: dict[tuple[str, ...], tuple[int, str]] = {}
        self._shapes: Counter[tuple[str, ...]] = Counter()
        for number, message, *kind in self._connection.execute(
            "SELECT id, message, category, type, location, stage FROM errors ORDER BY id"
        ):
            self._know(tuple(kind), number, message)
        self._headers: dict[str, int] = {
            line: number
            for number, line in self._connection.execute("SELECT id, line FROM headers")
        }
        limit = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
        self._rows_per_statement = _ROWS_PER_STATEMENT
        while self._rows_per_statement * _WIDTH > limit:
            self._rows_per_statement //= 2

    @property
    def end(self) -> int:
        """Where the journalled rows end in the partial file, in bytes."""
        return self._number("SELECT coalesce(max(offset + length), 0) FROM attempts")

    def resume(self) -> None:
        """Begin where an earlier sitting ended.

        What failed before, be it a row that is missing, holds until an attempt of this sitting settles
        some of the same items (R201): that takes its place, in the same transaction.
        """
        resumed_after = self._next - 1
        self._connection.execute(
            "INSERT OR REPLACE INTO meta VALUES ('resumed_after', ?)", (resumed_after,)
        )
        if self._number(f"SELECT EXISTS (SELECT 1 FROM attempts WHERE {schema.FAILED})"):
            self._connection.execute(_GIVE_WAY.format(resumed_after=resumed_after))

    def record(
        self, entries: Sequence[Entry], notes: Sequence[NodeRecord | ProcessRecord] = ()
    ) -> None:
        """Commit these attempts, and what is known of nodes and processes: all or none.

        Raises:
            sqlite3.Error: they could not be committed, or a mini-batch is settled already.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            rows = [self._row(number, entry) for number, entry in enumerate(entries, self._next)]
            self._insert(rows)
            for note in notes:
                self._note(note)
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise
        self._next += len(rows)

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        self._connection.close()

    def _insert(self, rows: list[tuple[Any, ...]]) -> None:
        # Powers of two, so that a rest of any length needs few distinct statements.
        position, size = 0, self._rows_per_statement
        while position < len(rows):
            while size > len(rows) - position:
                size //= 2
            values = ", ".join(["(" + ", ".join("?" * _WIDTH) + ")"] * size)
            self._connection.execute(
                f"INSERT INTO attempts ({_COLUMNS}) VALUES {values}",
                [value for row in rows[position : position + size] for value in row],
            )
            position += size

    def _note(self, note: NodeRecord | ProcessRecord) -> None:
        """Write what is known of a node or process now, in the place of what was."""
        values = [
            printable(value) if isinstance(value, str) else value
            for value in (getattr(note, each.name) for each in fields(note))
        ]
        table = "nodes" if isinstance(note, NodeRecord) else "processes"
        marks = ", ".join("?" * len(values))
        self._connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", values)

    def _row(self, number: int, entry: Entry) -> tuple[Any, ...]:
        record = entry.record
        error, message = (None, None) if record.error is None else self._error(record.error)
        # Plain str and int: anything else makes sqlite3 look for an adapter, at half the speed.
        return (
            number,
            record.mini_batch,
            *((0, None) if record.part is None else record.part),
            record.attempt,
            1 if record.final else 0,
            str(record.outcome),
            record.node,
            record.process,
            record.items_total,
            record.items_succeeded,
            record.items_failed,
            record.rows,
            record.started_at,
            record.elapsed_s,
            record.cpu_s,
            record.load_s,
            record.run_s,
            error,
            message,
            json.dumps(record.items_sample) if record.items_sample else None,
            printable(record.log_file) if record.log_file else None,
            entry.offset,
            entry.length,
            None if entry.columns is None else self._header(printable(entry.columns)),
        )

    def _error(self, error: AttemptError) -> tuple[int, str | None]:
        """Return the number of this kind of error, and the message where it is another one."""
        message = printable(error.message)
        if len(message) > MESSAGE_LIMIT:
            message = f"{message[:MESSAGE_LIMIT]}… ({len(message):,} characters)"
        kind = tuple(map(printable, (error.category, error.type, error.where, error.stage)))
        known = self._errors.get((*kind, shape(kind[2], message)))
        if known is None and self._shapes[kind] >= SHAPES:
            known = self._errors.get(kind)
        if known is None:
            number = len(self._errors) + 1
            # The end of a stack trace says most.
            trace = printable(error.traceback)[-TRACEBACK_LIMIT:]
            self._connection.execute(
                "INSERT INTO errors VALUES (?, ?, ?, ?, ?, ?, ?)", (number, *kind, message, trace)
            )
            known = self._know(kind, number, message)
        return known[0], None if known[1] == message else message

    def _know(self, kind: tuple[str, ...], number: int, message: str) -> tuple[int, str]:
        """Remember a distinct error by its kind and shape; where shapes are too many, by its kind."""
        told_apart = self._shapes[kind] < SHAPES
        self._shapes[kind] += 1
        key = (*kind, shape(kind[2], message)) if told_apart else kind
        known = self._errors[key] = (number, message)
        return known

    def _header(self, line: str) -> int:
        number = self._headers.get(line)
        if number is None:
            number = self._headers[line] = len(self._headers) + 1
            self._connection.execute("INSERT INTO headers VALUES (?, ?)", (number, line))
        return number

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])
