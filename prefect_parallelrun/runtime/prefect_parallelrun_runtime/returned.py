"""What `run()` returned, seen as elements, columns and values (rules R10, R13, R221)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_NAMED, _ROW, _VALUE = "a dictionary", "a row", "a value"
_SINGLE = frozenset({str, int, float, bool, type(None)})


class BadReturn(Exception):
    """`run()` returned something that has no rows, or none that the output can hold."""


def is_table(result: Any) -> bool:
    """Return whether it is a DataFrame or an Arrow table."""
    # A table can only be one of a library that the script has imported: so nothing is imported here
    # to find out, and a script without pandas pays nothing for it.
    pandas, arrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(result, pandas.DataFrame):
        return True
    return arrow is not None and isinstance(result, (arrow.Table, arrow.RecordBatch))


def is_series(result: Any) -> bool:
    """Return whether it is a pandas Series."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(result, pandas.Series)


def is_array(result: Any) -> bool:
    """Return whether it is a Series, or an array of numpy that has elements."""
    numpy = sys.modules.get("numpy")
    if is_series(result):
        return True
    return numpy is not None and isinstance(result, numpy.ndarray) and result.ndim > 0


def kind(value: Any) -> str:
    """Return its type as a sentence names it: `None`, `a str`, `an int`."""
    if value is None:
        return "None"
    name = type(value).__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """Return a value for an error, with its type."""
    return f"{value!r:.80} ({kind(value)})"


def is_missing(value: Any) -> bool:
    """Return whether it stands for no value: None, NaN, NaT, NA."""
    if value is None:
        return True
    unequal = value != value
    if unequal is True or unequal is False:
        return unequal
    # What numpy and pandas answer is no bool of Python's; an array is a value, whatever is in it.
    is_scalar = getattr(unequal, "shape", None) == ()
    return bool(unequal) if is_scalar else type(value).__name__ == "NAType"


@contextmanager
def whole_arrays() -> Iterator[None]:
    """Let `str(array)` be all of an array, in one line for each of its rows."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        yield
        return
    # Else an array with many elements is cut into lines, and one with very many loses its middle.
    with numpy.printoptions(linewidth=sys.maxsize, threshold=sys.maxsize):
        yield


def series_table(series: Any) -> Any:
    """Return a Series as a DataFrame of one column, with the Series' name if it has one."""
    return series.to_frame("Column1" if series.name is None else series.name)


def unnamed(count: int) -> list[str]:
    """Return names for columns that have none."""
    return [f"Column{number}" for number in range(1, count + 1)]


def distinct(labels: Iterable[Any]) -> list[str]:
    """Return the labels of columns as texts.

    Raises:
        BadReturn: two are the same.
    """
    names = list(map(str, labels))
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadReturn(
            f"run() returned two columns with the name {twice!r}: give each column a name of its own"
        )
    return names


def rows_of(elements: Any) -> tuple[list[str], list[Sequence[Any]]]:
    """Return the names of the columns, and one row of values per element; none where there is none.

    Dictionaries (and named tuples, and Series) have names, what one lacks is None; lists, tuples and
    arrays are rows of `Column1`, `Column2`, …; any other value is a row of `Column1`.

    Raises:
        BadReturn: the elements are not all of one kind, or not all equally long.
    """
    fields = getattr(getattr(elements, "dtype", None), "names", None)
    if fields is not None:  # a structured array
        return distinct(fields), [tuple(element) for element in elements]
    types = set(map(type, elements)) if isinstance(elements, (list, tuple)) else set()
    if types and types <= _SINGLE:
        return unnamed(1), list(zip(elements, strict=True))
    if types == {dict}:
        return _by_key(elements)
    how, rows = None, []
    for place, element in enumerate(elements):
        is_kind, row = _row(element, place)
        if how is None:
            how = is_kind
        elif is_kind != how:
            raise BadReturn(
                f"run() returned {_said(how)}, but element {place} is {kind(element)}: return all "
                "elements in one form, dictionaries with the same keys best of all"
            )
        rows.append(row)
    if how == _NAMED:
        return _by_key(rows)
    if how is None:
        return [], []
    width = len(rows[0])
    for place, row in enumerate(rows):
        if len(row) != width:
            raise BadReturn(
                f"run() returned rows of {width} values, but element {place} has {len(row)}: all "
                "rows need as many values as the first"
            )
    return unnamed(width), rows


def _said(how: str) -> str:
    return {
        _NAMED: "elements with names (dictionaries)",
        _ROW: "rows (lists, tuples or arrays)",
        _VALUE: "single values",
    }[how]


def _row(element: Any, place: int) -> tuple[str, Any]:
    """Return which kind of element it is, and its values."""
    if isinstance(element, Mapping):
        return _NAMED, element
    if isinstance(element, (list, tuple)):
        fields = getattr(element, "_fields", None)
        return (
            (_ROW, element) if fields is None else (_NAMED, dict(zip(fields, element, strict=True)))
        )
    if is_series(element):
        return _NAMED, element.to_dict()
    if is_table(element) or (is_array(element) and element.ndim > 1):
        raise BadReturn(
            f"element {place} of what run() returned is {kind(element)}, a table in itself: return "
            "one table of all rows (pandas.concat, numpy.concatenate)"
        )
    return (_ROW, element) if is_array(element) else (_VALUE, (element,))


def _by_key(rows: Sequence[Any]) -> tuple[list[str], list[Sequence[Any]]]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return distinct(keys), [tuple(map(row.get, keys)) for row in rows]
