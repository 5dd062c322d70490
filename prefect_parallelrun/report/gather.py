"""A run folder as the numbers of its report: quick, and in little memory, however long the run was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import attempt_arrays, timeline, usage
from prefect_parallelrun.report.attempt_sums import Durations, Throughput, counts
from prefect_parallelrun.report.axis import Axis, presence
from prefect_parallelrun.report.failed_items import ItemsOf
from prefect_parallelrun.report.lanes import Lanes
from prefect_parallelrun.report.page_data import Block, ReportData, Slow
from prefect_parallelrun.report.shown_settings import shown_settings
from prefect_parallelrun.report.summary import closing_line
from prefect_parallelrun.run_record import RUNNING, RunRecord, kept_definition

_SLOWEST = 20
_ITEMS = 3
"""So many items of each of them are named."""
_SLOW = f"""
SELECT mini_batch, attempt, node, process, elapsed_s, run_s,
    CASE WHEN cpu_s >= 0 AND started_at > 0 THEN cpu_s END, outcome, first, stop
FROM attempts WHERE final = 1 AND {schema.OWN} ORDER BY elapsed_s DESC LIMIT ?
"""
_ENDS = """
SELECT reason, count(*) FROM processes
WHERE ended_at IS NOT NULL AND reason NOT IN ('', 'stopped', 'cancelled') GROUP BY reason ORDER BY 2 DESC
"""
_TRIED = """
WITH last AS (
    SELECT DISTINCT mini_batch, value AS resumed_after FROM attempts
    JOIN meta ON key = 'resumed_after' AND value > 0 AND id > value
)
SELECT count(*), total(EXISTS (
    SELECT 1 FROM attempts AS earlier
    WHERE final = 0 AND earlier.mini_batch = last.mini_batch AND id <= resumed_after))
