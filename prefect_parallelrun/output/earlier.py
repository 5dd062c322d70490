"""What the journal has of earlier sittings: done, done in part, or done with rows missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from prefect_parallelrun.models import Earlier
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.trouble import damaged_journal

_WHOLE = """(SELECT max(items_total) FROM attempts AS whole
    WHERE whole.final = 0 AND whole.stop IS NULL AND whole.mini_batch = part.mini_batch)"""
PARTS = f"""
SELECT mini_batch, {_WHOLE}, first, stop
FROM attempts AS part WHERE final = 1 AND stop IS NOT NULL ORDER BY mini_batch, first
"""
"""Every settled part: its mini-batch, how many items the whole has, its first, the one after its last."""
_GOOD_PARTS = f"""
SELECT mini_batch, {_WHOLE}, first, stop, items_succeeded, items_failed
FROM attempts AS part WHERE final = 1 AND stop IS NOT NULL AND outcome = 'succeeded'
ORDER BY mini_batch, first
"""
_MISSING_OF_WHOLE = f"""
SELECT mini_batch, items_succeeded, items_failed FROM attempts
WHERE {schema.FAILED} AND outcome = 'succeeded' AND stop IS NULL
"""
# Whole ones that did not fail, and those of which a part did not; the first number needs nothing but
# an index.
_MINI_BATCHES = f"""
SELECT (SELECT count(*) FROM attempts WHERE final = 1)
    - (SELECT count(*) FROM attempts WHERE {schema.FAILED} AND outcome <> 'succeeded' AND stop IS NULL)
    - count(*) + count(DISTINCT CASE WHEN outcome = 'succeeded' THEN mini_batch END)
FROM attempts WHERE final = 1 AND stop IS NOT NULL
"""
_ITEMS = """
SELECT total(items_succeeded), total(items_failed), total(rows) FROM attempts
WHERE final = 1 AND outcome = 'succeeded'
"""


def read_earlier(journal: Journal, *, retry_missing: bool) -> Earlier:
    """Return what need not run again: what succeeded.

    Args:
        retry_missing: whether what rows are missing of (R16) is tried again: a mini-batch, or where it
            was split the part, whatever else is to run of it.

    Raises:
        OutputError: it cannot be known what is left of a mini-batch.
    """
    parts: dict[int, tuple[tuple[int, int], ...]] = {}
    missing: dict[tuple[int, tuple[int, int] | None], tuple[int, int]] = {}
    for (mini_batch, items), settled in groupby(journal.select(_GOOD_PARTS), itemgetter(0, 1)):
        if items is None:
            raise damaged_journal(
                journal.path,
                f"it has parts of mini-batch {mini_batch}, but no attempt of the whole",
            )
        left: list[tuple[int, int]] = []
        end = 0
        for _, _, first, stop, succeeded, failed in settled:
            if first > end:
                left.append((end, first))
            if failed and retry_missing:
                left.append((first, stop))
                missing[mini_batch, (first, stop)] = succeeded, failed
            end = stop
        if items > end:
            left.append((end, items))
        if left:
            parts[mini_batch] = tuple(left)
    if retry_missing:
        for mini_batch, succeeded, failed in journal.select(_MISSING_OF_WHOLE):
            missing[mini_batch, None] = succeeded, failed
    ((mini_batches,),) = journal.select(_MINI_BATCHES)
    ((items_succeeded, items_failed, rows),) = journal.select(_ITEMS)
    found = Earlier(
        items=int(items_succeeded) - sum(succeeded for succeeded, _ in missing.values()),
        items_failed=int(items_failed) - sum(failed for _, failed in missing.values()),
        # Of what rows are missing, there are as many as items that succeeded.
        rows=int(rows) - sum(succeeded for succeeded, _ in missing.values()),
        parts=parts,
        missing=missing,
    )
    return replace(found, mini_batches=mini_batches - len(unfinished(found)))


def done(journal: Journal, earlier: Earlier) -> Iterator[int]:
    """Yield the index of every mini-batch with nothing left to do, ascending.

    Args:
        journal: of the run.
        earlier: what `read_earlier` made of it.
    """
    again = unfinished(earlier)
    return (index for index in journal.done() if index not in again)


def unfinished(earlier: Earlier) -> set[int]:
    """Return the mini-batches of which something is done, and something left to do."""
    return {*earlier.parts, *(mini_batch for mini_batch, _ in earlier.missing)}
