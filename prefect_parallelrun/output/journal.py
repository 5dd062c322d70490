"""The reading side of the journal: what every report, and the output file, are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prefect_parallelrun.models import AttemptError, AttemptRecord, ErrorGroup, Outcome
from prefect_parallelrun.output import schema

Order = Literal["input", "completion"]

_PAGE = 4096
# A page comes as one text of numbers, in one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_SEGMENTS = {
    "input": (
        "SELECT group_concat(mini_batch || ' ' || offset || ' ' || length) FROM ("
        "SELECT mini_batch, offset, length FROM attempts "
        "WHERE final = 1 AND mini_batch > ? AND length > 0 ORDER BY mini_batch LIMIT ?)"
    ),
    "completion": (
        "SELECT group_concat(id || ' ' || offset || ' ' || length) FROM ("
        "SELECT id, offset, length FROM attempts "
        "WHERE final = 1 AND id > ? AND length > 0 ORDER BY id LIMIT ?)"
    ),
}
_DONE = (
    "SELECT group_concat(mini_batch) FROM (SELECT mini_batch FROM attempts "
    "WHERE final = 1 AND mini_batch > ? AND outcome = 'succeeded' ORDER BY mini_batch LIMIT ?)"
)
_TOTALS = """
SELECT count(*), total(final),
    total(final = 1 AND outcome = 'succeeded'),
    total(final = 1 AND outcome = 'succeeded' AND id <= :resumed_after),
    total(final * items_total), total(final * items_succeeded), total(final * items_failed),
    total(final * items_succeeded * (id <= :resumed_after)),
    total(final * rows),
    total(CASE WHEN final = 1 AND outcome = 'succeeded' THEN items_failed END)
FROM attempts
"""
# With min(), SQLite takes the other columns from the row that has the minimum: the first attempt.
# Losing a node, or being cancelled, is no error of the script, unless the mini-batch failed for it.
_GROUPS = """
SELECT e.type, e.location, e.message, e.traceback, g.attempts, g.mini_batch, g.items_sample,
    g.node, g.process, g.log_file
FROM errors AS e JOIN (
    SELECT error, count(*) AS attempts, min(id) AS first, mini_batch, items_sample, node, process,
        log_file
    FROM attempts
    WHERE error IS NOT NULL AND (id > ? OR final = 1)
        AND (final = 1 OR outcome NOT IN ('node_lost', 'cancelled'))
    GROUP BY error
) AS g ON g.error = e.id
ORDER BY g.attempts DESC, g.first LIMIT ?
"""
_FAILURES = """
SELECT a.mini_batch, a.attempt, a.outcome, a.items_total, a.items_failed, a.node, a.process,
    a.log_file, a.error, e.category, e.type, coalesce(a.message, e.message), e.traceback
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error
WHERE a.final = 1 AND a.mini_batch > ? AND (a.outcome <> 'succeeded' OR a.items_failed > 0)
ORDER BY a.mini_batch LIMIT ?
"""
_ATTEMPTS = """
SELECT a.mini_batch, a.attempt, a.final, a.outcome, a.node, a.process, a.items_total,
    a.items_succeeded, a.items_failed, a.rows, a.started_at, a.elapsed_s, a.cpu_s, a.run_s,
    a.items_sample, a.log_file,
    e.category, e.type, coalesce(a.message, e.message), e.location, e.traceback, e.stage
FROM attempts AS a LEFT JOIN errors AS e ON e.id = a.error ORDER BY a.id
"""


class Totals(NamedTuple):
    """Sums over the journal; those of items and mini-batches over what is settled."""

    attempts: int
    mini_batches: int
    mini_batches_succeeded: int
    mini_batches_reused: int
    """Part of those that succeeded: done before the run was resumed."""
    items: int
    items_succeeded: int
    items_failed: int
    items_reused: int
    rows: int
    missing_rows: int


class Failure(NamedTuple):
    """A settled mini-batch of which items failed: all of them, or the rows that are missing."""

    mini_batch: int
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
    """That of the first failure of this kind."""


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
        (row,) = self._select(_TOTALS, values)
        return Totals(*map(int, row))

    def segments(self, order: Order) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) in bytes of all rows in the partial file; neighbours in one."""
        start = end = 0
        after = -1
        while page := self._page(_SEGMENTS[order], after):
            triples = sorted(tuple(map(int, part.split(" "))) for part in page)
            for _, offset, length in triples:
                if offset != end:
                    if end > start:
                        yield start, end - start
                    start = offset
                end = offset + length
            after = triples[-1][0]
        if end > start:
            yield start, end - start

    def done(self) -> Iterator[int]:
        """Yield the index of every mini-batch that succeeded, ascending."""
        after = -1
        while page := self._page(_DONE, after):
            indices = sorted(map(int, page))
            yield from indices
            after = indices[-1]

    def headers(self) -> list[str]:
        """Return the distinct header lines, that of the first mini-batch in input order first."""
        if not list(self._select("SELECT 1 FROM headers LIMIT 1")):
            return []  # without the look at every attempt
        return [
            line
            for (line,) in self._select(
                "SELECT h.line FROM attempts AS a JOIN headers AS h ON h.id = a.header "
                "WHERE a.final = 1 GROUP BY h.id ORDER BY min(a.mini_batch)"
            )
        ]

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
            ) in self._select(_GROUPS, (self._resumed_after(), limit))
        ]

    def failures(self, after: int = -1) -> Iterator[Failure]:
        """Yield what failed for good, by mini-batch, from the one after `after`."""
        while rows := [Failure(*row) for row in self._select(_FAILURES, (after, _PAGE))]:
            yield from rows
            after = rows[-1].mini_batch

    def failed_mini_batches(self, limit: int) -> tuple[int, ...]:
        """Return the first mini-batches that failed for good, in input order."""
        rows = self._select(
            "SELECT mini_batch FROM attempts WHERE final = 1 AND outcome <> 'succeeded' "
            "ORDER BY mini_batch LIMIT ?",
            (limit,),
        )
        return tuple(index for (index,) in rows)

    def attempts(self) -> Iterator[AttemptRecord]:
        """Yield every attempt, in the order in which they ended."""
        for row in self._select(_ATTEMPTS):
            sample, log_file, category, kind, message, where, traceback, stage = row[14:]
            error = None
            if category is not None:
                error = AttemptError(
                    category=category,
                    type=kind,
                    message=message,
                    where=where,
                    traceback=traceback,
                    stage=stage,
                )
            yield AttemptRecord(
                mini_batch=row[0],
                attempt=row[1],
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
                run_s=row[13],
                error=error,
                items_sample=_items(sample),
                log_file=log_file or "",
            )

    def _resumed_after(self) -> int:
        """Return the number of the last attempt before the run was resumed; 0 if it never was."""
        for (value,) in self._select("SELECT value FROM meta WHERE key = 'resumed_after'"):
            return int(value)
        return 0

    def _page(self, query: str, after: int) -> list[str]:
        """Return the parts of one page, empty at the end; `query` takes `after` and a limit."""
        for (text,) in self._select(query, (after, _PAGE)):
            return str(text).split(",") if text is not None else []
        return []

    def _select(self, query: str, values: Any = ()) -> Iterator[Any]:
        with schema.explained(self.path):
            yield from self._connection.execute(query, values)


def _items(sample: str | None) -> tuple[str, ...]:
    return tuple(json.loads(sample)) if sample else ()
