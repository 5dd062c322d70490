"""A run folder checked against itself: is every item accounted for, and every row in its place (R208)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice, zip_longest
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import IO, Any

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.errors import ConfigError, DatasetError, OutputError
from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.output import earlier
from prefect_parallelrun.output.journal import Journal, Order
from prefect_parallelrun.output.publication import header
from prefect_parallelrun.output.segments import pieces
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.parquet_difference import parquet_difference
from prefect_parallelrun.report.summary import closing_line, summarise
from prefect_parallelrun.run_record import RUNNING, RunRecord, kept_cuts, kept_definition

_SHOWN = 5
"""So many mini-batches of one fault are named; the others are counted."""
_logger = logging.getLogger(__name__)

_LAST = "SELECT coalesce(max(mini_batch), -1) FROM attempts WHERE final = 1"
_NOT_SETTLED = """
SELECT before + 1, mini_batch - 1 FROM (
    SELECT mini_batch, lag(mini_batch, 1, -1) OVER (ORDER BY mini_batch) AS before
    FROM (SELECT DISTINCT mini_batch FROM attempts WHERE final = 1 UNION SELECT ?)
) WHERE mini_batch > before + 1
"""
_WHOLE_AND_PART = """
SELECT DISTINCT mini_batch FROM attempts AS part WHERE final = 1 AND stop IS NOT NULL AND EXISTS (
    SELECT 1 FROM attempts AS whole
    WHERE whole.final = 1 AND whole.stop IS NULL AND whole.mini_batch = part.mini_batch)
"""
_ILL_COUNTED = """
SELECT mini_batch FROM attempts WHERE final = 1 AND (items_total <> items_succeeded + items_failed
    OR items_succeeded < 0 OR items_failed < 0
    OR stop IS NOT NULL AND items_total <> stop - first)
ORDER BY mini_batch
"""
_ROWLESS = """
SELECT mini_batch FROM attempts WHERE final = 1 AND outcome = 'succeeded' AND offset IS NULL
ORDER BY mini_batch
"""
# Rows are appended in the order in which attempts are numbered, with nothing between them.
_MISPLACED = """
SELECT mini_batch FROM (
    SELECT mini_batch, offset, lag(offset + length, 1, 0) OVER (ORDER BY id) AS place
    FROM attempts WHERE offset IS NOT NULL
) WHERE offset <> place
"""
_WRITTEN = "SELECT coalesce(sum(rows), 0) FROM attempts WHERE final = 1 AND offset IS NOT NULL"
_END = "SELECT coalesce(max(offset + length), 0) FROM attempts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found."""

    findings: tuple[str, ...]
    """What does not hold, each in a sentence; empty: all holds."""
    closing: str
    """What came in and what became of it: `in 1,000 = out 988 + failed 12 (items)`; and what was taken over
    of another run."""


def verify(paths: RunPaths) -> Verification:
    """Check record, journal, rows, output, failed items and input of a run against each other.

    A run that has not completed need not have settled all of its items, nor have an output. Memory
    does not grow with the run.

    Raises:
        OutputError: this is no run folder.
    """
    record = RunRecord.read(paths)
    try:
        with Journal(paths.journal) as journal:
            journal.check()
            return _verify(paths, record, journal)
    except OutputError as error:
        return Verification(
            findings=(str(error),), closing="nothing can be counted without the journal"
        )


def _verify(paths: RunPaths, record: RunRecord, journal: Journal) -> Verification:
    summary = summarise(journal, mini_batches=record.mini_batches, items=record.items)
    findings = chain(
        _mini_batches(journal, record),
        _items(journal, record, summary),
        _rows(journal, record, paths),
        _output(journal, record, paths),
        _uploaded(record, paths),
        _failed_items(journal, record, paths),
        _input(record, paths),
    )
    closing = closing_line(summary)
    if taken := journal.taken_over():
        closing += f", of which {taken:,} are taken over of run {record.base}"
    return Verification(findings=tuple(findings), closing=closing)


