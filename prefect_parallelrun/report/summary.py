"""What a run came to, in figures and in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefect_parallelrun.models import Counts, ErrorGroup, RunSummary
from prefect_parallelrun.output.journal import Journal

_FAILED_SHOWN = 100
_NAMED = 5
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
        distinct_errors=totals.distinct_errors,
        errors_counted=totals.errors,
        missing_rows=totals.missing_rows,
        failed_mini_batches=journal.failed_mini_batches(_FAILED_SHOWN),
    )


def with_process_errors(summary: RunSummary, groups: Sequence[ErrorGroup]) -> RunSummary:
    """Return the summary with the errors of import, `init()` and `shutdown()`, which no attempt had.

    However rare they are among others, all of them are shown.
    """
    kept = summary.errors[: max(0, DISTINCT_ERRORS_SHOWN - len(groups))]
    return replace(
        summary,
        errors=tuple(sorted((*kept, *groups), key=lambda group: -group.count)),
        distinct_errors=summary.distinct_errors + len(groups),
        errors_counted=summary.errors_counted + sum(group.count for group in groups),
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
    if not summary.errors:
        return "no errors"
    noun = "error" if summary.distinct_errors == 1 else "errors"
    shown = summary.errors[:_NAMED]
    named = ", ".join(f"{one.type} × {one.count:,} (first {_first(one)})" for one in shown)
    more = summary.distinct_errors - len(shown)
    rest = f", and {more:,} more" if more else ""
    return f"{summary.distinct_errors:,} distinct {noun}: {named}{rest}"


def _first(error: ErrorGroup) -> str:
    """Say where an error was first."""
    if error.first_mini_batch is None:
        return (
            f"at {error.where}, outside of any mini-batch"
            if error.where
            else "outside of any mini-batch"
        )
    mini_batch = f"mini-batch {error.first_mini_batch:,}"
    return f"at {error.where}, {mini_batch}" if error.where else f"in {mini_batch}"
