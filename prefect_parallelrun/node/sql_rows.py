"""The rows of an SQL mini-batch, fetched for a worker process that never sees the password."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_parallelrun.datasets import sql_tables
from prefect_parallelrun.node.sources import Query


def fetch(
    query: Query,
    reader: Mapping[str, Any],
    work: Mapping[str, Any],
    target: Path,
    limit_s: float | None = None,
) -> None:
    """Write the rows of a mini-batch into a Parquet file; a failure leaves none.

    Args:
        reader: of the input, `Plan.readers`.
        work: of the mini-batch.
        target: is not there yet. When its folder is removed, the fetching ends soon.
        limit_s: after so long nobody waits any more; PostgreSQL gives the query up then.

    Raises:
        ConfigError: SQLAlchemy or the driver of the database is missing on this node.
        DatabaseError: the database does not answer, or refuses the query; `passing` says whether
            another try may help.
        LoadError: the rows are not as they should be; the text names query, row and column.
    """
    try:
        sql_tables.write_rows(query.url, query.query, reader, work, target, limit_s)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
