"""What a database returns, as columns of Arrow: kinds of values, and the types that hold them all.

Kinds are those of `column_types` and `typed_tables`, and two that no text can hold: bytes and spans of time.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets.column_types import EXACT_FLOATS, LONG, NO_VALUE, Evidence
from prefect_parallelrun_runtime import row_groups, typed_tables
from prefect_parallelrun_runtime.load_error import Unfit, bad_value

BYTES = "bytes"
SPAN = "timedelta64[us]"

_KINDS: dict[type, str] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    Decimal: "float64",
    str: "string",
    datetime.datetime: "datetime64[ns]",
    datetime.date: "datetime64[ns]",
    datetime.timedelta: SPAN,
    bytes: BYTES,
    bytearray: BYTES,
    memoryview: BYTES,
    list: typed_tables.OBJECT,
    tuple: typed_tables.OBJECT,
    dict: typed_tables.OBJECT,
}
"""By the class of a value; one that is not here is kept as text."""
_MISFITS = (ValueError, TypeError, ArithmeticError)
"""What is raised of a value that cannot be converted; Arrow's own errors are among them."""
_INT64 = range(-(1 << 63), 1 << 63)
_NANOSECONDS = range(1678, 2262)
"""Years that nanoseconds since 1970 reach, whole."""


def evidence_of(values: Sequence[Any]) -> Evidence:
    """Return what values show of the column that they are from."""
    classes = set(map(type, values))
    gaps = type(None) in classes
    found = Evidence(NO_VALUE, gaps)
    for one in classes - {type(None)}:
        found = found.joined(Evidence(_kind(one, values), gaps))
    return found


def _kind(one: type, values: Sequence[Any]) -> str:
    kind = _KINDS.get(one) or next(
        (known for base, known in _KINDS.items() if issubclass(one, base)), "string"
    )
    if kind == "int64":
        some: list[Any] = [value for value in values if type(value) is one]
        low, high = min(some), max(some)
        if low not in _INT64 or high not in _INT64:
            return "string"
        return LONG if max(-low, high) > EXACT_FLOATS else kind
    if kind.startswith("datetime64"):
        some = [value for value in values if type(value) is one]
        aware = {getattr(value, "tzinfo", None) is not None for value in some}
        if len(aware) > 1:
            return "string"
        unit = "ns" if all(value.year in _NANOSECONDS for value in some) else "us"
        return f"datetime64[{unit}, UTC]" if aware == {True} else f"datetime64[{unit}]"
    return kind


def field_of(name: str, kind: str) -> Any:
    """Return the Arrow field of a column of a kind."""
    import pyarrow as pa

    if kind == typed_tables.OBJECT:
        return pa.field(name, pa.string(), metadata={row_groups.JSON: b""})
    own = {BYTES: pa.binary(), SPAN: pa.duration("us"), LONG: pa.int64(), NO_VALUE: pa.null()}
    return pa.field(name, own.get(kind) or typed_tables.arrow_types()[kind])


def array_of(name: str, values: Sequence[Any], kind: str, *, gaps_fit: bool = False) -> Any:
    """Return values as an Arrow array of a kind.

    Args:
        gaps_fit: whether a value may be missing where the kind has none for that.

    Raises:
        Unfit: a value does not fit; its row is the place among `values`.
    """
    import pyarrow as pa

    wanted = field_of(name, kind).type
    array = _as_they_are(values, kind, wanted)
    if array is None:
        try:
            array = pa.array([_converted(one, kind) for one in values], wanted)
        except _MISFITS:
            raise _first_unfit(name, values, kind, wanted) from None
    if array.null_count and not gaps_fit and kind in typed_tables.WITHOUT_NULLS:
        row = next(row for row, value in enumerate(values) if value is None)
        raise Unfit(row, bad_value(name, None, kind))
    return array


def _first_unfit(name: str, values: Sequence[Any], kind: str, wanted: Any) -> Unfit:
    import pyarrow as pa

    for row, value in enumerate(values):
        try:
            pa.array([_converted(value, kind)], wanted)
        except _MISFITS:
            return Unfit(row, bad_value(name, value, kind))
    return Unfit(None, f"column {name!r} cannot be held as {kind}")


_DIRECT: dict[str, frozenset[type]] = {
    "int64": frozenset({int, type(None)}),
    LONG: frozenset({int, type(None)}),
    "float64": frozenset({int, float, type(None)}),
    "bool": frozenset({bool, type(None)}),
    typed_tables.BOOL_OR_NULL: frozenset({bool, type(None)}),
    "string": frozenset({str, type(None)}),
    BYTES: frozenset({bytes, type(None)}),
    SPAN: frozenset({datetime.timedelta, type(None)}),
    NO_VALUE: frozenset({type(None)}),
}
"""Classes that Arrow takes as they are."""


def _as_they_are(values: Sequence[Any], kind: str, wanted: Any) -> Any:
    """Return the array of values that need no conversion; None where some do."""
    import pyarrow as pa

    if set(map(type, values)) <= _DIRECT.get(kind, frozenset()):
        try:
            return pa.array(values, wanted)
        except _MISFITS:
            return None
    return None


def _converted(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind.startswith("datetime64"):
        return _as_time(value, aware=kind.endswith("UTC]"))
    return _CONVERSIONS[kind](value)


def _as_time(value: Any, *, aware: bool) -> datetime.datetime:
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime.datetime) or (value.tzinfo is not None) != aware:
        raise ValueError
    return value


def _as_whole(value: Any) -> int:
    whole = int(value)
    if not isinstance(value, str) and whole != value:
        raise ValueError
    return whole


def _as_float(value: Any) -> float:
    number = float(value)
    if isinstance(value, int) and number != value:
        raise ValueError
    return number


_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def _as_truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    try:
        return _TRUTHS[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple | dict):
        return _as_json(value)
    return str(value)


def _as_json(value: Any) -> str:
    return json.dumps(value, default=_in_json, ensure_ascii=False)


def _in_json(value: Any) -> float | str:
    return float(value) if isinstance(value, Decimal) else _as_text(value)


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


def _as_span(value: Any) -> datetime.timedelta:
    if not isinstance(value, datetime.timedelta):
        raise TypeError
    return value


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {
    "int64": _as_whole,
    LONG: _as_whole,
    "float64": _as_float,
    "bool": _as_truth,
    typed_tables.BOOL_OR_NULL: _as_truth,
    "string": _as_text,
    typed_tables.OBJECT: _as_json,
    BYTES: _as_bytes,
    SPAN: _as_span,
}
