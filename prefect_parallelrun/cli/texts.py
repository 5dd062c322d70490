"""What the commands that look print, for people and for machines."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.projection import Projection, process_count
from prefect_parallelrun.errors import refuse
from prefect_parallelrun.housekeeping import Verdict
from prefect_parallelrun.models import MiniBatch, Reuse
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.planning.outline import Outline, SizeBin
from prefect_parallelrun.report import status
from prefect_parallelrun.report.failure import entry, headline
from prefect_parallelrun.report.overview import PROGRESS_S
from prefect_parallelrun.report.progress import RUNNING
from prefect_parallelrun.report.status import Status
from prefect_parallelrun.report.summary import errors_line
from prefect_parallelrun.report.terminal import TerminalBar
from prefect_parallelrun.report.wording import duration, one_line, visible

ITEMS_SHOWN = 3
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_BAR_WIDTH = 40


# -- status ----------------------------------------------------------------------------------


def follow(paths: RunPaths) -> None:
    """Show a run's progress on standard error until no driver works on it: a bar, or lines."""
    stage, said_at = "", 0.0
    with TerminalBar(paths.root.parent.name, level=logging.INFO) as bar:
        for pulse in status.follow(paths):
            if not pulse.goes_on:
                return
            now = pulse.stage or pulse.state
            bar.progress(now, pulse.standing)
            if bar.is_shown or (now == stage and time.monotonic() - said_at < PROGRESS_S):
                continue
            stage, said_at = now, time.monotonic()
            line = str(pulse.standing) if now == RUNNING and pulse.standing else f"{now} …"
            print(visible(line), file=sys.stderr, flush=True)


def show_status(found: Status) -> None:
    """Print where a run stands."""
    pulse = found.pulse
    lines = [("step", found.step), ("run", found.run_id), ("state", pulse.state)]
    if pulse.driver is not None:
        lines.append(("driver", pulse.driver))
        lines.append(("stage", pulse.stage or "not told yet"))
        if pulse.standing is not None:
            lines.append(("progress", str(pulse.standing)))
            lines += [("", doing) for doing in pulse.standing.doing]
    elif found.again is not None:
        lines.append(("", found.again))
    if found.started_at is not None:
        lines.append(("started", _moment(found.started_at)))
    if found.ended_at is not None:
        lines.append(("ended", _moment(found.ended_at)))
    lines += [("items", found.items), ("mini-batches", found.mini_batches)]
    lines += [("reuse", sentence) for sentence in found.reuse]
    for node in found.nodes:
        left = "" if node.left_at is None else f", left{f': {node.reason}' if node.reason else ''}"
        lines.append(
            (
                "node",
                f"{node.node} on {node.host or '?'}, {_count(node.processes, 'process', 'processes')}{left}",
            )
        )
    if found.newest_error is not None:
        error = found.newest_error
        lines.append(("newest error", headline(error)))
        lines.append(("", f"× {error.count:,}; all: parallelrun errors {found.run_id}"))
    places = {
        "output": found.output,
        "failed items": found.failed_items,
        "result": found.job_result,
        "report": found.report,
        "logs": found.logs,
    }
    lines += [(name, str(place)) for name, place in places.items() if place]
    _print_columns(lines)


def status_json(found: Status) -> dict[str, Any]:
    """Return where a run stands, for machines."""
    pulse = found.pulse
    summary = asdict(found.summary)
    return {
        "step": found.step,
        "run": found.run_id,
        "state": pulse.state,
        "going_on": pulse.goes_on,
        "driver": pulse.driver,
        "stage": pulse.stage,
        "standing": None if pulse.standing is None else asdict(pulse.standing),
        "told_at": _iso(pulse.told_at),
        "started_at": _iso(found.started_at),
        "ended_at": _iso(found.ended_at),
        "mini_batches": summary["mini_batches"],
        "items": summary["items"],
        "attempts": summary["attempts"],
        "rows": summary["rows"],
        "closing_line": found.items,
        "distinct_errors": found.summary.distinct_errors,
        "newest_error": None if found.newest_error is None else asdict(found.newest_error),
        "reuse": found.reuse,
        "again": found.again,
        "nodes": [asdict(node) for node in found.nodes],
        "run_folder": found.run_folder,
        "output": found.output or None,
        "logs": found.logs,
        "report": found.report,
        "failed_items": found.failed_items,
        "job_result": found.job_result,
    }


# -- errors ----------------------------------------------------------------------------------


def show_errors(found: Status, limit: int) -> None:
    """Print the distinct errors of a run, and what to open."""
    summary, groups = found.summary, found.summary.errors
    if not groups and not summary.missing_rows:
        print(f"no errors in run {found.run_id} ({found.pulse.state})")
        if summary.items.failed:
            print(f"{_items(summary.items.failed)} failed: {found.failed_items}")
        return
    print(f"run {found.run_id} ({found.pulse.state})")
    print(visible(errors_line(summary)))
    for number, group in enumerate(groups[:limit], 1):
        print(f"\n{visible(entry(number, group))}", end="")
    if len(groups) > limit:
        print(f"\n{len(groups) - limit:,} more: parallelrun errors --limit {len(groups)}")
    print()
    if summary.missing_rows:
        print(
            f"{_items(summary.missing_rows)} failed since run() returned fewer elements than items"
        )
    if summary.items.failed or summary.mini_batches.failed:
        listed = found.failed_items or "listed once the run has ended"
        print(f"{_items(summary.items.failed)} failed: {listed}")
        print(f"try one again here: parallelrun replay {found.run_id} MINI_BATCH")


