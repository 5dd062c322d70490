"""Parquet: row groups to a DataFrame with the dataset's column types."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import typed_tables
from prefect_parallelrun_runtime.load_error import LoadError, Unfit
from prefect_parallelrun_runtime.source_path import SourcePath, for_arrow

if TYPE_CHECKING:
    import pandas as pd

JSON = b"parallelrun.json"
"""Marks, in the metadata of a field, text that stands for Python's lists and objects."""

_footer_of: tuple[tuple[str, int, int], Any] = (("", 0, 0), None)
"""Path, size and time, and the footer, of the file read last: that of a large file is costly to parse."""


def load(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one mini-batch.

    Raises:
        LoadError: the file's columns are others than the dataset's.
        Unfit: a value does not fit its column; the row's number is that in the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = work.get("local") or work["path"]
    footer, before = _footer(path), 0
    with pq.ParquetFile(for_arrow(path), metadata=footer) as file:
        if "row_groups" in work:
            first = work["row_groups"][0]
            before = sum(footer.row_group(place).num_rows for place in range(first))
            table = file.read_row_groups(work["row_groups"], use_threads=False)
        else:
            table = file.read(use_threads=False)
    if "rows" in work:
        table = table.slice(0, work["rows"])
    if reader["schema"] is None:  # whoever wrote the file has settled the types
        return _with_objects(table, typed_tables.to_frame(table, reader["objects"]))
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(reader["schema"])))
    try:
        if not table.schema.equals(schema, check_metadata=False):
            table = _fitted(work["path"], table, schema)
        _check_full(table, reader["full"])
    except Unfit as unfit:
        if unfit.row is not None:
            unfit.row += before
        raise
    # Its pandas metadata tells which columns have a dtype of pandas' own.
    table = table.replace_schema_metadata(schema.metadata)
    return typed_tables.to_frame(table, reader["objects"])


def _with_objects(table: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a DataFrame with lists and objects where its table has JSON that stands for them."""
    import pandas as pd

    for field in table.schema:
        if JSON in (field.metadata or {}):
            texts = table.column(field.name).to_pylist()
            values = [float("nan") if text is None else json.loads(text) for text in texts]
            frame[field.name] = pd.Series(values, index=frame.index, dtype=object)
    return frame


def _footer(path: str) -> Any:
    global _footer_of
    import pyarrow.parquet as pq

    if isinstance(path, SourcePath):
        return pq.read_metadata(path.open())
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
        raise LoadError(f"{path}: {typed_tables.other_columns(table.column_names, schema.names)}")
    arrays = []
    for field in schema:
        column = table.column(field.name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        try:
            arrays.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            _check_exact(column, field)
            raise LoadError(
                f"{path}: column {field.name!r} is not {field.type} as in the other files: {error}"
            ) from None
    return pa.Table.from_arrays(arrays, schema=schema)


def _check_exact(column: Any, field: Any) -> None:
    """Refuse the first integer that floats would round, if these have to hold integers."""
    import pyarrow as pa

    if not (pa.types.is_integer(column.type) and pa.types.is_floating(field.type)):
        return
    limit = 1 << {16: 11, 32: 24, 64: 53}[field.type.bit_width]
    for row, value in enumerate(column.to_pylist()):
        if value is not None and abs(value) > limit:
            raise Unfit(
                row,
                f"column {field.name!r} is {field.type}, since values are missing in it or other files have "
                f"floats, and {value} would be rounded; write the column as text, or from pandas' dtype Int64",
            )


def _check_full(table: Any, names: list[str]) -> None:
    """Refuse the first gap in a column whose dtype has none, found since its type was settled."""
    import pyarrow.compute as pc

    found = [
        (pc.index(pc.is_null(table.column(name)), True).as_py(), name)
        for name in names
        if table.column(name).null_count
    ]
    if found:
        row, name = min(found)
        raise Unfit(
            row,
            f"column {name!r} is {table.column(name).type}, since the files that were looked at have no "
            "gap in it, and its value is missing; write the column as float64, or from pandas' dtype Int64",
        )
