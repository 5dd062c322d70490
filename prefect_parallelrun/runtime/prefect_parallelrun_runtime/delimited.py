"""Delimited text (CSV and its kin): bytes to a DataFrame with the dataset's column types."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import text_files, typed_tables
from prefect_parallelrun_runtime.load_error import LoadError, Unfit, bad_code, bad_value
from prefect_parallelrun_runtime.quotes import QuoteState, RowEnds, inside_at, toggles
from prefect_parallelrun_runtime.typed_tables import Columns

if TYPE_CHECKING:
    import pandas as pd

NULLS = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
]  # fmt: skip
"""What means a missing value, in a column of any type: the list of pandas."""
TRUE = ["True", "TRUE", "true"]
FALSE = ["False", "FALSE", "false"]
_HEXADECIMAL = r"^\s*0[xX]"
_CODE = _HEXADECIMAL + r"|^\s*0[0-9]+\s*$"
_MAX_BLOCK = 1 << 30
_PIECE = 1 << 16

_head_of: tuple[str, Any, text_files.Head] = ("", None, text_files.Head(None, 0))
"""Path, settings and head of the file read last: the ranges of a file mostly come one after another."""


def load(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one mini-batch.

    Raises:
        LoadError: the header is another than the dataset's.
        Unfit: a row does not fit; its number is that in the file.
    """
    path, columns = work.get("local") or work["path"], reader["columns"]
    if "start" in work:
        head = _head(path, reader)
        before, data = _range(path, work, reader, head)
        try:
            names = _names(work["path"], head.names, reader)
            table = _fitted(text_files.as_utf8(data, reader["encoding"]), names, reader)
        except Unfit as unfit:
            if unfit.row is not None and "local" not in work:
                unfit.row += text_files.rows_before(path, reader, before, head.start)
            raise
    else:
        header = int(reader["header"])
        if "rows" in work:
            data = text_files.first_rows(path, reader, work["rows"] + header)
        else:
            data = text_files.whole(path, reader["encoding"])
        names = [name for name, _ in columns]
        if header:
            found = text_files.first_row(data, text_files.row_separator(reader), complete=True)
            start, end = found or (0, len(data))
            values = text_files.split_values(data[start:end].decode(), reader["separator"])
            names = _names(work["path"], values if found else None, reader)
            data = data[end:]
        table = _fitted(data, names, reader)
    objects = [name for name, kind in columns if kind == typed_tables.BOOL_OR_NULL]
    return typed_tables.to_frame(table, objects)


def _head(path: str, reader: dict[str, Any]) -> text_files.Head:
    global _head_of
    last = _head_of
    if last[0] != path or last[1] is not reader:
        last = (path, reader, text_files.read_head(path, reader))
        _head_of = last
    return last[2]


def _range(
    path: str, work: dict[str, Any], reader: dict[str, Any], head: text_files.Head
) -> tuple[int, bytes]:
    start, end = work["start"], work["end"]
    if reader["multi_line"]:
        # Only the planner, which has seen all quotes before, can say where rows begin.
        start = max(start, head.start)
        return start, text_files.exact_range(path, start, max(start, end))
    return text_files.rows_of_range(path, start, end, head.start)


def _names(path: str, header: list[str] | None, reader: dict[str, Any]) -> list[str]:
    expected = [name for name, _ in reader["columns"]]
    if not reader["header"] or header is None:
        return expected
    names = text_files.column_names(header)
    if sorted(names) != sorted(expected):
        raise LoadError(f"{path}: {typed_tables.other_columns(names, expected)}")
    return names


def _fitted(data: bytes, names: list[str], reader: dict[str, Any]) -> Any:
    columns: Columns = reader["columns"]
    order = [name for name, _ in columns]
    if not data.strip(b"\r\n"):
        return typed_tables.schema(columns).empty_table()
    separator, multi_line = reader["separator"], reader["multi_line"]
    if b'"' in data:
        _check_quotes(data, ord(separator), multi_line)
    import pyarrow as pa

    schema = typed_tables.schema(columns)
    types = {field.name: field.type for field in schema}

    def read(part: bytes = data, only: dict[str, Any] = types) -> Any:
        return parse(part, separator, names, only, multi_line=multi_line, digits=reader["digits"])

    try:
        table = read()
    except pa.ArrowInvalid as error:
        raise _explained(error, data, read, names, reader) from None
    _check_spelling(data, read, reader)
    if names != order:
        table = table.select(order)
    typed_tables.check_nulls(table, columns)
    return table


def parse(
    data: bytes,
    separator: str,
    names: list[str],
    types: dict[str, Any] | None,
    *,
    multi_line: bool,
    sample: bool = False,
    digits: bool = False,
) -> Any:
    """Return the Arrow table of the rows in `data`, UTF-8.

    Args:
        types: Arrow type of each column to read; None: all of them, and Arrow finds the types.
        sample: Whether to leave out rows with another number of values.
        digits: Whether 1 and 0 are truth values, in columns of such.
    """
    import pyarrow as pa
    from pyarrow import csv

    return csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(
            use_threads=False, column_names=names, block_size=min(len(data) + 1, _MAX_BLOCK)
        ),
        csv.ParseOptions(
            delimiter=separator,
            # Looking for them takes half as long again.
            newlines_in_values=multi_line and b'"' in data,
            invalid_row_handler=(lambda row: "skip") if sample else None,
        ),
        csv.ConvertOptions(
            column_types=types,
            include_columns=None if types is None or len(types) == len(names) else list(types),
            null_values=NULLS,
            true_values=[*TRUE, "1"] if digits else TRUE,
            false_values=[*FALSE, "0"] if digits else FALSE,
            strings_can_be_null=True,
        ),
    )


