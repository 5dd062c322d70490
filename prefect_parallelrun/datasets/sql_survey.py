"""What a query holds, asked of its database: types of all rows, how many, how large, and the ends of a column."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from prefect_parallelrun.datasets import sql_rows, sql_values
from prefect_parallelrun.datasets.column_types import LONG, NO_VALUE, Evidence
from prefect_parallelrun.datasets.sql_ranges import Ranges
from prefect_parallelrun.datasets.sql_tables import SqlTable, subquery
from prefect_parallelrun.errors import DatasetError

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Select, Subquery

_SAMPLE_ROWS = 1_000
_SAMPLE_BYTES = 16 << 20
_COLUMNS_AT_ONCE = 100
"""Databases limit what one statement may ask for: to a thousand expressions and some more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What is known of a query that is cut into ranges; JSON by `as_json`."""

    columns: list[list[str]]
    """[name, type] of each, the same in every mini-batch."""
    rows: int
    row_bytes: float
    """Of a row in memory, on average."""
    ranges: Ranges | None
    """None: no row has a value in the column."""
    missing: int
    """Rows without one."""

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return the outline that `as_json` described."""
        ranges = Ranges(**kept["ranges"]) if kept["ranges"] is not None else None
        return cls(**{**kept, "ranges": ranges})


