"""The reading side of the journal: what every report, and the output file, are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prefect_parallelrun.models import (
    AttemptError,
    AttemptRecord,
    ErrorGroup,
    NodeRecord,
    Outcome,
    ProcessRecord,
)
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.trouble import explained

Order = Literal["input", "completion"]

_PAGE = 4096
_PLACE_BITS = 31
_PLACE = f"(a.mini_batch << {_PLACE_BITS}) + a.first"  # SQLite has 64 bits
# A page comes as one text of numbers, in one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_SEGMENTS = {
    "input": (
        "SELECT group_concat(mini_batch || ' ' || first || ' ' || offset || ' ' || length) FROM ("
        "SELECT mini_batch, first, offset, length FROM attempts "
        "WHERE final = 1 AND (mini_batch, first) > (?, ?) AND length > 0 "
        "ORDER BY mini_batch, first LIMIT ?)"
    ),
    "completion": (
        "SELECT group_concat(id || ' 0 ' || offset || ' ' || length) FROM ("
        "SELECT id, offset, length FROM attempts "
        "WHERE final = 1 AND (id, 0) > (?, ?) AND length > 0 ORDER BY id LIMIT ?)"
    ),
}
_DONE = (
    "SELECT group_concat(mini_batch) FROM (SELECT DISTINCT mini_batch FROM attempts "
    "WHERE final = 1 AND mini_batch > ? AND outcome = 'succeeded' ORDER BY mini_batch LIMIT ?)"
)
# Losing a node, or being cancelled, is no error of the script, unless the mini-batch failed for it.
_ERROR = (
    "error IS NOT NULL AND id > :resumed_after "
    "AND (final = 1 OR outcome NOT IN ('node_lost', 'cancelled'))"
)
# A mini-batch that was split is settled when its parts are all of it; how much that is stands in the
# attempts of the whole, which were before.
_TOTALS = f"""
WITH split AS (
    SELECT total(items_succeeded) > 0 AS succeeded, max(id) <= :resumed_after AS reused
    FROM attempts AS part WHERE final = 1 AND stop IS NOT NULL GROUP BY mini_batch
    HAVING sum(stop - first) >= (
        SELECT max(items_total) FROM attempts AS whole
        WHERE whole.final = 0 AND whole.stop IS NULL AND whole.mini_batch = part.mini_batch)
)
SELECT attempts,
    mini_batches + (SELECT count(*) FROM split),
    mini_batches_succeeded + (SELECT total(succeeded) FROM split),
    mini_batches_reused + (SELECT total(succeeded AND reused) FROM split),
    items, items_succeeded, items_failed, items_reused, rows, missing_rows, errors, distinct_errors
FROM (
    SELECT total({schema.OWN}) AS attempts,
        total(final AND stop IS NULL) AS mini_batches,
        total(final AND stop IS NULL AND outcome = 'succeeded') AS mini_batches_succeeded,
        total(final AND stop IS NULL AND outcome = 'succeeded' AND id <= :resumed_after)
            AS mini_batches_reused,
        total(final * items_total) AS items, total(final * items_succeeded) AS items_succeeded,
        total(final * items_failed) AS items_failed,
        total(final * items_succeeded * (id <= :resumed_after)) AS items_reused,
        total(final * rows) AS rows,
        total(CASE WHEN final AND outcome = 'succeeded' THEN items_failed END) AS missing_rows,
        total({_ERROR}) AS errors, count(DISTINCT CASE WHEN {_ERROR} THEN error END) AS distinct_errors
    FROM attempts
)
"""
# With min(), SQLite takes the other columns from the row that has the minimum: the first attempt.
_GROUPS = f"""
SELECT e.type, e.location, e.message, e.traceback, g.attempts, g.mini_batch, g.items_sample,
    g.node, g.process, g.log_file
FROM errors AS e JOIN (
    SELECT error, count(*) AS attempts, min(id) AS first, mini_batch, items_sample, node, process,
        log_file
    FROM attempts
    WHERE {_ERROR}
    GROUP BY error
) AS g ON g.error = e.id
ORDER BY g.attempts DESC, g.first LIMIT :limit
"""
# Only the first stack trace of each error is kept; at its end, where a message is, it gets one's own.
_FAILURES = f"""
SELECT a.mini_batch, a.first, a.stop, a.attempt, a.outcome, a.items_total, a.items_failed, a.node,
    a.process, a.log_file, a.error, e.category, e.type, coalesce(a.message, e.message),
    CASE WHEN substr(rtrim(e.traceback, char(10)), -length(e.message)) = e.message
        THEN substr(rtrim(e.traceback, char(10)), 1,
                length(rtrim(e.traceback, char(10))) - length(e.message))
            || coalesce(a.message, e.message)
        ELSE e.traceback END
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error
WHERE {schema.FAILED} AND (a.mini_batch, a.first) > (?, ?)
ORDER BY a.mini_batch, a.first LIMIT ?
"""
_FAILED_MINI_BATCHES = f"""
SELECT DISTINCT mini_batch FROM attempts AS a WHERE {schema.FAILED} AND outcome <> 'succeeded'
    AND NOT EXISTS (SELECT 1 FROM attempts AS b
        WHERE b.final = 1 AND b.mini_batch = a.mini_batch AND b.items_succeeded > 0)
