"""Queries, by ranges of a column, or in one mini-batch (R25)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_parallelrun.datasets import sql_ranges
from prefect_parallelrun.datasets.sql_survey import Outline, survey
from prefect_parallelrun.datasets.sql_tables import SqlTable
from prefect_parallelrun.planning.cut import Cut, Piece


def cut_query(table: SqlTable, limit: int | None, size: int, kept: Path) -> Cut:
    """Return the cut of a query into ranges of about `size` bytes; without a column for it, into one.

    Args:
        limit: only so many rows, the first, in one mini-batch; None for all.
        kept: where the ranges are written down. A run that is gone on with has those that it had,
            although the rows may be others by then.

    Raises:
        DatasetError: the database does not answer, refuses the query, or has no such column.
    """
    with table.connected() as connection:
        names = table.check(connection)
        if table.partition_column is None or limit is not None:
            return _one_mini_batch(table, limit)
        asked = [
            table.place,
            table.query,
            table.partition_column,
            names,
            dict(table.column_types),
            size,
        ]
        outline = _kept(kept, asked)
        if outline is None:
            outline = survey(connection, table, names, size)
            _keep(kept, asked, outline)
    return _ranges(table, table.partition_column, outline)


def _kept(path: Path, asked: list[Any]) -> Outline | None:
    """Return what was written down for the same question; None if nothing was, or a crash of the system
    left half of it."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Outline.from_json(kept["outline"]) if kept["asked"] == asked else None


def _keep(path: Path, asked: list[Any], outline: Outline) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({"asked": asked, "outline": outline.as_json()}), "utf-8")
    draft.replace(path)


def _one_mini_batch(table: SqlTable, limit: int | None) -> Cut:
    asked = {} if limit is None else {"limit": limit}
    piece = Piece(None, 0, {"path": table.label, "sql": asked})
    why = "it is a query without partition_column"
    notes = () if limit is not None else (f"{table.label} is one mini-batch: {why}",)
    return Cut(
        pieces=lambda: iter([piece]),
        count=1,
        items=None,
        size=0,
        reader=table.reader(None),
        notes=notes,
    )


def _ranges(table: SqlTable, column: str, outline: Outline) -> Cut:
    ranges, total = outline.ranges, int(outline.rows * outline.row_bytes)
    count = (ranges.count if ranges else 0) + bool(outline.missing)

    def piece(asked: dict[str, Any], size: int) -> Piece:
        place = f"{table.label} [{sql_ranges.described(asked)}]"
        return Piece(None, size, {"path": place, "sql": asked})

    def pieces() -> Iterator[Piece]:
        missing = int(outline.missing * outline.row_bytes)
        for number in range(ranges.count if ranges else 0):
            assert ranges is not None
            yield piece(ranges.work(number, column), (total - missing) // ranges.count)
        if outline.missing:
            yield piece(sql_ranges.missing_values(column), missing)

    return Cut(
        pieces=pieces,
        count=count,
        items=None,
        size=total,
        reader=table.reader(outline.columns),
    )
