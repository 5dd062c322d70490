"""What the journal has of earlier sittings: done, done in part, or done with rows missing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from prefect_parallelrun.models import Earlier
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.trouble import damaged_journal

PARTS = """
SELECT mini_batch, (
    SELECT max(items_total) FROM attempts AS whole
    WHERE whole.final = 0 AND whole.stop IS NULL AND whole.mini_batch = part.mini_batch),
    first, stop
FROM attempts AS part WHERE final = 1 AND stop IS NOT NULL ORDER BY mini_batch, first
"""
"""Every settled part: its mini-batch, how many items the whole has, its first, the one after its last."""
_MISSING = f"""
SELECT mini_batch, sum(items_succeeded), sum(items_failed) FROM attempts
WHERE final = 1 AND mini_batch IN (
    SELECT mini_batch FROM attempts WHERE {schema.FAILED} AND outcome = 'succeeded')
GROUP BY mini_batch
"""
# The first needs nothing but an index, which has a row for every part.
_MINI_BATCHES = """
SELECT (SELECT count(*) FROM attempts WHERE final = 1) - count(*) + count(DISTINCT mini_batch)
FROM attempts WHERE final = 1 AND stop IS NOT NULL
"""


def read_earlier(journal: Journal, *, retry_missing: bool) -> Earlier:
    """Return what need not run again; the failures of earlier sittings must be settled no more.

    A mini-batch of which parts are to run is not tried again for missing rows before they have
    succeeded: the rest of its rows hold as they are.

    Args:
        retry_missing: whether a mini-batch of which rows are missing (R16) is tried again.

    Raises:
        OutputError: it cannot be known what is left of a mini-batch.
    """
    parts = dict(_left_over(journal))
    missing: dict[int, tuple[int, int]] = {}
    if retry_missing:
        missing = {
            mini_batch: (succeeded, failed)
            for mini_batch, succeeded, failed in journal.select(_MISSING)
            if mini_batch not in parts
        }
    ((mini_batches,),) = journal.select(_MINI_BATCHES)
    ((items,),) = journal.select("SELECT total(items_succeeded) FROM attempts WHERE final = 1")
    return Earlier(
        mini_batches=mini_batches - len(parts) - len(missing),
        items=int(items) - sum(succeeded for succeeded, _ in missing.values()),
        parts=parts,
        missing=missing,
    )


def _left_over(journal: Journal) -> Iterator[tuple[int, tuple[tuple[int, int], ...]]]:
    """Yield each mini-batch that succeeded in part only, and the items of it that are to run."""
    for (mini_batch, items), settled in groupby(journal.select(PARTS), key=itemgetter(0, 1)):
        if items is None:
            raise damaged_journal(
                journal.path,
                f"it has parts of mini-batch {mini_batch}, but no attempt of the whole",
            )
        left: list[tuple[int, int]] = []
        end = 0
        for _, _, first, stop in settled:
            if first > end:
                left.append((end, first))
            end = stop
        if items > end:
            left.append((end, items))
        if left:
            yield mini_batch, tuple(left)
