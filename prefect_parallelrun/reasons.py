"""Why a step runs again, or does not: what it would take over of its earlier runs, in sentences (R210)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.changes import changes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.reopening import NotResumable, refuse_losses
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import Reuse, RunSummary
from prefect_parallelrun.output.earlier import read_earlier
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import driver_of
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.failure import first_errors
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.run_record import RUNNING, RunRecord, find_run

_NAMED = 10
"""So many mini-batches are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A step as it is now, for which an earlier run is looked for."""

    definition: StepDefinition
    seen: Sequence[reuse.Seen]
    """All that its script can see."""
    parts: Mapping[str, str]
    """See `reuse.fingerprint_parts`."""
    fingerprint: str

    @property
    def blind(self) -> list[str]:
        """Names of the data whose changes nobody can see, so that an earlier result may be outdated."""
        return [
            _named(one)
            for one in self.seen
            # A local side input that is open to all shows its changes by its files.
            if not one.dataset.shows_changes(one.files)
            and not (one.name.startswith("side") and one.dataset.storage.is_local)
        ]


def earlier_run(
    wanted: Wanted,
    runs: Path,
    *,
    afresh: str | None = None,
    task_run: str | None = None,
    expiration: timedelta | None = None,
) -> tuple[RunRecord | None, str]:
    """Return the run that a step goes on with, and why it is none, or none that has ended.

    Args:
        wanted: the step.
        runs: the folder of all its runs.
        afresh: why no earlier result is wanted; then only a run of the same task run is gone on with.
        task_run: Prefect's id of a task run that is tried again; None: of one that is new.
        expiration: how long a result holds.
    """
    if afresh and task_run is None:
        return None, f"nothing reused: {afresh}"
    found = find_run(runs, wanted.fingerprint, task_run=task_run if afresh else None)
    if found is None:
        return None, f"nothing reused: {afresh}" if afresh else ""
    record = RunRecord.read(found)
    if not record.completed:
        return record, ""
    unused = f"nothing reused of run {record.run_id} ({record.state})"
    if wanted.blind:
        return None, f"{unused}: it cannot be seen whether {' and '.join(wanted.blind)} changed"
    # The record was last written when the run ended, as Prefect's was.
    age = timedelta(seconds=time.time() - found.record.stat().st_mtime)
    if expiration is not None and age >= expiration:
        return None, f"{unused}: it is older than cache_expiration={expiration}"
    if record.append_row_file_name is None and not manifest.is_intact(found.root):
        return None, f"{unused}: {_lost(found, record)}"
    return record, ""


def explain(wanted: Wanted, runs: Path, record: RunRecord | None, why_none: str) -> Reuse:
    """Return what would be taken over of the run that `earlier_run` returned, in sentences.

    Raises:
        OutputError: the journal of that run cannot be read.
    """
    if record is None:
        return Reuse(reasons=(why_none or _nothing_alike(wanted, runs),))
    paths = RunPaths(runs / record.run_id)
    driver = driver_of(paths)
    if driver is not None and record.state == RUNNING:
        return Reuse(
            run_id=record.run_id,
            reasons=(f"run {record.run_id} is being worked on by another driver: {driver}",),
        )
    try:
        refuse_losses(paths, record)
    except NotResumable as reason:
        return Reuse(reasons=(f"nothing reused: {reason}",))
    if not paths.journal.exists():
        return Reuse(
            run_id=record.run_id, reasons=(f"run {record.run_id} ended before anything ran",)
        )
    with Journal(paths.journal) as journal:
        retry_missing = wanted.definition.config.error_threshold != -1
        kept = read_earlier(journal, retry_missing=retry_missing).mini_batches
        summary = summarise(journal, mini_batches=record.mini_batches, items=record.items)
    if record.completed and kept == summary.mini_batches.total:
        return Reuse(
            run_id=record.run_id,
            whole=True,
            mini_batches=kept,
            reasons=_whole(wanted, paths, record),
        )
    return Reuse(
        run_id=record.run_id,
        mini_batches=kept,
        reasons=(
            f"run {record.run_id} ({_state(record)}) is gone on with: {kept:,} of "
            f"{summary.mini_batches.total:,} mini-batches are done and do not run again",
            *_again(summary, kept),
        ),
    )


def _whole(wanted: Wanted, paths: RunPaths, record: RunRecord) -> tuple[str, ...]:
    used = (
        f"all reused: run {record.run_id} ({record.state}) has the same script, settings and data"
    )
    if reuse.is_intact(paths.root, RemoteFolder.of(wanted.definition.output)):
        return (used,)
    return (used, f"{_lost(paths, record)}; it is written again from the rows that are kept")


def _again(summary: RunSummary, kept: int) -> list[str]:
    """Say which mini-batches run again, and why each does."""
    counts = summary.mini_batches
    sentences = []
    if counts.failed:
        failed = summary.failed_mini_batches
        why = f": {first_errors(summary)[0]}" if summary.errors else ""
        sentences.append(f"{counts.failed:,} failed last time and run again ({_list(failed)}){why}")
    missing = counts.succeeded - kept
    if missing > 0:
        sentences.append(f"{missing:,} are done in part, or have rows missing: the rest runs again")
    left = counts.total - counts.succeeded - counts.failed
    if left > 0:
        sentences.append(f"{left:,} had not been run yet")
    return sentences


def _nothing_alike(wanted: Wanted, runs: Path) -> str:
    """Say in what the newest run of the step differs from the step as it is now."""
    for folder in sorted(runs.glob("*/"), key=lambda one: one.name, reverse=True):
        paths = RunPaths(folder)
        try:
            record = RunRecord.read(paths)
        except OutputError:
            continue  # not a run folder, or one whose driver was killed before it began
        unused = (
            f"nothing reused of run {record.run_id} ({_state(record)}), the newest of this step"
        )
        if not record.grouping:
            return f"{unused}: it ended before anything ran"
        if not record.fingerprint:
            return f"{unused}: the script or an input changed between its rows, so it stands for no step"
        differences = changes(
            paths, record, wanted.definition, seen=wanted.seen, parts=wanted.parts
        )
        if not differences:
            return f"{unused}: another version of prefect-parallelrun made it"
        return f"{unused}: {'; '.join(differences)}"
    return f"nothing reused: this is the first run of step {wanted.definition.name}"


def _lost(paths: RunPaths, record: RunRecord) -> str:
    """Say what became of an output that is not as its run left it."""
    lost = manifest.lost_files(paths.root) or []
    shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    return f"its output {record.output} was deleted or changed{f': {shown}' if shown else ''}"


def _state(record: RunRecord) -> str:
    return "Interrupted" if record.state == RUNNING else record.state


def _named(one: reuse.Seen) -> str:
    return f"{one.name} ({one.dataset.name})" if one.dataset.name else one.name


def _list(indices: Sequence[int]) -> str:
    more = " and more" if len(indices) > _NAMED else ""
    return ", ".join(f"{index:,}" for index in indices[:_NAMED]) + more
