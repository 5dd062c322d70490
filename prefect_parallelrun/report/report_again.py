"""The report of any run folder, made anew: also of a run that goes on, or of which the driver was killed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import driver_of
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import plan_step
from prefect_parallelrun.report.failed_items import ItemsOf
from prefect_parallelrun.report.failure import kept_process_errors
from prefect_parallelrun.report.gather import gather
from prefect_parallelrun.report.page import write_report
from prefect_parallelrun.report.summary import summarise, with_process_errors
from prefect_parallelrun.run_record import (
    RUNNING,
    RunRecord,
    kept_cuts,
    kept_definition,
    kept_listing,
)

INTERRUPTED = "Interrupted"
"""What a run is called here of which the driver is gone before its end."""


def report_of(paths: RunPaths) -> Path:
    """Write the report of a run and return where it is; nothing else in the folder changes.

    Raises:
        OutputError: this is no run folder, or its journal cannot be read.
        OSError: the report cannot be written.
    """
    record = RunRecord.read(paths)
    summary = RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
    if paths.journal.exists():
        with Journal(paths.journal) as journal:
            summary = summarise(journal, mini_batches=record.mini_batches, items=record.items)
    summary = with_process_errors(summary, kept_process_errors(paths))
    failure = None
    if record.state == RUNNING and driver_of(paths) is None:
        record = record.model_copy(update={"state": INTERRUPTED})
        failure = f"its driver was killed, or its machine; the log of the run: {paths.driver_log}"
    elif record.state != RUNNING and not record.completed:
        failure = _told(paths)
    data = gather(paths, record, summary, items_of=_items_of(paths, record), failure=failure)
    return write_report(paths, data)


def _told(paths: RunPaths) -> str:
    """Return why a run failed, as it was told at its end."""
    try:
        text = paths.job_result.read_text(encoding="utf-8")
    except OSError as error:
        return f"unknown: {error}"
    return text.partition("\n\n")[2].strip() or text


def _items_of(paths: RunPaths, record: RunRecord) -> ItemsOf | None:
    """Return what tells items, where that needs no look at the inputs: for files, as they were listed."""
    if record.kind != "file":
        return None
    try:
        definition = kept_definition(paths)
        listings = [
            list(kept_listing(paths, f"input {place}")) for place in range(len(definition.inputs))
        ]
        plan = plan_step(definition, scratch=paths.inputs, listings=listings, cuts=kept_cuts(paths))
    except (OSError, ValueError, ParallelRunError):
        return None  # an older run, or a folder of which something is lost

    def items_of(indices: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
        wanted = set(indices)
        for mini_batch in plan:
            if not wanted:
                return
            if mini_batch.index in wanted:
                wanted.discard(mini_batch.index)
                yield mini_batch.input_index, mini_batch.work["files"]

    return items_of
