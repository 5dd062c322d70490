"""`failed_items.jsonl`: what failed, as data (R204)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

from prefect_parallelrun.models import Outcome
from prefect_parallelrun.output.journal import Failure, Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.replaced import replaced

ItemsOf = Callable[[Iterable[int]], Iterator[tuple[int, list[str]]]]
"""From indices of mini-batches, ascending, to (number of its input, its items): every one, in the same order.

Called once, so that one walk through the plan is enough."""

_REASONS = {
    Outcome.SUCCEEDED: "missing_row",
    Outcome.FAILED: "exception",
    Outcome.TIMED_OUT: "timeout",
    Outcome.PROCESS_DIED: "exit",
    Outcome.NODE_LOST: "node_lost",
}
"""The reason where no more is known than the outcome; what is cancelled is never settled."""
Kind = Literal["file", "tabular", "rank"]
"""What an item is, see `Plan.kind`."""

_TRACES = 100
"""So many records of each distinct error carry its stack trace: thousands of equal ones would make
gigabytes; the others name the log file only."""


def write_failed_items(paths: RunPaths, journal: Journal, items_of: ItemsOf, *, kind: Kind) -> int:
    """Write one record per failed item and return the number of records.

    Always to be called at the end of a sitting: without failures there is no file. One of an earlier
    sitting is removed before anything else, for a list that cannot be written must not leave a wrong
    one in its place.

    `reason` is exactly one of `exception`, `timeout`, `memory`, `signal`, `exit` (the process ended
    itself), `bad_return`, `load`, `node_lost` and `missing_row`. Where it cannot be known which items
    failed (rows that `run()` did not return; rows of a table, which have no names), one record stands
    for all of them: `item` is null, `count` says how many failed, and `candidates` are the items among
    which they are. `input` is the number of the step's input, from 0. For part of a table's mini-batch
    `rows` are its first row and the one after its last, counted from 0 in the mini-batch; else null.
    `log_files` are those of the process: stack traces, standard error, standard output. Rows that are
    missing of what was taken over of another run have no attempts here, neither node nor process.
    """
    paths.failed_items.unlink(missing_ok=True)
    written = 0
    traces: Counter[int | None] = Counter()
    with replaced(paths.failed_items) as file:
        items = items_of(index for index, _ in _by_mini_batch(journal))
        for (_, failures), (number, names) in zip(_by_mini_batch(journal), items, strict=True):
            for record, error in _records(paths, failures, names, kind):
                record["input"] = number
                traces[error] += 1
                if traces[error] > _TRACES:
                    record["traceback"] = None
                file.write(json.dumps(record) + "\n")
                written += 1
    if not written:
        paths.failed_items.unlink()
    return written


def _by_mini_batch(journal: Journal) -> Iterator[tuple[int, Iterator[Failure]]]:
    """Yield each mini-batch with failures, and those; several where it was split."""
    yield from groupby(journal.failures(), key=attrgetter("mini_batch"))


def _records(
    paths: RunPaths, failures: Iterable[Failure], names: list[str], kind: Kind
) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Yield the records of one mini-batch, each with the number of its error."""
    for failure in failures:
        record = _known(paths, failure, kind)
        # Of a table, `names` is where the mini-batch is, however many rows of it failed.
        items = names[failure.first : failure.stop] if kind == "file" else names
        if kind != "tabular" and failure.outcome != Outcome.SUCCEEDED:
            for item in items:
                yield record | {"item": item, "count": 1}, failure.error
        else:
            yield record | {"count": failure.items_failed, "candidates": items}, failure.error


def _known(paths: RunPaths, failure: Failure, kind: str) -> dict[str, Any]:
    """Return what a record says whatever its items are."""
    reason = failure.category or _REASONS[Outcome(failure.outcome)]
    error = f"{failure.type}: {failure.message}" if failure.type else None
    if failure.outcome == Outcome.SUCCEEDED and error is None:
        error = (
            f"run() returned {failure.items_total - failure.items_failed:,} elements for "
            f"{failure.items_total:,} items"
        )
    in_part_of_table = kind == "tabular" and failure.stop is not None
    return {
        "item": None,
        "kind": kind,
        "mini_batch": failure.mini_batch,
        "rows": [failure.first, failure.stop] if in_part_of_table else None,
        "reason": reason,
        "attempts": failure.attempt,
        "node": failure.node,
        "process": failure.process,
        "error": error,
        "traceback": failure.traceback,
        "log_files": _log_files(paths, failure),
    }


def _log_files(paths: RunPaths, failure: Failure) -> list[str]:
    if not failure.process:  # no process had it: its node was lost
        return []
    files = paths.node_files(failure.node)
    return [
        files[name].replace("{process}", failure.process) for name in ("error", "stderr", "stdout")
    ]