def survey(connection: Connection, table: SqlTable, names: list[str], size: int) -> Outline:
    """Ask what a query holds: some rows of it, and a pass of the database over all of them, or of a wide
    one several.

    Columns of which those rows have no value are looked at for themselves.

    Args:
        names: of the columns.
        size: bytes of a mini-batch.

    Raises:
        DatasetError: the column that it is to be cut by has values that have no ranges.
        DatabaseError: the database does not answer, or refuses to.
    """
    assert table.partition_column is not None
    asked = _Questions(connection, subquery(table.query), names)
    evidence, row_bytes = asked.sample()
    _check_kind(table, evidence[table.partition_column].kind)
    held = asked.all_rows(evidence)
    late = [name for name in names if held[name].filled and evidence[name].kind == NO_VALUE]
    if late:
        evidence.update(asked.sample_of(late))
        held |= asked.all_rows({name: evidence[name] for name in late})
    for name, known in evidence.items():
        shown = known.joined(sql_values.evidence_of(held[name].telling))
        evidence[name] = Evidence(shown.kind, held[name].filled < held[name].rows)
    _check_kind(table, evidence[table.partition_column].kind)
    by = held[table.partition_column]
    ranges = None
    if by.filled:
        wanted = max(1, -(-int(by.filled * row_bytes) // size))
        low, high = asked.ends_of(table.partition_column, by.telling)
        ranges = Ranges.between(low, high, wanted)
        if ranges is None:
            raise _uncuttable(table, type(low).__name__)
    return Outline(
        columns=[
            [name, table.column_types.get(name) or known.settled()]
            for name, known in evidence.items()
        ],
        rows=by.rows,
        row_bytes=row_bytes,
        ranges=ranges,
        missing=by.rows - by.filled,
    )


def _has_ends(kind: str) -> bool:
    return kind in ("int64", LONG, "float64") or kind.startswith("datetime64")


def _check_kind(table: SqlTable, kind: str) -> None:
    if kind != NO_VALUE and not _has_ends(kind):
        raise _uncuttable(table, kind)


def _uncuttable(table: SqlTable, kind: str) -> DatasetError:
    return DatasetError(
        f"{table.label}: partition_column={table.partition_column!r} cannot be used: its values are "
        f"{kind}, and only numbers, dates and timestamps have ranges"
    )


class _Held(NamedTuple):
    """What a column holds; others, who were asked for at another moment, may be of other rows."""

    rows: int
    filled: int
    """Rows with a value."""
    telling: Sequence[Any]
    """Values that tell its type, or None: the least and the greatest, where the sampled ones have such;
    where columns are loose, some of each type."""


class _Questions:
    """Statements about the rows of a query."""

    def __init__(self, connection: Connection, rows: Subquery, names: list[str]) -> None:
        from sqlalchemy import column

        self._connection, self._rows = connection, rows
        self._columns: dict[str, ColumnElement[Any]] = {name: column(name) for name in names}
        # There a column may hold values of any type, and a few rows tell nothing of the others.
        self._loose = connection.dialect.name == "sqlite"

    def sample(self) -> tuple[dict[str, Evidence], float]:
        """Return what some rows show of each column, and the bytes of one of them in memory."""
        from sqlalchemy import literal_column, select

        statement: Select[Any] = (
            select(literal_column("*")).select_from(self._rows).limit(_SAMPLE_ROWS)
        )
        count = total = 0
        with self._connection.execute(statement) as result:
            evidence = sql_rows.declared(result)
            for _, chunk in sql_rows.chunks(result):
                for name, values in chunk.items():
                    shown = sql_values.evidence_of(values)
                    evidence[name] = evidence[name].joined(shown)
                    total += sql_values.array_of(name, values, shown.kind, gaps_fit=True).nbytes
                count += len(values)
                if total >= _SAMPLE_BYTES:
                    break
        return evidence, total / max(1, count)

    def sample_of(self, names: Iterable[str]) -> dict[str, Evidence]:
        """Return what the values of columns show that are filled in few rows."""
        from sqlalchemy import select

        found = {}
        for name in names:
            column = self._columns[name]
            filled = select(column).select_from(self._rows).where(column.is_not(None))
            values = self._connection.execute(filled.limit(_SAMPLE_ROWS)).scalars().all()
            found[name] = sql_values.evidence_of(values)
        return found

    def all_rows(self, evidence: Mapping[str, Evidence]) -> dict[str, _Held]:
        """Return what columns hold in all rows."""
        from sqlalchemy import func, select

        held = {}
        names = list(evidence)
        for start in range(0, len(names), _COLUMNS_AT_ONCE):
            some = names[start : start + _COLUMNS_AT_ONCE]
            telling = {
                name: self._telling(self._columns[name], evidence[name].kind) for name in some
            }
            wanted: list[ColumnElement[Any]] = [func.count()]
            for name in some:
                wanted += [func.count(self._columns[name]), *telling[name]]
            found = iter(self._connection.execute(select(*wanted).select_from(self._rows)).one())
            rows = next(found)
            for name in some:
                held[name] = _Held(rows, next(found), [next(found) for _ in telling[name]])
        return held

    def _telling(self, column: ColumnElement[Any], kind: str) -> list[ColumnElement[Any]]:
        from sqlalchemy import case, func

        if not self._loose:
            return [func.min(column), func.max(column)] if _has_ends(kind) else []
        found: list[ColumnElement[Any]] = []
        for name in ("integer", "real", "text", "blob"):
            of_that_type = case((func.typeof(column) == name, column))
            found += [func.min(of_that_type), func.max(of_that_type)]
        return found

    def ends_of(self, name: str, telling: Sequence[Any]) -> tuple[Any, Any]:
        """Return the least and the greatest value of a column that has some.

        Infinities and NaN, which all other values are as far from, do not count.
        """
        from sqlalchemy import func, literal_column, select

        some = [value for value in telling if value is not None]
        if all(map(_is_finite, some)):
            return min(some), max(some)
        column = self._columns[name]
        # Databases hold NaN for greater than all others. As SQL has it, the end is of any type of number.
        end = repr(sys.float_info.max)
        finite = column.between(literal_column(f"-{end}"), literal_column(end))
        asked = select(func.min(column), func.max(column)).select_from(self._rows).where(finite)
        low, high = self._connection.execute(asked).one()
        return (0.0, 0.0) if low is None else (low, high)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float | Decimal) or math.isfinite(value)
