"""Ranges of a column that a query is cut by: complete and disjoint, whatever the rows hold."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

Kind = Literal["whole", "float", "date", "time", "time, UTC"]

_EPOCH = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """So many ranges of equal width between two values; JSON by `dataclasses.asdict`.

    The first has no lower and the last no upper end: rows that came since the values were looked at,
    infinities and NaN are in one of them as well.
    """

    kind: Kind
    low: float
    """A number; for dates the day (1 is that of the year 1), for times the microseconds since 1970."""
    high: float
    count: int

    @classmethod
    def between(cls, low: Any, high: Any, wanted: int) -> Self | None:
        """Return about `wanted` ranges between two values of a database; None for values of no such kind.

        Args:
            low: finite, as `high` is.
        """
        if isinstance(low, bool) or isinstance(high, bool):
            return None
        if isinstance(low, int) and isinstance(high, int):
            return cls._of("whole", low, high, wanted)
        if isinstance(low, int | float | Decimal) and isinstance(high, int | float | Decimal):
            one, other = float(low), float(high)
            return cls(kind="float", low=one, high=other, count=wanted if one < other else 1)
        if isinstance(low, datetime.datetime) and isinstance(high, datetime.datetime):
            kind: Kind = "time" if low.tzinfo is None else "time, UTC"
            return cls._of(kind, _microseconds(low), _microseconds(high), wanted)
        if isinstance(low, datetime.date) and isinstance(high, datetime.date):
            return cls._of("date", low.toordinal(), high.toordinal(), wanted)
        return None

    @classmethod
    def _of(cls, kind: Kind, low: int, high: int, wanted: int) -> Self:
        return cls(kind=kind, low=low, high=high, count=max(1, min(wanted, high - low + 1)))

    def work(self, place: int, column: str) -> dict[str, Any]:
        """Return what `condition` takes for one of the ranges; JSON."""
        asked: dict[str, Any] = {"column": column, "kind": self.kind}
        if place > 0:
            asked["from"] = self._bound(place)
        if place < self.count - 1:
            asked["to"] = self._bound(place + 1)
        return asked

    def _bound(self, place: int) -> float:
        if self.kind == "float":
            # Not by the width, which may be more than a float can be.
            part = place / self.count
            return self.low * (1 - part) + self.high * part
        low, high = int(self.low), int(self.high)
        return low + (high - low + 1) * place // self.count


def missing_values(column: str) -> dict[str, Any]:
    """Return what `condition` takes for the rows that have no value in a column; JSON."""
    return {"column": column, "missing": True}


def condition(column: ColumnElement[Any], asked: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return which rows are asked for."""
    from sqlalchemy import and_

    if asked.get("missing"):
        return column.is_(None)
    parts = []
    if "from" in asked:
        parts.append(column >= _value(asked["kind"], asked["from"]))
    if "to" in asked:
        parts.append(column < _value(asked["kind"], asked["to"]))
    return and_(*parts) if parts else column.is_not(None)


def described(asked: Mapping[str, Any]) -> str:
    """Return the range in words, for people."""
    column = asked["column"]
    if asked.get("missing"):
        return f"{column} IS NULL"
    ends = {end: _value(asked["kind"], asked[end]) for end in ("from", "to") if end in asked}
    words = {"from": ">=", "to": "<"}
    said = [f"{column} {words[end]} {value}" for end, value in ends.items()]
    return " AND ".join(said) or f"{column} IS NOT NULL"


def _value(kind: Kind, bound: float) -> Any:
    if kind == "whole" or kind == "float":
        return bound
    if kind == "date":
        return datetime.date.fromordinal(int(bound))
    time = _EPOCH + int(bound) * _MICROSECOND
    return time.replace(tzinfo=datetime.UTC) if kind == "time, UTC" else time


def _microseconds(time: datetime.datetime) -> int:
    if time.tzinfo is not None:
        time = time.astimezone(datetime.UTC).replace(tzinfo=None)
    return (time - _EPOCH) // _MICROSECOND