ORDER BY mini_batch LIMIT ?
"""
_ATTEMPTS = """
SELECT a.mini_batch, a.attempt, a.final, a.outcome, a.node, a.process, a.items_total,
    a.items_succeeded, a.items_failed, a.rows, a.started_at, a.elapsed_s, a.cpu_s, a.load_s,
    a.run_s, a.first, a.stop, a.items_sample, a.log_file,
    e.category, e.type, coalesce(a.message, e.message), e.location, e.traceback, e.stage
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error ORDER BY a.id
"""


def place(mini_batch: int, first: int = 0) -> int:
    """Return where the rows of a mini-batch, or of its part from item `first` on, are in input order."""
    return (mini_batch << _PLACE_BITS) + first


class Totals(NamedTuple):
    """Sums over the journal; those of items and mini-batches over what is settled."""

    attempts: int
    """Of this run: what it took over of another was tried there."""
    mini_batches: int
    """One that was split counts once, when all of its items are settled."""
    mini_batches_succeeded: int
    """Of one that was split, at least one item."""
    mini_batches_reused: int
    """Part of those that succeeded: settled before this sitting, or in the run that they are taken over of."""
    items: int
    items_succeeded: int
    items_failed: int
    items_reused: int
    rows: int
    missing_rows: int
    errors: int
    """Attempts of this sitting that ended in an error of the script; see `Journal.error_groups`."""
    distinct_errors: int


class Failure(NamedTuple):
    """Settled items that failed: all of a mini-batch or part, or as many as rows are missing."""

    mini_batch: int
    first: int
    """Of a part, the first item, from 0."""
    stop: int | None
    """Of a part, the item after the last; None: this is of the whole mini-batch."""
    attempt: int
    """The number of the attempt that settled it, and so of attempts."""
    outcome: str
    items_total: int
    items_failed: int
    node: str
    process: str
    log_file: str | None
    error: int | None
    """The same number for every failure of one kind; None where no error is known."""
    category: str | None
    type: str | None
    message: str | None
    traceback: str | None
    """That of the first failure of this kind, with this one's message at its end."""


