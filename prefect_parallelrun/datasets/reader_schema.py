"""The Arrow schema of what a reader gives, columns that only the paths tell among them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets.partitions import PartitionFormat
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import typed_tables

KEY_KINDS = ("string", "int", "float", "bool", "timestamp", "date")
"""What a partition key may be."""


def add_constants(reader: dict[str, Any], partitions: PartitionFormat) -> None:
    """Add the columns of a `partition_format` to a reader: text or datetime64[ns], after the files' own.

    Raises:
        DatasetError: the files have a column of that name.
    """
    import pyarrow as pa

    own = schema_of(reader).names
    clash = [name for name in partitions.kinds if name in own]
    if clash:
        raise DatasetError(
            f"partition_format={partitions.text!r} makes a column {clash[0]!r}, and the files have one "
            "of that name already: give it another name in the format"
        )
    arrow_types = {"string": pa.string(), "datetime": pa.timestamp("ns")}
    schema = pa.schema([(name, arrow_types[kind]) for name, kind in partitions.kinds.items()])
    reader.update(constants=_packed(schema), kinds=partitions.kinds)


def schema_of(reader: Mapping[str, Any]) -> Any:
    """Return the Arrow schema of all columns, with pandas' own metadata where there is any.

    Columns of lists and objects, in JSON lines, have no type there, and are of Arrow's type `null`.
    """
    import pyarrow as pa

    if reader["format"] == "parquet":
        schema = _unpacked(reader["schema"])
    else:
        types = {**typed_tables.arrow_types(), typed_tables.OBJECT: pa.null()}
        schema = pa.schema([(name, types[kind]) for name, kind in reader["columns"]])
    if "constants" not in reader:
        return schema
    fields = {field.name: field for field in [*schema, *_unpacked(reader["constants"])]}
    order = reader.get("order", [])
    names = [*order, *(name for name in fields if name not in order)]
    return pa.schema([fields[name] for name in names], metadata=schema.metadata)


def partitioned_reader(reader: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the reader of Parquet files that lack the key columns, and otherwise give the same rows.

    Args:
        reader: Of the table that they are made from.
        keys: Kind of each key.
    """
    import pyarrow as pa

    schema = schema_of(reader)
    if reader["format"] == "parquet":
        objects, full = reader["objects"], reader["full"]
    else:
        kinds = reader["columns"]
        objects = [name for name, kind in kinds if kind == typed_tables.BOOL_OR_NULL]
        full = [name for name, kind in kinds if kind in typed_tables.WITHOUT_NULLS]
    rest = pa.schema([field for field in schema if field.name not in keys], schema.metadata)
    constants = pa.schema([schema.field(key) for key in keys], _described(schema, keys))
    index = index_names(schema)
    return {
        "format": "parquet",
        "schema": _packed(rest),
        "objects": objects,
        "full": [name for name in full if name not in keys],
        "constants": _packed(constants),
        "kinds": dict(keys),
        "order": [name for name in schema.names if name not in index],
    }


def index_names(schema: Any) -> list[str]:
    """Return the columns that pandas wrote from a DataFrame's index, and makes one again."""
    described = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in described if isinstance(name, str)]


def key_kind(arrow_type: Any) -> str | None:
    """Return the kind of a column's values as a partition key, of `KEY_KINDS`; None where it cannot be one."""
    import pyarrow as pa

    types = pa.types
    checks = {
        "string": lambda one: types.is_string(one) or types.is_large_string(one),
        "int": types.is_integer,
        "float": types.is_floating,
        "bool": types.is_boolean,
        "timestamp": types.is_timestamp,
        "date": types.is_date32,
    }
    return next((kind for kind in KEY_KINDS if checks[kind](arrow_type)), None)


def _described(schema: Any, names: Sequence[str] | Mapping[str, str]) -> dict[bytes, bytes] | None:
    """Return pandas' own metadata for some columns of a schema, without an index."""
    described = schema.pandas_metadata
    if described is None:
        return None
    columns = [one for one in described["columns"] if one["field_name"] in names]
    return {b"pandas": json.dumps({**described, "columns": columns, "index_columns": []}).encode()}


def _packed(schema: Any) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _unpacked(text: str) -> Any:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
