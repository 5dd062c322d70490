"""What `run()` returned becomes rows, as bytes (rules R10, R11, R13, R103, R221)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_parallelrun_runtime.returned import (
    BadReturn,
    is_array,
    is_table,
    kind,
    whole_arrays,
)

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import AppendRow


class Encoded(NamedTuple):
    """The rows of one mini-batch."""

    rows: int
    """Elements that `run()` returned."""
    data: bytes
    """In the format of the output; empty with `summary_only`."""
    columns: str | None = None
    """What the output must know of the columns: see `messages.Result`."""


def encode(
    result: Any, output_action: str, append_row: AppendRow, output_format: str = "text"
) -> Encoded:
    """Count the elements of `result` and, for `append_row`, turn each into one row of the format.

    Raises:
        BadReturn: it is neither a DataFrame nor an array, or the format cannot hold it.
    """
    is_list = isinstance(result, (list, tuple))
    if not is_list and not is_table(result) and not is_array(result):
        raise BadReturn(
            f"run() returned {kind(result)}; it must return a pandas DataFrame or an array "
            "(list, tuple, numpy.ndarray, pandas.Series, Arrow table) with one element per item"
        )
    if output_action != "append_row":
        return Encoded(len(result), b"")
    if output_format == "text":
        if is_list or is_array(result):
            return Encoded(len(result), _lines(result))
        return _table_lines(result, append_row)
    data, columns = _of_format(result, output_format)
    if columns is None and output_format != "jsonl" and len(result):
        raise BadReturn(
            f"run() returned rows without any column ({len(result)}), for which {output_format!r} has "
            "no place: give each row a value, such as the name of its item (output_format='jsonl' "
            "keeps empty rows)"
        )
    return Encoded(len(result), data, columns)


def _of_format(result: Any, output_format: str) -> tuple[bytes, str | None]:
    # Imported when the first rows come: the others cost a start nothing.
    if output_format == "csv":
        from prefect_parallelrun_runtime import csv_rows

        return csv_rows.encode(result)
    if output_format == "jsonl":
        from prefect_parallelrun_runtime import json_rows

        return json_rows.encode(result), None
    from prefect_parallelrun_runtime import arrow_rows

    return arrow_rows.encode(result)


def _lines(elements: Iterable[Any]) -> bytes:
    """Return one line per element; only a newline inside a text breaks its line, as in Azure."""
    text = "\n".join([*_texts(elements), ""])
    # File names that are not UTF-8 come as surrogates, and leave as the bytes that they were.
    return text.encode("utf-8", "surrogateescape")


def _texts(elements: Iterable[Any]) -> list[str]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return [str(element) for element in elements]
    array = numpy.ndarray
    with whole_arrays():
        return [
            str(element).replace("\n", " ") if isinstance(element, array) else str(element)
            for element in elements
        ]


def _table_lines(table: Any, append_row: AppendRow) -> Encoded:
    if hasattr(table, "to_pandas"):
        table = table.to_pandas()  # Arrow's
    keywords: dict[str, Any] = {"sep": " ", "index": False, **append_row["to_csv"]}
    # A header belongs at the top of the output, not above each mini-batch: it travels beside the rows.
    header = keywords.pop("header", False) or append_row["header"]
    with whole_arrays():
        data = table.to_csv(None, header=False, **keywords)
    columns = table.iloc[:0].to_csv(None, header=header, **keywords) if header else None
    return Encoded(len(table), data.encode("utf-8", "surrogateescape"), columns)
