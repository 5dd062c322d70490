"""Column types by name, Arrow tables of them, and the DataFrames these become.

The same names give the same pandas dtypes in every mini-batch, whatever its rows hold (R111).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime.load_error import Unfit, bad_value

if TYPE_CHECKING:
    import pandas as pd

Columns = list[list[str]]
"""[name, type] of each column; a type is a key of `arrow_types()`, or `OBJECT`."""

OBJECT = "object"
"""JSON lists and objects, as Python has them."""
BOOL_OR_NULL = "bool_or_null"
"""Truth values with gaps: a column of Python objects, as in pandas."""
WITHOUT_NULLS = ("int64", "bool")
"""Types whose pandas dtype cannot say that a value is missing."""


def arrow_types() -> dict[str, Any]:
    """Return the Arrow type for each type of a column."""
    import pyarrow as pa

    return {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        BOOL_OR_NULL: pa.bool_(),
        "string": pa.string(),
        "datetime64[ns]": pa.timestamp("ns"),
        "datetime64[us]": pa.timestamp("us"),
        "datetime64[ns, UTC]": pa.timestamp("ns", "UTC"),
        "datetime64[us, UTC]": pa.timestamp("us", "UTC"),
    }


def schema(columns: Columns) -> Any:
    """Return the Arrow schema of columns, those of Python objects left out."""
    import pyarrow as pa

    types = arrow_types()
    return pa.schema([(name, types[kind]) for name, kind in columns if kind != OBJECT])


def other_columns(names: list[str], expected: list[str]) -> str:
    """Say how the columns of a file differ from those of the dataset."""
    missing = [name for name in expected if name not in names]
    extra = [name for name in names if name not in expected]
    parts = [
        f"{word} {some[:10]!r}" for word, some in (("lacks", missing), ("adds", extra)) if some
    ]
    return f"its columns are not those of the first file: it {' and '.join(parts)}"


def check_nulls(table: Any, columns: Columns) -> None:
    """Refuse a missing value in a column whose type has none.

    Raises:
        Unfit: naming the first such row, and its column.
    """
    import pyarrow.compute as pc

    first: tuple[int, str, str] | None = None
    for name, kind in columns:
        if kind in WITHOUT_NULLS and table.column(name).null_count:
            row = pc.index(pc.is_null(table.column(name)), True).as_py()
            if first is None or row < first[0]:
                first = (row, name, kind)
    if first is not None:
        raise Unfit(first[0], bad_value(first[1], None, first[2]))


def to_frame(table: Any, objects: list[str]) -> pd.DataFrame:
    """Return a table as a DataFrame.

    Args:
        objects: Columns that are Python objects even where this table has no gap in them.
    """
    frame: pd.DataFrame = table.to_pandas(use_threads=False)
    # A DataFrame may have had other names than text; in Arrow all are text.
    labels = {str(label): label for label in frame.columns}
    for name, field in zip(table.column_names, table.schema, strict=True):
        if name not in labels:
            continue  # it has become the index
        column = frame[labels[name]]
        if name in objects:
            column = column.astype(object)
        elif not _is_gap_none(field.type, column.dtype):
            continue
        if table.column(name).null_count:
            # A missing value is NaN, as pandas' own readers have it, not None.
            column = column.where(column.notna(), float("nan"))
        frame[labels[name]] = column
    return frame


def _is_gap_none(arrow_type: Any, dtype: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    plain = types.is_string(arrow_type) or types.is_large_string(arrow_type)
    return bool(plain or types.is_boolean(arrow_type)) and dtype.kind == "O"
