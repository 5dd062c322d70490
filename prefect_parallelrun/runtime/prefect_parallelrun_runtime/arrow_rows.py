"""Rows as Arrow's messages, from which the driver writes the Parquet output (R221)."""

from __future__ import annotations

import base64
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import arrow_types, returned, value_kinds
from prefect_parallelrun_runtime.returned import BadReturn

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_BYTES = 8 << 20
"""About so much is in one message: the driver holds few in memory at a time."""
PREFIX = struct.Struct("<IQ")
"""Before each message of rows and its schema: bytes of the message of the schema, bytes of that of the
rows. So the driver can put those of many mini-batches together unopened, and have them read at once."""


def encode(result: Any) -> tuple[bytes, str | None]:
    """Return the rows as messages, and the schema as text; None where there are no columns.

    Raises:
        BadReturn: it does not make a table, or pyarrow is not there to make one.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise BadReturn(
            "output_format='parquet' needs pyarrow in the environment of the entry script, and "
            f"{sys.executable} has none ({error}): install it there, or choose 'csv' or 'jsonl'"
        ) from None
    table, dtypes = _table(pa, result)
    if not table.num_columns:
        return b"", None
    schema = pa.schema(
        [
            pa.field(name, arrow_types.canonical(kind, name))
            for name, kind in zip(table.column_names, table.schema.types, strict=True)
        ]
    )
    before = schema.serialize().to_pybytes()
    messages: list[bytes] = []
    wide = [False] * len(dtypes)
    for batch in table.to_batches(max_chunksize=_rows_per_batch(table)):
        columns = [_cast(pa, batch.column(place), field) for place, field in enumerate(schema)]
        wide = [
            one or arrow_types.is_wide(column) for one, column in zip(wide, columns, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(columns, schema=schema).serialize()
        if batch.num_rows:
            messages += [PREFIX.pack(len(before), rows.size), before, rows.to_pybytes()]
    return b"".join(messages), _as_text(pa, table, schema, wide, dtypes)


def _as_text(
    pa: Any, table: pa.Table, schema: pa.Schema, wide: list[bool], dtypes: list[str]
) -> str:
    fields = []
    for place, field in enumerate(schema):
        metadata = {}
        if table.column(place).null_count == table.num_rows:
            metadata[arrow_types.EMPTY] = b"1"
        if wide[place]:
            metadata[arrow_types.WIDE] = b"1"
        if dtypes[place]:
            metadata[arrow_types.DTYPE] = dtypes[place].encode()
        fields.append(field.with_metadata(metadata) if metadata else field)
    return base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()


def _rows_per_batch(table: pa.Table) -> int:
    return int(max(1, table.num_rows * BATCH_BYTES // max(1, table.nbytes)))


def _cast(pa: Any, column: Any, field: pa.Field) -> Any:
    if column.type.equals(field.type):
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise BadReturn(
            f"run() returned column {field.name!r} as {column.type}, which cannot be kept as "
            f"{field.type}: {error}"
        ) from None


def _table(pa: Any, result: Any) -> tuple[pa.Table, list[str]]:
    """Return a table, and the dtype of each column that only pandas has."""
    if returned.is_series(result):
        result = returned.series_table(result)
    if not returned.is_table(result):
        names, columns = _columns(result)
        return _from_columns(pa, names, columns), [""] * len(names)
    if hasattr(result, "to_pandas"):  # Arrow's
        if not hasattr(result, "combine_chunks"):
            result = pa.Table.from_batches([result])
        names = returned.distinct(result.schema.names)
        return result, [""] * len(names)
    names = returned.distinct(result.columns)
    dtypes = [arrow_types.pandas_dtype(dtype) for dtype in result.dtypes]
    return _from_columns(pa, names, [result.iloc[:, n] for n in range(len(names))]), dtypes


def _columns(result: Any) -> tuple[list[str], Sequence[Any]]:
    """Return the columns of a list or an array."""
    if returned.is_array(result) and result.dtype.names is None and result.dtype != object:
        if result.ndim == 1:
            return returned.unnamed(1), [result]
        if result.ndim == 2:
            return returned.unnamed(result.shape[1]), list(result.T)
    names, rows = returned.rows_of(result)
    return names, [[row[place] for row in rows] for place in range(len(names))]


def _from_columns(pa: Any, names: list[str], columns: Iterable[Any]) -> pa.Table:
    arrays = [_array(pa, name, column) for name, column in zip(names, columns, strict=True)]
    return pa.Table.from_arrays(arrays, names=names)


def _array(pa: Any, name: str, values: Any) -> Any:
    dtype = str(getattr(values, "dtype", "object"))
    if dtype == "object":
        value_kinds.refuse_unlike(name, list(values))
    elif dtype.startswith("Sparse"):
        values = values.sparse.to_dense()
    try:
        return pa.array(values, from_pandas=True)
    # Whatever the objects of a script may raise on the way.
    except Exception as error:
        reason = _reason(pa, list(values), error)
    raise BadReturn(f"run() returned column {name!r} {reason}")


def _reason(pa: Any, values: list[Any], error: Exception) -> str:
    """Say which value cannot be kept: by itself, or the first that does not go with those before."""
    for place, value in enumerate(values):
        try:
            pa.array([value], from_pandas=True)
        except Exception as alone:
            return (
                f"with a value that Parquet cannot hold: {returned.shown(value)} in element {place} "
                f"({alone})"
            )
    first = next((place for place, value in enumerate(values) if not returned.is_missing(value)), 0)
    for place in range(first + 1, len(values)):
        try:
            pa.array([values[first], values[place]], from_pandas=True)
        except Exception:
            return (
                f"that is not of one type: {returned.shown(values[place])} in element {place} does "
                "not go with "
                f"{returned.shown(values[first])} in element {first}"
            )
    return f"that Arrow cannot hold: {error}"