FROM last
"""


def gather(
    paths: RunPaths,
    record: RunRecord,
    summary: RunSummary,
    *,
    items_of: ItemsOf | None = None,
    failure: str | None = None,
    definition: StepDefinition | None = None,
) -> ReportData:
    """Return what the report of a run shows; a part that cannot be made is named, and costs no other.

    Args:
        paths: of the run.
        record: the run and its state; one that is `Running` has lasted until now.
        summary: what the run came to, as far as it came.
        items_of: tells the items of the slowest mini-batches; without it they are not shown.
        failure: why it did not complete, for people.
        definition: the step, where it may not have been written down; else it is read.

    Raises:
        OutputError: the journal cannot be read.
    """
    definition = definition or _definition(paths)
    unmade: dict[str, str] = {}
    about: dict[str, Any] = {
        "step": record.step,
        "run_id": record.run_id,
        "state": record.state,
        "closing_line": closing_line(summary),
        "output": (definition and definition.output_place) or record.output,
        "logs": str(paths.logs),
        "failure": failure,
        "summary": summary,
        "settings": (),
        "unmade": unmade,
        "started_at": record.started_at.timestamp(),
    }
    if definition is not None:
        with _making(unmade, "settings"):
            about["settings"] = shown_settings(definition)
    if not paths.journal.exists():
        axis = Axis(record.started_at.timestamp(), [])
        told = _told(axis, Throughput(axis), Durations())
        return ReportData(**about, **told, **_NOTHING, reuse=record.reuse)
    with Journal(paths.journal) as journal:
        return ReportData(**about, **_of_journal(paths, record, summary, journal, items_of, unmade))


def _of_journal(
    paths: RunPaths,
    record: RunRecord,
    summary: RunSummary,
    journal: Journal,
    items_of: ItemsOf | None,
    unmade: dict[str, str],
) -> dict[str, Any]:
    nodes = journal.nodes()
    now = time.time() if record.state == RUNNING else None
    present = presence(journal, nodes, now)
    axis = Axis(record.started_at.timestamp(), present.values(), now or 0.0)
    seen = {node: until for node, (_, until) in present.items()}
    throughput, durations = Throughput(axis), Durations()
    ((started,),) = journal.select("SELECT count(*) FROM processes WHERE pid > 0")
    told = {**_NOTHING, "nodes": nodes, "processes_started": started, "reuse": record.reuse}
    takers: dict[str, Callable[[attempt_arrays.Attempts], None]] = {
        "throughput": throughput.add,
        "durations": durations.add,
    }
    with _making(unmade, "timeline"):
        lanes = Lanes.of(journal, nodes, seen)
        shares = _shares(journal, lanes, axis, started)
        if shares is not None:
            takers["timeline"] = shares.add
    with _making(unmade, *takers):
        for page in attempt_arrays.pages(journal, axis.origin):
            for section in takers.keys() - unmade.keys():
                with _making(unmade, section):
                    takers[section](page)
    if "timeline" not in unmade:
        with _making(unmade, "timeline"):
            told |= _timeline(journal, lanes, axis, shares)
    with _making(unmade, "ends"):
        told["ends"] = list(journal.select(_ENDS))
    with _making(unmade, "slowest"):
        told["slowest"] = _slowest(journal, items_of, files=record.kind == "file")
    with _making(unmade, "resources"):
        told["node_usage"] = usage.node_usage(paths, nodes, axis)
        told["process_usage"] = usage.process_usage(paths, nodes, axis)
    if not record.reuse:
        with _making(unmade, "reuse"):
            told["reuse"] = _reuse(journal, summary, record.base)
    return {**told, **_told(axis, throughput, durations)}


@contextmanager
def _making(unmade: dict[str, str], *sections: str) -> Iterator[None]:
    """Note why sections of the report cannot be made, if they cannot."""
    try:
        yield
    except Exception as error:
        for section in sections:
            unmade.setdefault(section, f"{type(error).__name__}: {error}")


def _shares(
    journal: Journal, lanes: Lanes, axis: Axis, processes_started: int
) -> timeline.Shares | None:
    """Return what adds up the timeline; None where there is little enough to draw all of it."""
    ((attempts,),) = journal.select(f"SELECT count(*) FROM attempts WHERE {schema.OWN}")
    if max(attempts, processes_started) > timeline.SINGLE or lanes.wide:
        return timeline.Shares(lanes, axis)
    return None


def _timeline(
    journal: Journal, lanes: Lanes, axis: Axis, shares: timeline.Shares | None
) -> dict[str, Any]:
    blocks: Sequence[Block]
    blocks = timeline.single_blocks(journal, lanes, axis) if shares is None else shares.blocks()
    return {
        "lanes": lanes.names,
        "lanes_are_nodes": lanes.wide,
        "lanes_left_out": lanes.left_out,
        "blocks": blocks,
        "blocks_are_shares": shares is not None,
    }


_NOTHING: dict[str, Any] = {
    "nodes": (),
    "processes_started": 0,
    "ends": (),
    "lanes": (),
    "blocks": (),
    "blocks_are_shares": False,
    "slowest": (),
    "node_usage": (),
    "process_usage": (),
}
"""Of a run that ended before anything ran."""


def _told(axis: Axis, throughput: Throughput, durations: Durations) -> dict[str, Any]:
    edges, bars = durations.histogram()
    return {
        "origin": axis.origin,
        "duration_s": axis.length,
        "gaps": axis.gaps,
        "bin_s": throughput.bin_s,
        "succeeded": counts(throughput.succeeded),
        "failed": counts(throughput.failed),
        "items": counts(throughput.items),
        "duration_edges": edges,
        "duration_counts": bars,
        "duration_quantiles": durations.quantiles(),
        "cpu_cells": durations.cells(),
        "cpu_total_s": durations.cpu_total_s,
        "elapsed_total_s": durations.elapsed_total_s,
    }


def _reuse(journal: Journal, summary: RunSummary, base: str | None) -> list[str]:
    """Say what was not run again in the last sitting, where its command did not say so itself."""
    ((tried, again),) = journal.select(_TRIED)
    again = int(again)
    items = journal.taken_over()
    done = summary.mini_batches.reused
    if not done and not again:
        return []
    said = (
        (done, "done in earlier sittings, and not run again"),
        (again, "run again, as they had failed in earlier sittings"),
        (tried - again, "run for the first time"),
    )
    sentences = [f"{count:,} of the mini-batches were {what}" for count, what in said if count]
    return [f"{items:,} items were taken over of run {base}", *sentences] if items else sentences


def _slowest(journal: Journal, items_of: ItemsOf | None, *, files: bool) -> list[Slow]:
    """Return the slowest attempts; for part of a table, `items_of` tells where all of it is."""
    rows = list(journal.select(_SLOW, (_SLOWEST,)))
    items: dict[int, list[str]] = {}
    if items_of is not None:
        wanted = sorted({row[0] for row in rows})
        items = dict(zip(wanted, (names for _, names in items_of(wanted)), strict=False))
    found: list[Slow] = []
    for mini_batch, attempt, node, process, elapsed_s, run_s, cpu_s, outcome, first, stop in rows:
        part = slice(first, stop) if files else slice(None)
        found.append(
            Slow(
                mini_batch=mini_batch,
                attempt=attempt,
                node=node,
                process=process,
                elapsed_s=elapsed_s,
                run_s=run_s,
                cpu_s=cpu_s,
                outcome=outcome,
                part=None if stop is None else (first, stop),
                items=tuple(items.get(mini_batch, [])[part][:_ITEMS]),
            )
        )
    return found


def _definition(paths: RunPaths) -> StepDefinition | None:
    """Return the step, where it was written down and can be read."""
    try:
        return kept_definition(paths)
    except OutputError:
        return None
