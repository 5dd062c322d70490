"""`failed_items.jsonl`: what failed, as data (R204)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from prefect_parallelrun.models import Outcome
from prefect_parallelrun.output.journal import Failure, Journal
from prefect_parallelrun.paths import RunPaths

ItemsOf = Callable[[Iterable[int]], Iterator[tuple[int, list[str]]]]
"""From indices of mini-batches, ascending, to (index, its items): every one, in the same order.

Called once, so that one walk through the plan is enough."""

_TRACES = 100
"""So many records of each distinct error carry its stack trace: thousands of equal ones would make
gigabytes; the others name the log file only."""


def write_failed_items(
    paths: RunPaths, journal: Journal, items_of: ItemsOf, *, kind: Literal["file", "tabular"]
) -> int:
    """Write one record per failed item and return the number of records.

    Where it cannot be known which items of a mini-batch failed (rows that `run()` did not return;
    rows of a table, which have no names), one record stands for all of them: `item` is null,
    `count` says how many failed, and `candidates` are the items among which they are. Without
    failures there is no file.
    """
    temporary = paths.failed_items.with_suffix(".tmp")
    written = 0
    traces: Counter[int | None] = Counter()
    with temporary.open("w", encoding="ascii") as file:
        items = items_of(failure.mini_batch for failure in journal.failures())
        for failure, (_, names) in zip(journal.failures(), items, strict=True):
            for record in _records(failure, names, kind):
                traces[failure.error] += 1
                if traces[failure.error] > _TRACES:
                    record["traceback"] = None
                file.write(json.dumps(record) + "\n")
                written += 1
    if written:
        temporary.replace(paths.failed_items)
    else:
        temporary.unlink()
        paths.failed_items.unlink(missing_ok=True)
    return written


def _records(
    failure: Failure, items: list[str], kind: Literal["file", "tabular"]
) -> Iterator[dict[str, Any]]:
    missing = failure.outcome == Outcome.SUCCEEDED
    error = f"{failure.type}: {failure.message}" if failure.type else None
    if missing and error is None:
        error = (
            f"run() returned {failure.items_total - failure.items_failed:,} elements for "
            f"{failure.items_total:,} items"
        )
    record = {
        "item": None,
        "kind": kind,
        "mini_batch": failure.mini_batch,
        "reason": "missing_row" if missing else failure.category or failure.outcome,
        "attempts": failure.attempt,
        "node": failure.node,
        "process": failure.process,
        "error": error,
        "traceback": failure.traceback,
        "log_file": failure.log_file,
    }
    if missing or len(items) != failure.items_failed:
        yield record | {"count": failure.items_failed, "candidates": items}
        return
    for item in items:
        yield record | {"item": item, "count": 1}