def _mini_batches(journal: Journal, record: RunRecord) -> Iterator[str]:
    """Find mini-batches that are settled twice, or not at all though the run completed."""
    ((last,),) = journal.select(_LAST)
    planned = last + 1 if record.mini_batches is None else record.mini_batches
    if last >= planned:
        yield f"Mini-batch {last:,} is settled, but the plan has {planned:,} mini-batches."
    elif record.completed:
        ranges = journal.select(_NOT_SETTLED, (planned,))
        yield from _named(
            "Not settled, though the run completed",
            (f"{first:,}" if first == stop else f"{first:,} to {stop:,}" for first, stop in ranges),
        )
    yield from _named(
        "Settled as a whole and in parts as well",
        (f"{index:,}" for (index,) in journal.select(_WHOLE_AND_PART)),
    )
    doubled, left = [], []
    for (index, items), parts in groupby(journal.select(earlier.PARTS), key=itemgetter(0, 1)):
        end = 0
        for _, _, first, stop in parts:
            if first < end:
                doubled.append(f"{index:,} (items {first:,} to {end - 1:,})")
            elif first > end:
                left.append(f"{index:,} (items {end:,} to {first - 1:,})")
            end = stop
        if end != items:
            left.append(f"{index:,} (of {items} items; its last part ends at {end:,})")
    yield from _named("Settled twice in part", doubled)
    if record.completed:
        yield from _named("Not settled in part, though the run completed", left)


def _items(journal: Journal, record: RunRecord, summary: RunSummary) -> Iterator[str]:
    """Find items that are counted wrongly, or not at all."""
    yield from _named(
        "Counted wrongly, items in all not being those that succeeded and failed",
        (f"{index:,}" for (index,) in journal.select(_ILL_COUNTED)),
    )
    rest = summary.items.total - summary.items.succeeded - summary.items.failed
    if rest < 0 or (rest > 0 and record.completed):
        yield f"Not every item is accounted for: {closing_line(summary)}."
    if record.state == "Completed" and (summary.items.failed or summary.mini_batches.failed):
        yield f"The state is {record.state!r}, though some failed: {closing_line(summary)}."


def _rows(journal: Journal, record: RunRecord, paths: RunPaths) -> Iterator[str]:
    """Find rows that the journal has and the partial file has not."""
    if record.append_row_file_name is None:
        return
    yield from _named(
        "Settled with success, but without rows",
        (f"{index:,}" for (index,) in journal.select(_ROWLESS)),
    )
    yield from _named(
        "Rows that do not begin where those before them end",
        (f"{index:,}" for (index,) in journal.select(_MISPLACED)),
    )
    ((end,),) = journal.select(_END)
    size = paths.partial.stat().st_size if paths.partial.exists() else 0
    if size < end or (size > end and record.completed):
        yield f"{paths.partial} has {size:,} bytes; the journal has rows up to {end:,}."


def _output(journal: Journal, record: RunRecord, paths: RunPaths) -> Iterator[str]:
    """Find where the output is not what the run wrote; rows are there only once it completed."""
    if record.append_row_file_name is None:
        intact = (
            manifest.is_intact(paths.root)
            if record.completed
            else not manifest.lost_files(paths.root)
        )
        if not intact:
            yield f"The files in the output {record.output} are not as they were when the run ended."
        return
    if not record.completed:
        return
    output = Path(record.output) / record.append_row_file_name
    order: Order = "completion" if record.output_order == "completion" else "input"
    try:
        with output.open("rb") as found, paths.partial.open("rb") as partial:
            segments = journal.segments(order)
            if record.output_format == "parquet":
                ((rows,),) = journal.select(_WRITTEN)
                difference = parquet_difference(
                    found, partial.fileno(), segments, journal.columns(), rows
                )
            else:
                written = pieces(partial.fileno(), segments)
                difference = _difference(found, chain([header(journal, _logger)], written))
            if difference is not None:
                yield f"The output {output} {difference}."
    except OSError as error:
        yield f"The output {output} cannot be compared with the rows of the run: {error}."


