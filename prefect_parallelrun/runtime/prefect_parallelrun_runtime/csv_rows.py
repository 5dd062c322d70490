"""Rows as CSV: quoted where it must be (RFC 4180), missing values empty, one header for the run (R221)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any, Literal

from prefect_parallelrun_runtime import returned
from prefect_parallelrun_runtime.returned import BadReturn

Quoting = Literal[0, 1, 2, 3]
"""One of the constants of `csv`."""
_WHOLE = frozenset({str, int, bool})
"""Types of which no value stands for a missing one."""


def encode(result: Any) -> tuple[bytes, str | None]:
    """Return the rows, and the header line; None where nothing says which columns there are.

    Raises:
        BadReturn: its elements are no rows of one table.
    """
    if returned.is_series(result):
        result = returned.series_table(result)
    with returned.whole_arrays():
        if returned.is_table(result):
            names, text = _table(result)
        else:
            names, text = _elements(result)
    try:
        # File names that are not UTF-8 come as surrogates, and leave as the bytes that they were.
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        reason = _not_text(names, text)
    else:
        return data, _header(names)
    raise BadReturn(reason)


def _not_text(names: list[str], text: str) -> str:
    """Say which value has surrogates that stand for no bytes of a file name."""
    for element, row in enumerate(csv.reader(io.StringIO(text, newline=""))):
        for name, value in zip(names, row, strict=False):
            try:
                value.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                return (
                    f"run() returned column {name!r} with {value!r:.80} in element {element}, which "
                    f"is no text that can be written ({error.reason}): decode it with errors='replace'"
                )
    return "run() returned a text with lone surrogates, which cannot be written"


def _table(table: Any) -> tuple[list[str], str]:
    if hasattr(table, "to_pandas"):
        # Else whole numbers with gaps become fractions, and a column may become the index.
        names = returned.distinct(table.schema.names)
        frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    else:
        names, frame = returned.distinct(table.columns), table
    if not names:
        return [], ""

    def write(quoting: Quoting) -> str:
        return str(
            frame.to_csv(None, header=False, index=False, lineterminator="\n", quoting=quoting)
        )

    return names, _quoted(write)


def _elements(elements: Any) -> tuple[list[str], str]:
    names, rows = returned.rows_of(elements)
    cells = [[value if type(value) in _WHOLE else _cell(value) for value in row] for row in rows]

    def write(quoting: Quoting) -> str:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n", quoting=quoting).writerows(cells)
        return text.getvalue()

    return names, _quoted(write)


def _cell(value: Any) -> Any:
    return "" if returned.is_missing(value) else value


def _quoted(write: Callable[[Quoting], str]) -> str:
    text = write(csv.QUOTE_MINIMAL)
    # A carriage return ends a row for readers, but Python before 3.13 does not quote for it.
    return write(csv.QUOTE_NONNUMERIC) if "\r" in text else text


def _header(names: list[str]) -> str | None:
    if not names:
        return None
    text = io.StringIO(newline="")
    quoting: Quoting = csv.QUOTE_ALL if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(names)
    # The journal keeps it, and is in UTF-8.
    return text.getvalue().encode("utf-8", "backslashreplace").decode()
