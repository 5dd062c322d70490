"""From the Arrow streams of the mini-batches to one Parquet file, in row groups of bounded size (R221)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.descriptors import write_all
from prefect_parallelrun.output.parquet_types import fitted
from prefect_parallelrun.output.segments import Stream, pieces
from prefect_parallelrun_runtime import arrow_rows

ROW_GROUP_BYTES = 32 << 20
"""A row group is closed when it has so much in memory, or so many rows."""
ROW_GROUP_ROWS = 1 << 20

_JOIN_BYTES = 4 << 20
_JOIN_TABLES = 1024
"""So many small tables become one, since each costs more than the few values in it."""


class _Sink(io.RawIOBase):
    """An open descriptor that takes all that it is given."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        write_all(self._descriptor, data)
        return memoryview(data).nbytes


def write(descriptor: int, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    """Write a Parquet file with these row groups, none of which is held longer than that takes.

    Raises:
        OutputError: Arrow cannot write such rows.
    """
    sink = io.BufferedWriter(_Sink(descriptor), 1 << 20)
    try:
        with pq.ParquetWriter(sink, schema) as writer:
            for group in groups:
                writer.write_table(group, row_group_size=group.num_rows)
    except pa.ArrowException as error:
        raise OutputError(
            f"the output cannot be written as Parquet: {error}. All rows are kept; start a new run "
            "(allow_reuse=False) with a script that returns other columns, or another output_format"
        ) from error
    sink.flush()


def row_groups(
    source: int, segments: Iterable[tuple[int, int]], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of segments of the partial file as tables of the run's schema.

    Args:
        source: descriptor of the partial file.
        segments: (offset, length) in bytes; each holds what `arrow_rows` made of whole mini-batches.
        schema: of the run.

    Raises:
        OutputError: the rows are not of this schema.
    """
    held: list[pa.Table] = []
    size = rows = 0
    stream = io.BufferedReader(Stream(pieces(source, segments)), 1 << 20)
    for table in _joined(_fitted(table, schema) for table in tables(stream)):
        held.append(table)
        size += table.nbytes
        rows += table.num_rows
        if size >= ROW_GROUP_BYTES or rows >= ROW_GROUP_ROWS:
            yield pa.concat_tables(held)
            held, size, rows = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def tables(stream: IO[bytes]) -> Iterator[pa.Table]:
    """Yield rows as they were kept: those that follow each other and have one schema as one table.

    All of them are read in one call, and cost the same to fit as one: each call into Arrow lets go of
    the interpreter's lock, which is slow to come back while another thread of the flow computes.
    """
    schema, rows, size = b"", list[bytes](), 0
    while prefix := stream.read(arrow_rows.PREFIX.size):
        before, length = arrow_rows.PREFIX.unpack(prefix)
        its = stream.read(before)
        if rows and (its != schema or size >= _JOIN_BYTES):
            yield _table(schema, rows)
            rows, size = [], 0
        schema = its
        rows.append(stream.read(length))
        size += length
    if rows:
        yield _table(schema, rows)


def _table(schema: bytes, rows: list[bytes]) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(b"".join([schema, *rows]))).read_all()


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield small tables together, in one piece of memory."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= _JOIN_BYTES or len(held) >= _JOIN_TABLES:
            yield pa.concat_tables(held).combine_chunks()
            held, size = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    columns = [_column(table, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(table: pa.Table, field: pa.Field) -> Any:
    place = table.schema.get_field_index(field.name)
    if place < 0 or table.column(place).null_count == table.num_rows:
        return pa.nulls(table.num_rows, field.type)
    chunks = table.column(place).chunks
    try:
        return pa.chunked_array([fitted(chunk, field.type) for chunk in chunks], field.type)
    except pa.ArrowException as error:
        raise OutputError(
            f"column {field.name!r} of the output is {field.type}, and rows that were kept as "
            f"{table.column(place).type} do not fit: {error}. All rows are kept; start a new run "
            "(allow_reuse=False) with a script that returns one type there"
        ) from error
