"""Why the data of a mini-batch cannot be had."""

from __future__ import annotations


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
    if value is None:
        # What the same column would be, had its type been settled with a gap in sight.
        better = "float64" if kind == "int64" else "string"
        shown = "no value"
    else:
        better = "float64" if kind == "int64" and _is_number(value) else "string"
        shown = f"{value!r:.80}"
    return (
        f"column {column!r} is {kind}, and {shown} does not fit; if it should, create the dataset with "
        f"column_types={{{column!r}: {better!r}}}"
    )


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