def may_hold_codes(data: bytes, separator: str) -> bool:
    """Say whether a value of the rows may be such as `first_code` looks for; quick."""
    import numpy as np

    # Line ends around it spare a look at where it begins and ends.
    text = b"\n%b\n" % data
    before = [ord(separator), 0x0A, *(b'"' if b'"' in text else b"")]
    blanks = [blank for blank in b" \t" if blank in text]
    after = [*before, *blanks, 0x0D]
    array = np.frombuffer(text, np.uint8)
    # In pieces that stay in the processor's cache.
    for start in range(0, len(array) - 2, _PIECE):
        piece = array[start : start + _PIECE + 2]
        edge = piece[:-2] == before[0]
        for mark in before[1:]:
            edge |= piece[:-2] == mark
        for blank in blanks:
            if blank not in before and (edge & (piece[1:-1] == blank)).any():
                before.append(blank)  # values may begin with it
                edge |= piece[:-2] == blank
        edge &= piece[1:-1] == 0x30
        edge &= piece[2:] != 0x2E  # 0.5 and its like are many
        at = np.flatnonzero(edge) + start + 2
        if ((array[at] | 0x20) == 0x78).any():
            return True
        at = at[(array[at] - 0x30) < 10]
        while len(at):
            at += 1
            if np.isin(array[at], after).any():
                return True
            at = at[(array[at] - 0x30) < 10]
    return False


def first_code(text: Any, pattern: str = _CODE) -> int | None:
    """Return the row of the first text, in an Arrow column of such, that is written as `007` or `0x1F`.

    These are mostly identifiers, which a number is not: it has lost the zeros, and only Arrow takes
    `0x1F` for one.
    """
    import pyarrow.compute as pc

    row: int = pc.index(pc.match_substring_regex(text, pattern), True).as_py()
    return None if row < 0 else row


def _check_spelling(data: bytes, read: Callable[..., Any], reader: dict[str, Any]) -> None:
    """Refuse the first code in a column of numbers; where the user said that it is one, zeros are fine."""
    found: list[str] = reader["numbers"]
    given = [name for name, kind in reader["columns"] if kind == "int64" and name not in found]
    if not (found or given) or not may_hold_codes(data, reader["separator"]):
        return
    import pyarrow as pa

    texts = read(only=dict.fromkeys([*found, *given], pa.string()))
    patterns = dict.fromkeys(found, _CODE) | dict.fromkeys(given, _HEXADECIMAL)
    rows = [
        (row, name)
        for name, pattern in patterns.items()
        if (row := first_code(texts.column(name), pattern)) is not None
    ]
    if rows:
        row, name = min(rows)
        raise Unfit(
            row,
            bad_code(name, texts.column(name)[row].as_py(), dict(reader["columns"])[name]),
        )


def _check_quotes(data: bytes, separator: int, multi_line: bool) -> None:
    """Refuse a quoted value that does not end where it must, before it swallows other rows."""
    import numpy as np

    positions, state = toggles(data, separator, QuoteState())
    if not multi_line:
        newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x0A)
        bad = newlines[inside_at(newlines, positions, QuoteState())]
        if len(bad):
            row = len(RowEnds(None).find(data[: int(bad[0]) + 1])) - 1
            raise Unfit(
                row,
                "a quoted value goes on over the end of its line; create the dataset with support_multi_line=True",
            )
    if state.inside:
        row = len(RowEnds(separator).find(data[: int(positions[-1])]))
        raise Unfit(row, "a quoted value is not closed")


def _explained(
    error: Exception,
    data: bytes,
    read: Callable[..., Any],
    names: list[str],
    reader: dict[str, Any],
) -> Unfit:
    """Find the first row that Arrow refuses, by halving, and what is wrong with it."""
    separator = text_files.row_separator(reader)
    finder = RowEnds(separator)
    ends = finder.find(data).tolist()
    if finder.unfinished:
        ends.append(len(data))
    fits, fails = 0, len(ends)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if _refusal(read, data[: ends[middle - 1]]):
            fails = middle
        else:
            fits = middle
    row = data[ends[fails - 2] if fails > 1 else 0 : ends[fails - 1]]
    return Unfit(fails - 1, _wrong_with(row, read, names, reader) or str(error))


def _refusal(read: Callable[..., Any], part: bytes, *only: dict[str, Any]) -> str | None:
    import pyarrow as pa

    try:
        read(part, *only)
    except pa.ArrowInvalid as error:
        return str(error)
    return None


def _wrong_with(
    row: bytes, read: Callable[..., Any], names: list[str], reader: dict[str, Any]
) -> str | None:
    import pyarrow as pa

    refused = _refusal(read, row, dict.fromkeys(names, pa.binary()))
    if refused:
        got = re.search(r"got (\d+)", refused)
        count = f"{int(got[1]):,}" if got else "another number of"
        values = "value" if count == "1" else "values"
        columns = "column" if len(names) == 1 else "columns"
        return f"it has {count} {values}, and the dataset has {len(names)} {columns}"
    found = read(row, dict.fromkeys(names, pa.binary())).to_pylist()[0]
    for name, kind in reader["columns"]:
        if _refusal(read, row, {name: typed_tables.arrow_types()[kind]}):
            raw = found[name] or b""
            try:
                return bad_value(name, raw.decode(), kind)
            except UnicodeDecodeError:
                return f"column {name!r} holds {raw[:40]!r}, which is not {reader['encoding']}; name the right encoding="
    return None
