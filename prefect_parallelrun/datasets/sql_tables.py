"""Queries as tables: what is asked of the database while a step is planned, and by each mini-batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.datasets import sql_connection, sql_rows
from prefect_parallelrun.datasets.sql_ranges import condition
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import row_groups
from prefect_parallelrun_runtime.load_error import LoadError, Unfit

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import ColumnElement, Connection, Select, Subquery, TextClause

_SHOWN = 80
"""Characters of a query in logs and errors."""
_COMMENT = re.compile(r"\s+|--[^\n]*\n?|/\*.*?\*/|\(", re.DOTALL)
_PART = re.compile(
    r"(?P<blank>\s+|--[^\n]*|/\*.*?\*/)"
    r"|[eE]'(?:[^'\\]|\\.)*'|'[^']*'|\"[^\"]*\"|`[^`]*`|\$((?:[A-Za-z_]\w*)?)\$.*?\$\2\$"
    r"|\w+|.",
    re.DOTALL,
)
"""A blank or comment, a quoted text or name, a word, or a single character."""
_TABLE = re.compile(r"[\w.\"`\[\]$]+")


def checked_query(query: object) -> str:
    """Return a query without what may follow its end.

    Raises:
        ConfigError: it does not begin as a query does.
    """
    if not isinstance(query, str) or not query.strip():
        raise errors.refuse("query", query, "give one SELECT, or WITH … SELECT, as text")
    text = _without_end(query.strip())
    start = 0
    while found := _COMMENT.match(text, start):
        start = found.end()
    first = re.match(r"\w*", text[start:])
    if first is None or first[0].upper() not in ("SELECT", "WITH", "VALUES"):
        table = _TABLE.fullmatch(text)
        hint = f"to read a table, give 'SELECT * FROM {text}'" if table else "give one SELECT"
        raise errors.refuse("query", query, hint)
    return text


def _without_end(query: str) -> str:
    """Return a query without a semicolon that nothing but comments follows."""
    end: int | None = None
    for part in _PART.finditer(query):
        if part[0] == ";":
            end = part.start() if end is None else end
        elif not part["blank"]:
            end = None
    return query[:end].rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlTable:
    """A query and where it is sent; it shows no secret."""

    storage: Storage
    """Of the protocol `sql`."""
    place: str
    """The database, as people may see it."""
    query: str
    partition_column: str | None
    column_types: Mapping[str, str]

    @property
    def label(self) -> str:
        """The database and the beginning of the query, for logs and errors."""
        words = " ".join(self.query.split())
        return f"{self.place}: {words[:_SHOWN]}{'…' if len(words) > _SHOWN else ''}"

    def url(self) -> str:
        """Return the URL of the database, its password included.

        Raises:
            ConfigError: see `sql_connection.url_of`.
        """
        return sql_connection.url_of(self.storage, self.place)

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Give a connection that reads only.

        Raises:
            ConfigError: a credentials block is not there.
            DatasetError: the database does not answer, or refuses what is asked of it meanwhile.
        """
        with sql_connection.connected(self.url(), self.label) as connection:
            yield connection

    def check(self, connection: Connection) -> list[str]:
        """Return the names of the columns; no row is read.

        Raises:
            DatasetError: the database refuses the query, or the dataset names columns it has not.
        """
        from sqlalchemy import literal_column, select

        statement: Select[Any] = (
            select(literal_column("*")).select_from(subquery(self.query)).limit(0)
        )
        try:
            with connection.execute(statement) as result:
                names = sql_rows.column_names(result)
        except LoadError as error:
            raise DatasetError(f"{self.label}: {error}") from None
        missing = [name for name in self.column_types if name not in names]
        if missing:
            raise DatasetError(
                f"{self.label}: column_types names {missing[:10]!r}, but the columns are {names!r}"
            )
        if self.partition_column not in (None, *names):
            raise DatasetError(
                f"{self.label}: partition_column={self.partition_column!r}, but the columns are {names!r}"
            )
        return names

    def reader(self, columns: Sequence[Sequence[str]] | None) -> dict[str, Any]:
        """Return how the rows are fetched and then read; JSON, see `write_rows`.

        Args:
            columns: [name, type] of each; None where the rows of a mini-batch tell.
        """
        objects = [name for name, kind in columns or () if kind == "bool_or_null"]
        return {
            "format": "parquet",
            "schema": None,
            "objects": objects,
            "full": [],
            "columns": columns,
            "column_types": dict(self.column_types),
        }

    def read(self, limit: int | None) -> pd.DataFrame:
        """Return all rows, or the first.

        Raises:
            DatasetError: see `fetched`.
        """
        with self.fetched(limit) as path:
            return row_groups.load({"path": str(path)}, self.reader(None))

    @contextmanager
    def fetched(self, limit: int | None) -> Iterator[Path]:
        """Give a Parquet file of all rows, or the first; it is removed at the end.

        Raises:
            DatasetError: see `write_rows`.
        """
        asked = {} if limit is None else {"limit": limit}
        work = {"path": self.label, "sql": asked}
        with TemporaryDirectory(prefix="parallelrun-sql-") as folder:
            target = Path(folder, "rows.parquet")
            try:
                write_rows(self.url(), self.query, self.reader(None), work, target)
            except LoadError as error:
                raise DatasetError(str(error)) from None
            yield target


def write_rows(
    url: str,
    query: str,
    reader: Mapping[str, Any],
    work: Mapping[str, Any],
    target: Path,
    limit_s: float | None = None,
) -> None:
    """Write the rows of one mini-batch into a Parquet file, in memory that does not grow with them.

    Args:
        url: SQLAlchemy's, password included.
        reader: `SqlTable.reader`.
        work: the mini-batch's.
        target: is not there yet.
        limit_s: see `sql_connection.connected`.

    Raises:
        ConfigError: SQLAlchemy or a driver is missing here.
        DatabaseError: the database does not answer, or refuses the query.
        LoadError: the rows are not as they should be; the text names query, row and column.
    """
    place, asked = work["path"], work["sql"]
    with sql_connection.connected(url, place, limit_s) as connection:
        try:
            with connection.execute(_statement(query, asked)) as result:
                limit = asked.get("limit")
                if reader["columns"] is None:
                    sql_rows.write_typing(result, reader["column_types"], target, limit)
                else:
                    sql_rows.write_typed(result, reader["columns"], target, limit)
        except Unfit as unfit:
            row = "" if unfit.row is None else f", row {unfit.row + 1:,}"
            raise LoadError(f"{place}{row}: {unfit.reason}") from None
        except LoadError as error:
            raise LoadError(f"{place}: {error}") from None


def _statement(query: str, asked: Mapping[str, Any]) -> Any:
    from sqlalchemy import column, literal_column, select

    if "column" not in asked:
        return _literal(query)
    # As it is, so that rows keep the order that it asks for.
    by: ColumnElement[Any] = column(asked["column"])
    rows = subquery(query)
    ranged: Select[Any] = select(literal_column("*")).select_from(rows).where(condition(by, asked))
    return ranged.order_by(by)


def subquery(query: str) -> Subquery:
    """Return a query as what another one selects from."""
    # The newline ends a comment that the query may end with.
    return _literal(f"{query}\n").columns().subquery("parallelrun_query")


def _literal(query: str) -> TextClause:
    from sqlalchemy import text

    # A colon before a word would be a parameter.
    return text(query.replace(":", "\\:"))
