"""What Prefect's pages say of a run: a line while it goes on, a summary and a table when it is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from prefect_parallelrun.models import Counts, ErrorGroup, RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import summary as account
from prefect_parallelrun.report.failure import headline
from prefect_parallelrun.report.progress import RUNNING, Standing, clock, pace
from prefect_parallelrun.report.wording import counted, duration, moment, one_line
from prefect_parallelrun.run_record import RunRecord
from prefect_parallelrun.ui.artifacts import Content
from prefect_parallelrun.ui.markdown import block, code, plain

ROWS = 100
"""So many records of failed items are in the table."""
ERRORS = 10
"""So many distinct errors are in the summary."""
_ITEMS = 3
_CELL = 120
"""Characters of an error in the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a sitting ended."""

    record: RunRecord
    summary: RunSummary
    output: str | None
    """The output file, or the folder; None of a run that did not complete."""
    failure: str | None
    """Why it did not complete; None if it did."""
    opened: bool
    """Whether it came as far as the journal; else reports in the run folder are not of this sitting."""
    at: float
    """Seconds since the epoch (UTC), when it ended."""
    took_s: float
    """Seconds that the sitting took."""


def progress(stage: str, standing: Standing, ended: Ended | None) -> Content:
    """Return where a run stands: per cent of the mini-batches, and one line."""
    if ended is not None:
        # What runs again was taken out of the standing; the summary knows what is kept.
        kept = ended.summary.mini_batches
        standing = replace(
            standing,
            planned=ended.record.mini_batches,
            succeeded=kept.succeeded,
            failed=kept.failed,
        )
    counts = [f"{standing.settled:,} of {standing.of_all}"]
    counts += [f"{standing.failed:,} failed"] if standing.failed else []
    counts += [f"{standing.retried:,} retried"] if standing.retried else []
    line = ", ".join(counts)
    share = 100 * standing.settled / standing.planned if standing.planned else 0.0
    if ended is not None:
        done = standing.succeeded / standing.planned if standing.planned else 0.0
        share = 100 * done if ended.failure is not None else 100.0
        line = f"{ended.record.state}: {line}, in {clock(ended.took_s)}"
    elif not standing.settled and standing.doing:
        line = f"{line}; {plain('; '.join(standing.doing))}"
    elif stage == RUNNING:
        line = f"{line}, {pace(standing.rate)}"
        line += "" if standing.left_s is None else f", {clock(standing.left_s)} left"
    else:
        line = f"{line}; {plain(stage)}"
    return Content(round(share, 1), line)


def dashboard(url: str, run_id: str) -> Content:
    """Return a link to the Dask dashboard."""
    return Content(
        f"[Dask dashboard](<{url}>)",
        f"What Dask shows of run {run_id} while it lasts; the pages of a cluster that ParallelRun "
        "started itself end with the run.",
    )


def summary(paths: RunPaths, ended: Ended) -> Content:
    """Return what a sitting came to, in Markdown."""
    record = ended.record
    when = f"ended {moment(ended.at)} after {duration(ended.took_s)}"
    parts = [
        f"## {record.state}",
        f"Step {code(record.step)}, run {code(record.run_id)}, {when}",
        f"**{account.closing_line(ended.summary)}**",
        *_counts(ended),
        f"{counted(ended.summary.attempts, 'attempt')}, {counted(ended.summary.rows, 'row')}",
    ]
    if ended.failure is not None:
        parts += ["### Why it did not complete", block(ended.failure.split("\n\n")[0])]
    parts += _errors(ended.summary)
    if record.reuse:
        parts += ["### Reuse", "\n".join(f"- {plain(why)}" for why in record.reuse)]
    parts += ["### Where to look", "\n".join(_places(paths, ended))]
    return Content("\n\n".join(parts), f"{record.state}: {account.closing_line(ended.summary)}")


def failed_items(paths: RunPaths, ended: Ended) -> Content | None:
    """Return the first of the failed items as a table; None where there are none."""
    if not ended.opened or not paths.failed_items.is_file():
        return None
    with paths.failed_items.open(encoding="ascii") as lines:
        records = [json.loads(line) for line in islice(lines, ROWS)]
        more = next(lines, None) is not None
    if not records:
        return None
    shown = sum(record["count"] for record in records)
    told = f"{counted(ended.summary.items.failed, 'item')} failed"
    if more:
        told += f"; of these {shown:,} are here, {ended.summary.items.failed - shown:,} more"
        told += f" in {code(str(paths.failed_items))}"
    return Content(json.dumps([_row(record) for record in records]), told)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    item = record["item"]
    if item is None:
        among = record.get("candidates", [])
        rest = f" and {len(among) - _ITEMS} more" if len(among) > _ITEMS else ""
        item = f"{record['count']} of {', '.join(among[:_ITEMS])}{rest}"
    return {
        "Mini-batch": record["mini_batch"],
        "Item": one_line(item),
        "Error": one_line((record["error"] or "")[:_CELL]),
        "Reason": record["reason"],
        "Attempts": record["attempts"],
        "Process": f"{record['node']} {record['process']}".rstrip(),
        "Log": one_line(next(iter(record["log_files"]), "")),
    }


def _counts(ended: Ended) -> Iterator[str]:
    """Yield a table of what was there and what became of it, and what is not known of that."""

    def row(what: str, counts: Counts, known: bool) -> str:
        total, rest = (f"{counts.total:,}", f"{_left(counts):,}") if known else ("unknown",) * 2
        done = f"{counts.succeeded:,} | {counts.reused:,} | {counts.failed:,}"
        return f"| {what} | {total} | {done} | {rest} |"

    record, summary = ended.record, ended.summary
    planned = record.mini_batches is not None
    items = record.items is not None or (planned and not _left(summary.mini_batches))
    yield "\n".join(
        (
            "| | total | succeeded | of these reused | failed | not run |",
            "|---|--:|--:|--:|--:|--:|",
            row("mini-batches", summary.mini_batches, planned),
            row("items", summary.items, items),
        )
    )
    if not items:
        yield "How many items there are in mini-batches that did not run, only reading them tells."


def _left(counts: Counts) -> int:
    """Return how many were not run."""
    return max(0, counts.total - counts.succeeded - counts.failed)


def _errors(summary: RunSummary) -> Iterator[str]:
    if summary.missing_rows:
        yield (
            f"{counted(summary.missing_rows, 'item')} failed because `run()` returned fewer elements "
            "than its mini-batch has items"
        )
    if not summary.errors:
        return
    distinct = summary.distinct_errors
    yield f"### {distinct:,} distinct error{'s' if distinct > 1 else ''}"
    yield "\n".join(_error(error) for error in summary.errors[:ERRORS])
    if distinct > ERRORS:
        yield f"and {distinct - ERRORS:,} more"
    if trace := summary.errors[0].traceback:
        yield f"Stack trace of the {'first' if distinct > 1 else 'error'}:"
        yield block(trace)


def _error(error: ErrorGroup) -> str:
    """Return an error as an entry of a list: what, how often, and where first."""
    where = (
        "outside of any mini-batch"
        if error.first_mini_batch is None
        else f"in mini-batch {error.first_mini_batch:,}"
    )
    if error.node:
        where += f" on {error.node} {error.process}".rstrip()
    if error.first_items:
        more = ", …" if len(error.first_items) > _ITEMS else ""
        among = "among " if len(error.first_items) > 1 else ""
        where += f": {among}{', '.join(map(code, error.first_items[:_ITEMS]))}{more}"
    lines = [f"- {code(headline(error))} × {error.count:,}", f"  first {where}"]
    lines += [f"  log: {code(error.log_file)}"] if error.log_file else []
    return "  \n".join(lines)


def _places(paths: RunPaths, ended: Ended) -> Iterator[str]:
    """Yield where there is more; a page of a server may not link to files."""
    if ended.output is not None:
        yield f"- output: {code(ended.output)}"
    if ended.opened and paths.report.is_file():
        yield f"- report, for a browser: {code(str(paths.report))}"
    yield f"- logs: {code(str(paths.logs))}"
    if ended.opened and paths.failed_items.is_file():
        yield f"- failed items: {code(str(paths.failed_items))}"
    if ended.summary.errors:
        yield f"- all errors with their stack traces: {code(f'parallelrun errors {paths.root.name}')}"