def _difference(found: IO[bytes], expected: Iterable[bytes | memoryview]) -> str | None:
    """Say where a file is not what is expected; None where it is."""
    place = 0
    for piece in expected:
        there = found.read(len(piece))
        if there != piece:
            pairs = enumerate(zip(there, piece, strict=False))
            place += next((at for at, (a, b) in pairs if a != b), len(there))
            return f"differs from the rows of the run at byte {place:,}"
        place += len(piece)
    return f"goes on after the rows of the run, at byte {place:,}" if found.read(1) else None


def _uploaded(record: RunRecord, paths: RunPaths) -> Iterator[str]:
    """Find a remote output that is not there as it was uploaded."""
    if not record.completed or not paths.definition.exists():
        return
    try:
        remote = RemoteFolder.of(kept_definition(paths).output)
    except OutputError as error:
        _logger.warning("What was uploaded was not checked: %s", error)
        return
    if remote is None:
        return
    if remote.storage.left_out:
        _logger.warning(
            "What was uploaded was not checked: no credentials block opens %s", remote.url
        )
    elif reuse.uploaded(paths.root, remote) is None:
        yield f"The files in {remote.url} are not as they were uploaded, or cannot be seen."


def _failed_items(journal: Journal, record: RunRecord, paths: RunPaths) -> Iterator[str]:
    """Find failed items that are not in the list of them, in it twice, or there without a failure."""
    if record.state == RUNNING:
        return  # the list is written at the end
    journalled = (
        (index, sum(failure.items_failed for failure in failures))
        for index, failures in groupby(journal.failures(), key=attrgetter("mini_batch"))
    )
    try:
        for failed, listed in zip_longest(journalled, _listed(paths)):
            if listed is not None and listed[2]:
                yield f"{paths.failed_items} has {listed[2]} more than once."
            if failed is None or listed is None or failed != listed[:2]:
                index = min(each[0] for each in (failed, listed) if each is not None)
                yield (
                    f"{paths.failed_items} does not have the failures of the journal: they differ "
                    f"from mini-batch {index:,} on."
                )
                return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{paths.failed_items} cannot be read: {type(error).__name__}: {error}."


def _listed(paths: RunPaths) -> Iterator[tuple[int, int, str | None]]:
    """Yield each mini-batch of the list, how many items failed, and one that is there twice."""
    if not paths.failed_items.exists():
        return
    with paths.failed_items.open(encoding="ascii") as lines:
        for index, records in groupby(map(json.loads, lines), key=itemgetter("mini_batch")):
            count = 0
            seen: set[Any] = set()
            twice = None
            for each in records:
                count += each["count"]
                if each["item"] in seen:
                    twice = each["item"]
                elif each["item"] is not None:
                    seen.add(each["item"])
            yield index, count, twice


def _input(record: RunRecord, paths: RunPaths) -> Iterator[str]:
    """Find inputs that are gone, changed, or have other files than the run had."""
    if not paths.definition.exists():
        return
    try:
        definition, cuts = kept_definition(paths), kept_cuts(paths)
    except OutputError as error:
        _logger.warning("The input was not checked: %s", error)
        return
    try:
        listings = definition.list_inputs()
        contents = reuse.contents(definition, listings)
    except ConfigError as error:  # what opens its storage was not kept, or is not there
        _logger.warning("The input was not checked: %s", error)
        return
    except (DatasetError, OSError) as error:
        yield f"The input is not as it was: {error}."
        return
    files = sum(map(len, listings))
    if record.kind == "file" and record.items is not None and files != record.items:
        yield f"The input has {files:,} files now; the run had {record.items:,}."
    elif record.grouping and reuse.grouping(definition, listings, cuts) != record.grouping:
        yield "The input has other files, or other contents of tables, than the run had."
    elif record.contents not in ("", contents):
        yield "A file of the input, or of a side input, was changed since the run."


def _named(fault: str, mini_batches: Iterable[str]) -> Iterator[str]:
    """Yield one sentence that names the first of these mini-batches; none where there are none."""
    rest = iter(mini_batches)
    if shown := list(islice(rest, _SHOWN)):
        more = sum(1 for _ in rest)
        others = f" and {more:,} more" if more else ""
        yield f"{fault}: mini-batch {', '.join(shown)}{others}."
