"""What a run came to, in figures and in one line."""

from __future__ import annotations

from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.output.journal import Journal

_FAILED_SHOWN = 100
DISTINCT_ERRORS_SHOWN = 100
"""Of more than so many distinct errors, the rarest are left out."""


def summarise(
    journal: Journal, *, mini_batches: int | None = None, items: int | None = None
) -> RunSummary:
    """Add up the journal, in memory that does not depend on its length.

    Args:
        journal: that of the run; what the writer has not committed does not count.
        mini_batches: how many the plan has; without it, those that are settled.
        items: how many the plan has, where it knows before they are loaded (files).
    """
    totals = journal.totals()
    return RunSummary(
        mini_batches=Counts(
            total=totals.mini_batches if mini_batches is None else mini_batches,
            succeeded=totals.mini_batches_succeeded,
            failed=totals.mini_batches - totals.mini_batches_succeeded,
            reused=totals.mini_batches_reused,
        ),
        items=Counts(
            total=totals.items if items is None else items,
            succeeded=totals.items_succeeded,
            failed=totals.items_failed,
            reused=totals.items_reused,
        ),
        attempts=totals.attempts,
        rows=totals.rows,
        errors=tuple(journal.error_groups(DISTINCT_ERRORS_SHOWN)),
        missing_rows=totals.missing_rows,
        failed_mini_batches=journal.failed_mini_batches(_FAILED_SHOWN),
    )


def closing_line(summary: RunSummary) -> str:
    """Account for every item (R208): `in 1,000 = out 988 + failed 12 (items)`."""
    return f"{account(summary.items)} (items)"


def account(counts: Counts) -> str:
    """Say what came in and what became of it; what is left over was not run."""
    parts = f"out {counts.succeeded:,} + failed {counts.failed:,}"
    rest = counts.total - counts.succeeded - counts.failed
    if rest > 0:
        parts += f" + not run {rest:,}"
    return f"in {counts.total:,} {'=' if rest >= 0 else '≠'} {parts}"


def errors_line(summary: RunSummary) -> str:
    """Name the distinct errors (R209): `2 distinct errors: A × 3,998 (first at …), B × 1 (…)`."""
    shown = summary.errors
    if not shown:
        return "no errors"
    more = " or more" if len(shown) == DISTINCT_ERRORS_SHOWN else ""
    noun = "error" if len(shown) == 1 else "errors"
    named = ", ".join(
        f"{error.type} × {error.count:,} "
        f"(first at {error.where or 'an unknown place'}, "
        + (
            "outside of any mini-batch"
            if error.first_mini_batch is None
            else f"mini-batch {error.first_mini_batch:,}"
        )
        + ")"
        for error in shown[:5]
    )
    rest = f", and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"{len(shown)}{more} distinct {noun}: {named}{rest}"
