"""JSON lines, one object to a line: bytes to a DataFrame with the dataset's column types.

Arrow reads what it can. What it cannot (lists and objects as values, numbers among strings) is read
line by line, and so is what it refuses: to find out which row and column it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import text_files, typed_tables
from prefect_parallelrun_runtime.load_error import Unfit, bad_value
from prefect_parallelrun_runtime.typed_tables import Columns

if TYPE_CHECKING:
    import pandas as pd

_INT64 = range(-(1 << 63), 1 << 63)


def load(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one mini-batch.

    Raises:
        Unfit: a row does not fit; its number is that in the file.
    """
    path, encoding = work.get("local") or work["path"], reader["encoding"]
    if "start" not in work:
        if "rows" in work:
            data = text_files.first_rows(path, reader, work["rows"])
        else:
            data = text_files.whole(path, encoding)
        return _parse(data, reader)
    # A byte-order mark is no part of the first row; in UTF-8 it is the same for every file that has it.
    start = text_files.bom_length(path)
    before, raw = text_files.rows_of_range(path, work["start"], work["end"], start)
    try:
        return _parse(text_files.as_utf8(raw, encoding), reader)
    except Unfit as unfit:
        if unfit.row is not None and "local" not in work:
            unfit.row += text_files.rows_before(path, reader, before, start)
        raise


def _parse(data: bytes, reader: dict[str, Any]) -> pd.DataFrame:
    columns: Columns = reader["columns"]
    _check_utf8(data, reader["encoding"])
    table = None if reader["line_by_line"] else _by_arrow(data, columns)
    if table is None:
        return _line_by_line(data, columns)
    typed_tables.check_nulls(table, columns)
    return typed_tables.to_frame(table, _objects(columns))


def _check_utf8(data: bytes, encoding: str) -> None:
    """Refuse the first row that is not UTF-8, which Arrow would let pass."""
    if data.isascii():
        return
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line_end = data.find(b"\n", error.start) + 1 or len(data)
        row = len(_lines(data[:line_end])) - 1
        shown = data[error.start : error.start + 20].split(b"\n")[0]
        raise Unfit(
            row, f"it holds {shown!r}, which is not {encoding}; name the right encoding="
        ) from None


def _lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.strip()]


def _objects(columns: Columns) -> list[str]:
    return [name for name, kind in columns if kind == typed_tables.BOOL_OR_NULL]


def _by_arrow(data: bytes, columns: Columns) -> Any:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    schema = typed_tables.schema(columns)
    if not data.strip():
        return schema.empty_table()
    try:
        table = arrow_json.read_json(
            pa.BufferReader(data),
            arrow_json.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 1 << 30)),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowInvalid:
        return None
    return table.select(schema.names)


def _rows(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in _lines(data):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise Unfit(len(found), f"it is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Unfit(len(found), f"it is not a JSON object but {type(value).__name__}")
        found.append(value)
    return found


def _line_by_line(data: bytes, columns: Columns) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    records = _rows(data)
    known = {name for name, _ in columns}
    for row, record in enumerate(records):
        for name in record.keys() - known:
            raise Unfit(
                row,
                f"{name!r} is no column of the dataset; if it should be, create the dataset with "
                f"column_types={{{name!r}: 'string'}} (or its type)",
            )
    types = typed_tables.arrow_types()
    typed = {
        name: _array([record.get(name) for record in records], name, kind, types[kind])
        for name, kind in columns
        if kind != typed_tables.OBJECT
    }
    frame = typed_tables.to_frame(pa.table(typed), _objects(columns))
    if len(typed) == len(columns):
        return frame
    series = {
        name: frame[name]
        if name in typed
        else pd.Series([record.get(name) for record in records], dtype=object)
        for name, _ in columns
    }
    return pd.DataFrame(series)


def _array(values: list[Any], name: str, kind: str, arrow_type: Any) -> Any:
    import pyarrow as pa

    converted = []
    for row, value in enumerate(values):
        if not _fits(value, kind):
            raise Unfit(row, bad_value(name, value, kind))
        if kind == "string" and value is not None and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        if kind == "float64" and value is not None:
            value = float(value)
        converted.append(value)
    if not kind.startswith("datetime64"):
        return pa.array(converted, arrow_type)
    try:
        return pa.array(converted, pa.string()).cast(arrow_type)
    except pa.ArrowInvalid:
        for row, value in enumerate(converted):
            try:
                pa.array([value], pa.string()).cast(arrow_type)
            except pa.ArrowInvalid:
                raise Unfit(row, bad_value(name, value, kind)) from None
        raise


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return kind not in typed_tables.WITHOUT_NULLS
    if kind == "int64":
        return isinstance(value, int) and not isinstance(value, bool) and value in _INT64
    if kind == "float64":
        # A whole number may be too large even for a float.
        return isinstance(value, float) or (
            isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1023
        )
    if kind in ("bool", typed_tables.BOOL_OR_NULL):
        return isinstance(value, bool)
    return isinstance(value, str) or kind == "string"
