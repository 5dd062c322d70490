"""Why a step runs again, or does not: what it would take over of its earlier runs, in sentences (R210)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.changes import changes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.reopening import NotResumable, refuse_losses
from prefect_parallelrun.errors import OutputError, ParallelRunError
from prefect_parallelrun.incremental import Planned
from prefect_parallelrun.models import Reuse, RunSummary
from prefect_parallelrun.output.earlier import read_earlier
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import driver_of
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.failure import first_errors
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.run_record import RUNNING, RunRecord, find_run, first_files

_BASES = 10
"""So many earlier runs are looked at for what a new one can take over."""
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
            one.title
            for one in self.seen
            # A local side input that is open to all shows its changes by its files.
            if not one.dataset.shows_changes(one.files)
            and not (not one.is_input and one.dataset.storage.is_local)
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
    if record.has_expired(expiration):
        return None, f"{unused}: some of it is older than cache_expiration={expiration}"
    if record.append_row_file_name is None and not manifest.is_intact(found.root):
        return None, f"{unused}: {_lost(found, record)}"
    return record, ""


def bases(wanted: Wanted, runs: Path, *, expiration: timedelta | None = None) -> list[RunPaths]:
    """Return runs with the same settings, of which mini-batches may be taken over: the likeliest first.

    These are such as begin with some of the same files; of runs that are alike the newest.

    Args:
        wanted: the step.
        runs: the folder of all its runs.
        expiration: how long a result holds.
    """
    definition = wanted.definition
    if definition.options.rank_mini_batch_count is not None:
        return []  # no change of an input shows in which of them it matters
    if any(not one.is_input and one.title in wanted.blind for one in wanted.seen):
        return []
    settings = reuse.settings_fingerprint(definition, wanted.parts)
    paths_now = {one.name: {file.path for file in one.files} for one in wanted.seen if one.is_input}
    found: list[tuple[bool, float, RunPaths]] = []
    for folder in runs.glob("*/"):
        paths = RunPaths(folder)
        with suppress(OSError, ParallelRunError):
            # Of thousands of runs most are others; these need not be understood.
            if settings.encode() not in paths.record.read_bytes():
                continue
            record = RunRecord.read(paths)
            if record.has_expired(expiration):
                continue
            # One with the same fingerprint is not gone on with for a reason that holds here, too; one
            # without any has rows of two scripts or inputs.
            if record.settings != settings or record.fingerprint in ("", wanted.fingerprint):
                continue
            alike = _begins_alike(paths, paths_now)
            found.append((alike, record.started_at.timestamp(), paths))
    found.sort(key=lambda one: one[:2], reverse=True)
    return [paths for *_, paths in found[:_BASES]]


def _begins_alike(paths: RunPaths, now: Mapping[str, Collection[str]]) -> bool:
    """Return whether an input has some of the first files that it had in an earlier run; cheap.

    Args:
        paths: of the earlier run.
        now: names of the inputs, with the paths of their files.
    """
    try:
        first = first_files(paths, now)
        return any(file.path in now[name] for name, files in first for file in files)
    except (OSError, ValueError, TypeError):
        return False


def explain_new(wanted: Wanted, runs: Path, planned: Planned, told: tuple[str, ...]) -> Reuse:
    """Return what a new run takes over, in sentences.

    Args:
        wanted: the step.
        runs: the folder of all its runs.
        planned: how the new run is planned.
        told: why no run is gone on with, where that is not for want of one.
    """
    told += planned.reasons
    if planned.base is None:
        return Reuse(reasons=told or (nothing_alike(wanted, runs),))
    done = planned.base.done
    return Reuse(
        base=planned.base.run_id,
        whole=done == len(planned.plan),
        mini_batches=done,
        reasons=told,
    )


def explain(wanted: Wanted, runs: Path, record: RunRecord) -> Reuse:
    """Return what would be taken over of the run that `earlier_run` returned, in sentences.

    Raises:
        OutputError: the journal of that run cannot be read.
    """
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


def nothing_alike(wanted: Wanted, runs: Path) -> str:
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


def _list(indices: Sequence[int]) -> str:
    more = " and more" if len(indices) > _NAMED else ""
    return ", ".join(f"{index:,}" for index in indices[:_NAMED]) + more
