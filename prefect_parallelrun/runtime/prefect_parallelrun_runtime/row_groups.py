"""Parquet: row groups to a DataFrame with the dataset's column types."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import typed_tables
from prefect_parallelrun_runtime.load_error import LoadError

if TYPE_CHECKING:
    import pandas as pd

_footer_of: tuple[tuple[str, int, int], Any] = (("", 0, 0), None)
"""Path, size and time, and the footer, of the file read last: that of a large file is costly to parse."""


def load(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one mini-batch.

    Raises:
        LoadError: the file's columns are others than the dataset's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = work["path"]
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(reader["schema"])))
    with pq.ParquetFile(path, metadata=_footer(path)) as file:
        if "row_groups" in work:
            table = file.read_row_groups(work["row_groups"], use_threads=False)
        else:
            table = file.read(use_threads=False)
    if "rows" in work:
        table = table.slice(0, work["rows"])
    if not table.schema.equals(schema, check_metadata=False):
        table = _fitted(path, table, schema)
    # Its pandas metadata tells which columns have a dtype of pandas' own.
    table = table.replace_schema_metadata(schema.metadata)
    return typed_tables.to_frame(table, reader["objects"])


def _footer(path: str) -> Any:
    global _footer_of
    import pyarrow.parquet as pq

    status = os.stat(path)
    key = (path, status.st_size, status.st_mtime_ns)
    last = _footer_of
    if last[0] != key:
        last = (key, pq.read_metadata(path))
        _footer_of = last
    return last[1]


def _fitted(path: str, table: Any, schema: Any) -> Any:
    import pyarrow as pa

    if sorted(table.column_names) != sorted(schema.names):
        raise LoadError(f"{path}: {other_columns(table.column_names, schema.names)}")
    arrays = []
    for field in schema:
        column = table.column(field.name)
        # A column of integers with gaps is one of floats in pandas; beyond 2^53 these are not exact.
        safe = not (pa.types.is_integer(column.type) and pa.types.is_floating(field.type))
        try:
            arrays.append(column.cast(field.type, safe=safe))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LoadError(
                f"{path}: column {field.name!r} is not {field.type} as in the other files: {error}"
            ) from None
    return pa.Table.from_arrays(arrays, schema=schema)


def other_columns(names: list[str], expected: list[str]) -> str:
    """Say how a file's columns differ from those of the dataset."""
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    parts = [
        f"{word} {some[:10]!r}" for word, some in (("lacks", missing), ("adds", extra)) if some
    ]
    return f"its columns are not those of the first file: it {' and '.join(parts)}"
