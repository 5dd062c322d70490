"""Which Arrow types the columns of a Parquet output have, and what its schema must know of each (R221)."""

from __future__ import annotations

from typing import Any

from prefect_parallelrun_runtime import returned
from prefect_parallelrun_runtime.returned import BadReturn

EXACT = 2**53
"""Whole numbers up to here are the same as floating-point numbers."""
_NS_RANGE = 2**63 // 1000
"""Microseconds that nanoseconds can say."""

EMPTY, WIDE, DTYPE = b"empty", b"wide", b"dtype"
"""What a field's metadata tells: no value is there, so that any type will do; some value would not
survive in the other type that such a column may get (a float, nanoseconds); the dtype of pandas' own."""

_UTC = ("UTC", "Etc/UTC", "Zulu", "Z", "+00:00")
"""Names of one time zone."""
_NULLABLE = ("Int", "UInt", "Float", "boolean", "string")


def canonical(arrow_type: Any, name: str) -> Any:
    """Return the type in which a column of the output is kept.

    One of the many that say the same, so that mini-batches differ in what matters alone.

    Raises:
        BadReturn: it cannot be kept.
    """
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(arrow_type):
        return canonical(arrow_type.value_type, name)
    if _is_text(arrow_type):
        return pa.string()
    if _is_binary(arrow_type):
        return pa.binary()
    if types.is_date(arrow_type):
        return pa.date32()
    if types.is_time(arrow_type):
        return pa.time64(_unit(arrow_type))
    if types.is_timestamp(arrow_type):
        zone = "UTC" if arrow_type.tz in _UTC else arrow_type.tz
        return pa.timestamp(_unit(arrow_type), zone)
    if types.is_duration(arrow_type):
        return pa.duration(_unit(arrow_type))
    if types.is_struct(arrow_type):
        fields = [arrow_type.field(place) for place in range(arrow_type.num_fields)]
        returned.distinct(one.name for one in fields)
        return pa.struct([pa.field(one.name, canonical(one.type, name)) for one in fields])
    if _is_list(arrow_type):
        return pa.list_(canonical(arrow_type.value_type, name))
    plain = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
        types.is_decimal128,
        types.is_decimal256,
    )
    if any(is_such(arrow_type) for is_such in plain):
        return arrow_type
    raise BadReturn(
        f"run() returned column {name!r} as {arrow_type}, which a Parquet output cannot hold: make it "
        "texts, numbers or dates"
    )


def is_wide(column: Any) -> bool:
    """Return whether some value would not survive the step to the type that it may have to take."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types, kind = pa.types, column.type
    if types.is_struct(kind):
        return any(is_wide(one) for one in column.flatten())
    if types.is_list(kind):
        return is_wide(pc.list_flatten(column))
    if types.is_int64(kind) or types.is_uint64(kind):
        limit = EXACT
    elif (types.is_timestamp(kind) or types.is_duration(kind)) and kind.unit == "us":
        limit, column = _NS_RANGE, column.cast(pa.int64())
    else:
        return False
    ends = pc.min_max(column)
    least, most = ends["min"].as_py(), ends["max"].as_py()
    return least is not None and (least < -limit or most > limit)


def pandas_dtype(dtype: Any) -> str:
    """Return the name of a dtype that only pandas has and Arrow can tell it of; else an empty text."""
    name = str(dtype)
    return name if name.startswith(_NULLABLE) and hasattr(dtype, "__from_arrow__") else ""


def _unit(arrow_type: Any) -> str:
    return "ns" if arrow_type.unit == "ns" else "us"


def _is_text(arrow_type: Any) -> bool:
    return str(arrow_type) in ("string", "large_string", "string_view")


def _is_binary(arrow_type: Any) -> bool:
    name = str(arrow_type)
    return name in ("binary", "large_binary", "binary_view") or name.startswith("fixed_size_binary")


def _is_list(arrow_type: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(
        types.is_list(arrow_type)
        or types.is_large_list(arrow_type)
        or types.is_fixed_size_list(arrow_type)
    )
