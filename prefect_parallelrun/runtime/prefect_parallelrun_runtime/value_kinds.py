"""Values that Arrow would change unasked, to have one type for a column: they are refused (R221)."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import Any

from prefect_parallelrun_runtime import returned
from prefect_parallelrun_runtime.returned import BadReturn

_TEXT, _BYTES, _DATE = "a text", "bytes", "a date"
_DICTIONARY, _LIST, _TIME = "dictionary", "list", "time"
_ROLES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((dict,), _DICTIONARY),
    ((list, tuple, set, frozenset), _LIST),
    ((str,), _TEXT),
    ((bytes, bytearray, memoryview), _BYTES),
    ((datetime.datetime, datetime.time, datetime.timedelta), _TIME),
    ((datetime.date,), _DATE),
)
"""What is looked at; of all other types Arrow itself refuses what does not go together."""


def refuse_unlike(column: str, values: Sequence[Any]) -> None:
    """Refuse dates among times, times without a zone among those with one, and texts among bytes.

    Also those within lists and dictionaries, of whatever depth; and a value that loses something even
    where it stands alone.

    Raises:
        BadReturn: with the column, both values, their kinds and their elements.
    """
    _refuse(column, values, range(len(values)))


def _refuse(column: str, values: Sequence[Any], elements: Iterable[int]) -> None:
    # By their types, since of most columns no value need be looked at.
    roles = {of_type: _role(of_type) for of_type in set(map(type, values))}
    if set(roles.values()) <= {"", _TEXT}:
        return
    first: tuple[str, int, Any] | None = None
    lists: list[tuple[int, Any]] = []
    members: dict[Any, tuple[list[Any], list[int]]] = {}
    for element, value in zip(elements, values, strict=True):
        role = roles[type(value)]
        if role == _DICTIONARY:
            for key, member in value.items():
                its_values, its_elements = members.setdefault(key, ([], []))
                its_values.append(member)
                its_elements.append(element)
        elif role == _LIST:
            if str(getattr(value, "dtype", "object")) == "object":
                lists.append((element, value))
        elif kind := _kind_of_time(column, value, element) if role == _TIME else role:
            if first is None:
                first = kind, element, value
            elif kind != first[0]:
                raise BadReturn(
                    f"run() returned column {column!r} with {first[0]}, {first[2]!r:.80}, in element "
                    f"{first[1]} and {kind}, {value!r:.80}, in element {element}: Parquet has one "
                    "type for a column, and one of them would be changed; return one kind"
                )
    if lists:
        inner = list(chain.from_iterable(value for _, value in lists))
        _refuse(
            column,
            inner,
            chain.from_iterable(repeat(element, len(value)) for element, value in lists),
        )
    for its_values, its_elements in members.values():
        _refuse(column, its_values, its_elements)


def _role(of_type: type) -> str:
    if of_type.__name__ == "NaTType":  # pandas' missing time is a datetime
        return ""
    for types, role in _ROLES:
        if issubclass(of_type, types):
            return role
    return _LIST if of_type.__name__ in ("ndarray", "Series") else ""


def _kind_of_time(column: str, value: Any, element: int) -> str:
    """Return what one beside it must be too; nothing for a span, or a time of day.

    Raises:
        BadReturn: it would lose something.
    """
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        raise BadReturn(
            f"run() returned column {column!r} with {returned.shown(value)} in element {element}, "
            "of which a list keeps microseconds alone: return a DataFrame, whose columns have "
            "nanoseconds"
        )
    if isinstance(value, datetime.datetime):
        return f"a time with{'out' if value.tzinfo is None else ''} a time zone"
    if isinstance(value, datetime.time) and value.tzinfo is not None:
        raise BadReturn(
            f"run() returned column {column!r} with {returned.shown(value)} in element {element}: "
            "Parquet has no time zone for a time of day; return a text (isoformat())"
        )
    return ""