class Journal:
    """A reading connection to the journal of a run that is going on or over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = schema.open_for_reading(path)

    def __enter__(self) -> Journal:
        """Return the journal itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def totals(self) -> Totals:
        """Return all sums, in one pass."""
        values = {"resumed_after": self._resumed_after()}
        (row,) = self.select(_TOTALS, values)
        return Totals(*map(int, row))

    def taken_over(self) -> int:
        """Return how many items are settled as another run had settled them."""
        query = f"SELECT total(items_total) FROM attempts WHERE final = 1 AND NOT {schema.OWN}"
        ((items,),) = self.select(query)
        return int(items)

    def segments(self, order: Order) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) in bytes of all rows in the partial file; neighbours in one."""
        start = end = 0
        after = (-1, 0)
        while page := self._page(_SEGMENTS[order], *after):
            rows = sorted(tuple(map(int, part.split(" "))) for part in page)
            for _, _, offset, length in rows:
                if offset != end:
                    if end > start:
                        yield start, end - start
                    start = offset
                end = offset + length
            after = rows[-1][0], rows[-1][1]
        if end > start:
            yield start, end - start

    def done(self) -> Iterator[int]:
        """Yield the index of every mini-batch that succeeded, be it in part, ascending."""
        after = -1
        while page := self._page(_DONE, after):
            indices = sorted(map(int, page))
            yield from indices
            after = indices[-1]

    def headers(self) -> list[str]:
        """Return the distinct header lines, that of the first rows in input order first."""
        if not list(self.select("SELECT 1 FROM headers LIMIT 1")):
            return []  # without the look at every attempt
        return [
            line
            for (line,) in self.select(
                "SELECT h.line FROM attempts AS a JOIN headers AS h ON h.id = a.header "
                "WHERE a.final = 1 GROUP BY h.id "
                f"ORDER BY min({_PLACE})"
            )
        ]

    def columns(self) -> list[tuple[str, int]]:
        """Return all that mini-batches told of their columns, with the first place in input order.

        Those of rows that others have taken the place of are among them: what came after may have been
        told apart by them.
        """
        return list(
            self.select(
                f"SELECT h.line, min({_PLACE}) FROM attempts AS a JOIN headers AS h "
                "ON h.id = a.header GROUP BY h.id ORDER BY 2"
            )
        )

    def error_groups(self, limit: int = 100) -> list[ErrorGroup]:
        """Return the distinct errors, most frequent first; at most `limit`."""
        return [
            ErrorGroup(
                type=kind,
                where=location,
                message=message,
                count=attempts,
                first_mini_batch=mini_batch,
                first_items=_items(sample),
                node=node,
                process=process,
                log_file=log_file or "",
                traceback=traceback,
            )
            for (
                kind,
                location,
                message,
                traceback,
                attempts,
                mini_batch,
                sample,
                node,
                process,
                log_file,
            ) in self.select(_GROUPS, {"resumed_after": self._resumed_after(), "limit": limit})
        ]

    def failures(self) -> Iterator[Failure]:
        """Yield what failed for good, by mini-batch and item."""
        after = (-1, 0)
        while rows := [Failure(*row) for row in self.select(_FAILURES, (*after, _PAGE))]:
            yield from rows
            after = (rows[-1].mini_batch, rows[-1].first)

    def failed_mini_batches(self, limit: int) -> tuple[int, ...]:
        """Return the first mini-batches of which nothing succeeded, in input order."""
        return tuple(index for (index,) in self.select(_FAILED_MINI_BATCHES, (limit,)))

    def attempts(self) -> Iterator[AttemptRecord]:
        """Yield every attempt, in the order in which they ended."""
        for row in self.select(_ATTEMPTS):
            first, stop, sample, log_file, category, kind, message, where, trace, stage = row[15:]
            error = None
            if category is not None:
                error = AttemptError(
                    category=category,
                    type=kind,
                    message=message,
                    where=where,
                    traceback=trace,
                    stage=stage,
                )
            yield AttemptRecord(
                mini_batch=row[0],
                attempt=row[1],
                part=None if stop is None else (first, stop),
                final=bool(row[2]),
                outcome=Outcome(row[3]),
                node=row[4],
                process=row[5],
                items_total=row[6],
                items_succeeded=row[7],
                items_failed=row[8],
                rows=row[9],
                started_at=row[10],
                elapsed_s=row[11],
                cpu_s=row[12],
                load_s=row[13],
                run_s=row[14],
                error=error,
                items_sample=_items(sample),
                log_file=log_file or "",
            )

    def nodes(self) -> list[NodeRecord]:
        """Return every node, of earlier sittings too, in the order of their names."""
        names = [each.name for each in fields(NodeRecord)]
        rows = self.select(f"SELECT {', '.join(names)} FROM nodes ORDER BY length(node), node")
        return [NodeRecord(**dict(zip(names, row, strict=True))) for row in rows]

    def processes(self) -> list[ProcessRecord]:
        """Return every worker process, of earlier sittings too, in the order of nodes and names."""
        names = [each.name for each in fields(ProcessRecord)]
        rows = self.select(
            f"SELECT {', '.join(names)} FROM processes "
            "ORDER BY length(node), node, length(process), process"
        )
        return [ProcessRecord(**dict(zip(names, row, strict=True))) for row in rows]

    def select(self, query: str, values: Any = ()) -> Iterator[Any]:
        """Yield what a query finds; for modules that know the schema."""
        with explained(self.path):
            # "yield from" would close the cursor of whoever lets go half-way, and raise where the
            # connection was closed before.
            for row in self._connection.execute(query, values):  # noqa: UP028
                yield row

    def check(self) -> None:
        """Read all of it for contradictions.

        Raises:
            OutputError: it is damaged.
        """
        with explained(self.path):
            schema.check(self._connection, self.path)

    def _resumed_after(self) -> int:
        """Return the number of the last attempt before this sitting; 0 if it is the first."""
        for (value,) in self.select("SELECT value FROM meta WHERE key = 'resumed_after'"):
            return int(value)
        return 0

    def _page(self, query: str, *after: int) -> list[str]:
        """Return the parts of one page, empty at the end; `query` takes `after` and a limit."""
        for (text,) in self.select(query, (*after, _PAGE)):
            return str(text).split(",") if text is not None else []
        return []


def _items(sample: str | None) -> tuple[str, ...]:
    return tuple(json.loads(sample)) if sample else ()
