"""Why the data of a mini-batch cannot be had."""

from __future__ import annotations

import math
import re

_ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)$")
_NANOSECOND_YEARS = range(1678, 2262)


class LoadError(Exception):
    """The data of a mini-batch cannot be read; the message names the file, and row and column where known."""


class Unfit(Exception):
    """A row does not fit the dataset; the caller knows the file and turns this into a `LoadError`.

    Attributes:
        row: Place of the row among those that were given, from 0; None where it is not known.
    """

    def __init__(self, row: int | None, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        self.reason = reason


def bad_value(column: str, value: object, kind: str) -> str:
    """Return the reason for a value that does not fit its column's type, and how to mend it."""
    shown = "no value" if value is None else f"{value!r:.80}"
    return (
        f"column {column!r} is {kind}, and {shown} does not fit; if it should, create the dataset with "
        f"column_types={{{column!r}: {_better(value, kind)!r}}}"
    )


def bad_code(column: str, value: str, kind: str) -> str:
    """Return the reason for a value such as `007` or `0x1F`, of which a number would keep only a part."""
    if value.strip()[1:2] in ("x", "X"):
        return bad_value(column, value, kind)
    return (
        f"column {column!r} is {kind}, and {value!r:.80} would lose its leading zeros; create the dataset "
        f"with column_types={{{column!r}: 'string'}}, or {kind!r} if they mean nothing"
    )


def _better(value: object, kind: str) -> str:
    """Return the narrowest type that takes what `kind` takes, and the value."""
    if value is None and kind in ("int64", "bool"):
        # What the same column would be, had its type been settled with a gap in sight.
        return "float64" if kind == "int64" else "boolean"
    if kind == "int64" and (number := _number(value)) is not None:
        # A whole number of this size is mostly an identifier, of which a float loses the end.
        return "string" if 2**63 <= abs(number) < math.inf else "float64"
    if kind.startswith("datetime64[ns") and isinstance(value, str):
        year = re.match(r"(\d{4})-\d\d-\d\d", value)
        zoned = len(value) > 10 and bool(_ZONE.search(value[10:]))
        if year and int(year[1]) not in _NANOSECOND_YEARS and zoned == kind.endswith("UTC]"):
            return kind.replace("[ns", "[us")
    return "string"


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None
