"""What `run()` returned becomes rows, as bytes (rules R10, R11, R13, R103)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import AppendRow


class BadReturn(Exception):
    """`run()` returned something that has no rows."""


class Encoded(NamedTuple):
    """The rows of one mini-batch."""

    rows: int
    """Elements that `run()` returned."""
    data: bytes
    """One line each; empty with `summary_only`."""
    columns: str | None = None
    """The header line of a DataFrame, where it is wanted."""


def encode(result: Any, output_action: str, append_row: AppendRow) -> Encoded:
    """Count the elements of `result` and, for `append_row`, turn each into one line.

    Raises:
        BadReturn: it is neither a DataFrame nor an array.
    """
    if isinstance(result, (list, tuple)):
        return Encoded(len(result), _lines(result) if output_action == "append_row" else b"")
    if not _is_table(result) and not _is_array(result):
        raise BadReturn(
            f"run() returned {_kind(result)}; it must return a pandas DataFrame or an array "
            "(list, tuple, numpy.ndarray, pandas.Series, Arrow table) with one element per item"
        )
    if output_action != "append_row":
        return Encoded(len(result), b"")
    if _is_table(result):
        return _table_lines(result, append_row)
    return Encoded(len(result), _lines(result))


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
    # Else an array with many elements is cut into lines, and one with very many loses its middle.
    with numpy.printoptions(linewidth=sys.maxsize, threshold=sys.maxsize):
        return [
            str(element).replace("\n", " ") if isinstance(element, array) else str(element)
            for element in elements
        ]


def _is_table(result: Any) -> bool:
    # A table can only be one of a library that the script has imported: so nothing is imported here
    # to find out, and a script without pandas pays nothing for it.
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(result, pandas.DataFrame):
        return True
    return arrow is not None and isinstance(result, (arrow.Table, arrow.RecordBatch))


def _is_array(result: Any) -> bool:
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")
    if pandas is not None and isinstance(result, pandas.Series):
        return True
    return numpy is not None and isinstance(result, numpy.ndarray) and result.ndim > 0


def _table_lines(table: Any, append_row: AppendRow) -> Encoded:
    if hasattr(table, "to_pandas"):
        table = table.to_pandas()  # Arrow's
    keywords: dict[str, Any] = {"sep": " ", "index": False, **append_row["to_csv"]}
    # A header belongs at the top of the output, not above each mini-batch: it travels beside the rows.
    header = keywords.pop("header", False) or append_row["header"]
    data = table.to_csv(None, header=False, **keywords)
    columns = table.iloc[:0].to_csv(None, header=header, **keywords) if header else None
    return Encoded(len(table), data.encode("utf-8", "surrogateescape"), columns)


def _kind(result: Any) -> str:
    if result is None:
        return "None"
    name = type(result).__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