# -- plan and explain ------------------------------------------------------------------------


def show_plan(
    definition: StepDefinition,
    plan: Plan,
    outline: Outline,
    largest: Sequence[tuple[MiniBatch, Sequence[str]]],
    reuse: Reuse,
    projection: Projection | None,
) -> None:
    """Print what would run."""
    config = definition.config
    nouns = {"file": "files", "tabular": "rows", "rank": "items"}
    items = "not counted yet" if outline.items is None else f"{outline.items:,}"
    processes = process_count(config)
    lines = [
        ("step", definition.name),
        ("mini-batches", f"{outline.mini_batches:,}"),
        (nouns[plan.kind], items),
        ("to read", _bytes(outline.bytes)),
        (
            "processes",
            f"{processes:,} on {_count(config.node_count, 'node')}",
        ),
    ]
    lines += [("note", note) for note in plan.notes]
    lines += [("reuse", sentence) for sentence in reuse.reasons]
    if projection is not None:
        lines += [("time", sentence) for sentence in _projected(projection)]
    _print_columns(lines)
    if outline.bytes:
        print("\nsizes of mini-batches")
        _print_histogram(outline.sizes)
    if largest:
        print("\nthe largest")
        for one, items_shown in largest:
            count = "" if one.items is None else f", {_items(one.items)}"
            print(f"  {one.index:,}: {_bytes(one.size)}{count}: {one_line(', '.join(items_shown))}")


def show_reuse(reuse: Reuse) -> None:
    """Print what would be taken over of earlier runs."""
    for sentence in reuse.reasons:
        print(one_line(sentence))


def _projected(projection: Projection) -> list[str]:
    one = projection
    return [
        f"{duration(one.mean_s)} per mini-batch ({duration(one.least_s)} to {duration(one.most_s)}, "
        f"{one.timed:,} timed here), {duration(one.start_s)} to start",
        f"about {duration(one.total_s)} (± {duration(one.doubt_s)}) for "
        f"{_count(one.mini_batches, 'mini-batch', 'mini-batches')} "
        f"on {_count(one.processes, 'process', 'processes')}, if each is as fast as this one",
    ]


def _print_histogram(sizes: Sequence[SizeBin]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    most = max(one.mini_batches for one in sizes)
    for one in sizes:
        span = f"{_bytes(one.least)} to {_bytes(one.below)}" if one.least else "nothing to read"
        table.add_row(
            f"  {span}", f"{one.mini_batches:,}", Bar(most, 0, one.mini_batches, width=_BAR_WIDTH)
        )
    Console(highlight=False, width=max(100, Console().width)).print(table)


# -- clean -----------------------------------------------------------------------------------


def age(text: str) -> timedelta:
    """Return a duration that a person wrote: `90m`, `36h`, `30d`, `8w`."""
    match = re.fullmatch(r"([0-9]+) ?([mhdw])", text.strip())
    if match is None:
        raise refuse("older-than", text, "give minutes, hours, days or weeks: 90m, 36h, 30d, 8w")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except (OverflowError, ValueError):
        raise refuse("older-than", text, "no run is that old") from None


def show_cleaned(
    verdicts: Sequence[Verdict], refused: Mapping[Path, str], *, dry_run: bool
) -> None:
    """Print what became of each run folder."""
    gone = [one for one in verdicts if one.kept is None and one.folder not in refused]
    for one in verdicts:
        if one.folder in refused:
            print(refused[one.folder], file=sys.stderr)
            continue
        what = f"kept, {one.kept}" if one.kept else ("would be removed" if dry_run else "removed")
        name = one_line(f"{one.step}/{one.run_id}")
        print(f"{name} ({one.state}, {_bytes(one.bytes)}): {what}")
    would = "would be removed" if dry_run else "removed"
    freed = _bytes(sum(one.bytes for one in gone))
    print(f"{len(gone):,} of {len(verdicts):,} run folders {would}, {freed}")


def cleaned_json(
    verdicts: Sequence[Verdict], refused: Mapping[Path, str], *, dry_run: bool
) -> dict[str, Any]:
    """Return what became of each run folder, for machines."""
    gone = [one for one in verdicts if one.kept is None and one.folder not in refused]
    return {
        "dry_run": dry_run,
        "removed": [asdict(one) for one in gone],
        "kept": [asdict(one) for one in verdicts if one.kept is not None],
        "refused": {str(folder): why for folder, why in refused.items()},
        "bytes": sum(one.bytes for one in gone),
    }


# -- inside ----------------------------------------------------------------------------------


def _print_columns(lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in lines)
    before = ""
    for name, value in lines:
        print(f"{'' if name == before else name:{width}}  {one_line(value)}")
        before = name


def _count(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def _items(count: int) -> str:
    return _count(count, "item")


def _bytes(size: int) -> str:
    """Write a size in units of 1024, as `mini_batch_size` has them."""
    if size < 1024:
        return _count(size, "byte")
    value = float(size)
    for unit in ("KB", "MB", "GB"):
        value /= 1024
        if value < 1024 or unit == "GB":
            break
    return f"{value:,.{0 if value >= 100 or value.is_integer() else 1}f} {unit}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
