"""What the paths of a mini-batch's files say: the values of partition keys, and columns that no file holds."""

from __future__ import annotations

import base64
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def key_of(work: dict[str, Any], reader: dict[str, Any]) -> dict[str, Any] | None:
    """Return the value of each partition key of a mini-batch; None where it was not cut by keys."""
    if "key" not in work:
        return None
    kinds = reader["kinds"]
    return {name: typed(value, kinds[name]) for name, value in work["key"].items()}


def typed(value: Any, kind: str) -> Any:
    """Return a value that came as JSON as what it is."""
    if value is None:
        return None
    if kind == "datetime":
        return datetime.fromisoformat(value)
    if kind == "date":
        return date.fromisoformat(value)
    if kind == "timestamp":
        # Unlike datetime it knows nanoseconds; only tables have these, and they need pandas anyway.
        import pandas as pd

        return pd.Timestamp(value)
    return value


def with_constants(
    frame: pd.DataFrame, values: dict[str, Any], reader: dict[str, Any]
) -> pd.DataFrame:
    """Return rows with the columns that have one value in all of them, each in its place."""
    import pyarrow as pa

    from prefect_parallelrun_runtime import typed_tables

    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(reader["constants"])))
    kinds = reader["kinds"]
    columns = [
        pa.repeat(pa.scalar(typed(values[field.name], kinds[field.name]), field.type), len(frame))
        for field in schema
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    added = typed_tables.to_frame(table, reader.get("objects", []))
    order: list[str] | None = reader.get("order")
    labels = list(added.columns)
    if order is None:
        places = {label: len(frame.columns) + place for place, label in enumerate(labels)}
    else:
        places = {label: order.index(str(label)) for label in labels}
    # From left to right each finds its place: the other columns are in order.
    for label in sorted(labels, key=places.__getitem__):
        frame.insert(places[label], label, added[label].array)
    return frame
