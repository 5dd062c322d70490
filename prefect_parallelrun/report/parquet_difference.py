"""A Parquet output compared with the rows of its run, one row group at a time (R208, R221)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def parquet_difference(
    found: IO[bytes],
    source: int,
    segments: Iterable[tuple[int, int]],
    columns: Iterable[tuple[str, int]],
    counted: int,
) -> str | None:
    """Say how a Parquet file differs from the rows of a run; None where it does not.

    Args:
        found: the file.
        source: descriptor of the partial file.
        segments: of the rows in it, in order: offset and length in bytes.
        columns: what the journal has of the columns.
        counted: rows that the mini-batches returned, by the journal.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prefect_parallelrun.output import parquet_file, parquet_schema

    try:
        file = pq.ParquetFile(found)
        schema = parquet_schema.run_schema(columns)
        # The writer adds metadata of its own to each field.
        if not file.schema_arrow.remove_metadata().equals(schema.remove_metadata()):
            return f"has other columns than the run: {file.schema_arrow.remove_metadata()}"
        if (file.schema_arrow.metadata or {}) != (schema.metadata or {}):
            return "has other metadata than the run"
        rows = 0
        number = -1
        expected = parquet_file.row_groups(source, segments, schema)
        for number, group in enumerate(expected):
            if number >= file.num_row_groups:
                return f"ends after {rows:,} rows, and the run has more"
            if not _is_same(file.read_row_group(number), group):
                return (
                    f"differs from the rows of the run in row group {number}, from row {rows:,} on"
                )
            rows += group.num_rows
        if file.num_row_groups > number + 1:
            return f"goes on after the {rows:,} rows of the run"
        if rows != counted:
            return f"has {rows:,} rows, and run() returned {counted:,} by the journal"
    # Of a damaged file, whatever the reader of Parquet meets first.
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read as Parquet: {error}"
    return None


def _is_same(one: pa.Table, other: pa.Table) -> bool:
    if one.num_rows != other.num_rows:
        return False
    # Not-a-number is never equal to itself: what is in the files decides then.
    return bool(one.equals(other)) or _encoded(one) == _encoded(other)


def _encoded(table: pa.Table) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink)
    return sink.getvalue()
