"""Where a run stands, read from its folder alone: also by another process, and of a run that is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import Counts, ErrorGroup, NodeRecord, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import driver_of
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.failure import kept_process_errors
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun.report.summary import (
    account,
    closing_line,
    summarise,
    with_process_errors,
)
from prefect_parallelrun.run_record import RUNNING, RunRecord

INTERRUPTED = "Interrupted"
"""The state of a run whose driver was killed: the next one goes on with it."""
STARTING = "Starting"
"""The state of a run whose driver has not yet planned it."""
LOOK_S = 0.5

_NEWEST_ERROR = """
SELECT e.type, e.location FROM attempts AS a JOIN errors AS e ON e.id = a.error
WHERE final = 1 OR outcome NOT IN ('node_lost', 'cancelled') ORDER BY a.id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The little of a run that changes all the time; cheap to read."""

    state: str
    """As it really is: that of the record, `Interrupted`, or `Starting`."""
    driver: str | None
    """Who works on it now; None: nobody."""
    stage: str | None
    """What the sitting is at, `running` while mini-batches run; None where no driver works on it."""
    standing: Standing | None
    """As it was last told; None before mini-batches run."""
    told_at: datetime | None
    """UTC, when that was."""

    @property
    def goes_on(self) -> bool:
        """Whether a driver works on the run."""
        return self.driver is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run stands."""

    step: str
    run_id: str
    pulse: Pulse
    started_at: datetime | None
    """UTC; None before the run was planned."""
    ended_at: datetime | None
    """UTC, when the last sitting ended; None while it goes on, or where its driver was killed."""
    items: str
    """What came in and what became of it: `in 1,000 = out 988 + failed 12 (items)`."""
    mini_batches: str
    """The same of mini-batches."""
    summary: RunSummary
    """With the errors of processes that never got as far as a mini-batch, once the sitting has ended."""
    nodes: tuple[NodeRecord, ...]
    newest_error: ErrorGroup | None
    """Of the distinct errors the one that came last."""
    reuse: tuple[str, ...]
    """See `RunRecord.reuse`."""
    again: str | None
    """Of an interrupted run: how one goes on with it."""
    run_folder: Path
    output: str
    """The output file, or the folder if there is none; empty before the run was planned."""
    logs: Path
    report: Path | None
    failed_items: Path | None
    job_result: Path | None


def pulse_of(paths: RunPaths) -> Pulse:
    """Return what is going on in a run folder now.

    Raises:
        OutputError: this is no run folder.
    """
    driver = driver_of(paths)
    record = _record(paths)
    if driver is None and record is not None and record.state == RUNNING:
        # It may have ended in between: the record is written before the lock is let go.
        record = _record(paths)
    if record is None:
        state = INTERRUPTED if driver is None else STARTING
    elif record.state == RUNNING and driver is None:
        state = INTERRUPTED
    elif driver is not None:
        state = RUNNING  # gone on with, or about to let go
    else:
        state = record.state
    told = _progress(paths)
    at = told.get("at")
    return Pulse(
        state=state,
        driver=None if driver is None else str(driver),
        stage=None if driver is None else told.get("stage"),
        standing=_standing(told.get("standing")),
        told_at=None if at is None else datetime.fromtimestamp(at, UTC),
    )


def follow(paths: RunPaths, wait: Callable[[float], object] = time.sleep) -> Iterator[Pulse]:
    """Yield what is going on in a run every half a second, the last time when no driver works on it.

    Raises:
        OutputError: this is no run folder.
    """
    while True:
        pulse = pulse_of(paths)
        yield pulse
        if not pulse.goes_on:
            return
        wait(LOOK_S)


def status_of(paths: RunPaths) -> Status:
    """Return where a run stands, with the sums of its journal; writes nothing.

    Raises:
        OutputError: this is no run folder, or its journal cannot be read.
    """
    pulse = pulse_of(paths)
    record = _record(paths)
    summary, nodes, newest = _journalled(paths, record)
    return Status(
        step=paths.root.parent.name if record is None else record.step,
        run_id=paths.root.name if record is None else record.run_id,
        pulse=pulse,
        started_at=None if record is None else record.started_at,
        ended_at=_ended_at(paths, record, pulse),
        items=closing_line(summary),
        mini_batches=f"{account(summary.mini_batches)} (mini-batches)",
        summary=summary,
        nodes=nodes,
        newest_error=newest,
        reuse=() if record is None else record.reuse,
        again=_again(record) if pulse.state == INTERRUPTED else None,
        run_folder=paths.root,
        output="" if record is None else _output(record),
        logs=paths.logs,
        report=_if_there(paths.report),
        failed_items=_if_there(paths.failed_items),
        job_result=_if_there(paths.job_result),
    )


def _journalled(
    paths: RunPaths, record: RunRecord | None
) -> tuple[RunSummary, tuple[NodeRecord, ...], ErrorGroup | None]:
    if record is None or not paths.journal.exists():
        return RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0), (), None
    with Journal(paths.journal) as journal:
        summary = summarise(journal, mini_batches=record.mini_batches, items=record.items)
        nodes = tuple(journal.nodes())
        newest = next(journal.select(_NEWEST_ERROR), None)
    # Those of processes that never got as far as a mini-batch are known once a sitting has ended.
    summary = with_process_errors(summary, kept_process_errors(paths))
    same = (one for one in summary.errors if (one.type, one.where) == newest)
    return summary, nodes, next(same, None)


def _record(paths: RunPaths) -> RunRecord | None:
    """Return the record of a run; None for one that has only been begun."""
    try:
        return RunRecord.read(paths)
    except OutputError:
        if paths.lock.exists() and not paths.record.exists():
            return None
        raise


def _again(record: RunRecord | None) -> str:
    """Say how one goes on with a run of which the driver was killed."""
    if record is None or not record.grouping:
        return "its driver was gone before anything ran: run the step again"
    if not record.fingerprint:
        return (
            "its driver is gone; its rows are of two scripts or inputs, so that no step takes it for its own: "
            f"`parallelrun resume {record.run_id} --with-current-script` goes on with it"
        )
    return "its driver is gone; the next run of the step goes on with it"


def _progress(paths: RunPaths) -> dict[str, Any]:
    """Return what the driver last told of its progress; nothing where that cannot be read."""
    try:
        told = json.loads(paths.progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _standing(told: Any) -> Standing | None:
    """Return where the run stood, as far as a driver of this version told it."""
    try:
        values = {each.name: told[each.name] for each in fields(Standing)}
    except (TypeError, KeyError):
        return None
    return Standing(**{**values, "doing": tuple(values["doing"])})


def _ended_at(paths: RunPaths, record: RunRecord | None, pulse: Pulse) -> datetime | None:
    if record is None or pulse.goes_on or record.state == RUNNING:
        return None
    # The record is the last that a sitting writes.
    return datetime.fromtimestamp(paths.record.stat().st_mtime, UTC)


def _output(record: RunRecord) -> str:
    if record.append_row_file_name is None:
        return record.output
    return str(Path(record.output, record.append_row_file_name))


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None
