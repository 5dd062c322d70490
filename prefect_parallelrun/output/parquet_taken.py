"""What rows that were taken over tell of the columns of a Parquet output (R202, R221).

The journal that they come from keeps only what was new when it came, be it from a mini-batch that is
not taken over. So it is told anew, by the rows themselves.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from prefect_parallelrun.output import parquet_file, parquet_schema
from prefect_parallelrun.output.descriptors import read_into
from prefect_parallelrun.output.journal import place
from prefect_parallelrun.output.segments import Stream, pieces
from prefect_parallelrun.output.trouble import NotTaken
from prefect_parallelrun_runtime import arrow_rows, arrow_types

_PAGE = 4096
_SEEN_MOST = 4096
"""So many schemas are known by their digest; then that begins anew."""
# Each page is one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_ROWS = """
SELECT json_group_array(json_array(id, mini_batch, first, offset, length)) FROM (
    SELECT id, mini_batch, first, offset, length FROM main.attempts
    WHERE final = 1 AND (mini_batch, first) > (?, ?) AND length > 0
    ORDER BY mini_batch, first LIMIT ?)
"""
_TELL = "UPDATE main.attempts SET header = ? WHERE id = ?"

_Question = tuple[str, bytes]
"""Of a column, whether there is no value (`EMPTY`), or one beyond the type (`WIDE`)."""


def tell_columns(
    connection: sqlite3.Connection,
    partial: Path,
    told: Iterable[tuple[str, int]],
    look: Callable[[], None],
) -> None:
    """Note with each attempt what it tells of the columns, if that is new.

    Args:
        connection: to the new journal, in which the attempts are.
        partial: their rows.
        told: what the journal that they come from has of the columns.
        look: called now and then; ends it by raising.

    Raises:
        NotTaken: the rows are damaged.
    """
    connection.execute("UPDATE main.attempts SET header = NULL WHERE length > 0")
    numbers = dict(connection.execute("SELECT line, id FROM main.headers"))
    columns = parquet_schema.ParquetColumns(())
    with partial.open("rb") as file:
        reader = _Reader(file.fileno(), parquet_schema.known(told))
        for number, mini_batch, first, offset, length in _attempts(connection, look):
            try:
                text = reader.text(offset, length)
            # Whatever Arrow makes of bytes that are no rows.
            except Exception as error:
                raise NotTaken(f"its rows are damaged: {error}") from error
            # The first in input order come first, so that what says the same later says nothing new.
            if text is None or columns.admit(text, place(mini_batch, first), None) is None:
                continue
            if text not in numbers:
                numbers[text] = len(numbers) + 1
                connection.execute("INSERT INTO main.headers VALUES (?, ?)", (numbers[text], text))
            connection.execute(_TELL, (numbers[text], number))


def _attempts(
    connection: sqlite3.Connection, look: Callable[[], None]
) -> Iterator[tuple[int, int, int, int, int]]:
    after = (-1, 0)
    while True:
        ((text,),) = connection.execute(_ROWS, (*after, _PAGE))
        page = json.loads(text)
        if not page:
            return
        look()
        yield from page
        after = (page[-1][1], page[-1][2])


class _Reader:
    """Says what rows tell of their columns, and opens no more of them than that needs."""

    def __init__(self, source: int, known: parquet_schema.Columns) -> None:
        self._source = source
        self._known = known
        self._open: dict[bytes, set[_Question]] = {}

    def text(self, offset: int, length: int) -> str | None:
        """Return what rows tell of their columns; None where others of the same types told it all."""
        before = self._schema_bytes(offset, length)
        digest = hashlib.blake2b(before, digest_size=16).digest()
        still = self._open.get(digest)
        if still is not None and not still:
            return None
        schema = pa.ipc.read_schema(pa.py_buffer(before))
        if still is None:
            if len(self._open) >= _SEEN_MOST:
                self._open.clear()
            still = self._open[digest] = set(self._questions(schema))
        empty, wide = self._look_into(schema, offset, length)
        still -= {(name, arrow_types.EMPTY) for name in set(schema.names) - empty}
        still -= {(name, arrow_types.WIDE) for name in wide}
        fields = []
        for field in schema:
            metadata = {}
            if field.name in empty:
                metadata[arrow_types.EMPTY] = b"1"
            if field.name in wide:
                metadata[arrow_types.WIDE] = b"1"
            # Rows do not tell it; where it was not the same in all mini-batches, none is told.
            dtypes = self._known[field.name].dtypes
            if len(dtypes) == 1 and (dtype := next(iter(dtypes))):
                metadata[arrow_types.DTYPE] = dtype.encode()
            fields.append(field.with_metadata(metadata) if metadata else field)
        return base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()

    def _schema_bytes(self, offset: int, length: int) -> bytes:
        head = bytearray(arrow_rows.PREFIX.size)
        read_into(self._source, memoryview(head), offset)
        before, _ = arrow_rows.PREFIX.unpack(head)
        if before > length:  # up to 4 GB, which are not to be asked for
            raise ValueError(f"{before:,} bytes of schema in {length:,} bytes of rows")
        data = bytearray(before)
        read_into(self._source, memoryview(data), offset + len(head))
        return bytes(data)

    def _questions(self, schema: pa.Schema) -> Iterator[_Question]:
        for field in schema:
            if not pa.types.is_null(field.type):
                yield field.name, arrow_types.EMPTY
            if self._known[field.name].wide:
                yield field.name, arrow_types.WIDE

    def _look_into(self, schema: pa.Schema, offset: int, length: int) -> tuple[set[str], set[str]]:
        """Return which columns hold no value, and which one that is beyond their type."""
        empty, wide = set(schema.names), set[str]()
        asked = {name for name in schema.names if self._known[name].wide}
        stream = io.BufferedReader(Stream(pieces(self._source, [(offset, length)])), 1 << 20)
        for table in parquet_file.tables(stream):
            empty -= {name for name in empty if table.column(name).null_count < table.num_rows}
            wide |= {
                name
                for name in asked - wide
                if any(map(arrow_types.is_wide, table.column(name).chunks))
            }
        return empty, wide
