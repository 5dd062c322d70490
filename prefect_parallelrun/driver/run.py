"""The story of one sitting, in order: lock, check, snapshot, plan, schedule, judge, publish, report.

A run that is new has one; one that failed, was cancelled or killed goes on in another, in the same folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.reopening import NotResumable
from prefect_parallelrun.driver.sitting import Sitting
from prefect_parallelrun.output.lock import LockLost, RunLock
from prefect_parallelrun.output.trouble import explained
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.driver_log import driver_log
from prefect_parallelrun.report.observer import Observer, Observers
from prefect_parallelrun.report.overview import Overview
from prefect_parallelrun.report.readme import write_readme
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.reuse import Seen
from prefect_parallelrun.run_record import RunRecord

AGAIN = "run the step again to go on"
"""How a person goes on with a run that has not completed, where nothing else is said."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_step(
    definition: StepDefinition,
    *,
    run_folder: Path,
    run_id: str,
    fingerprint: str = "",
    source_sha256: str | None = None,
    task_run: str | None = None,
    log: Log,
    listings: Sequence[Sequence[FileItem]] | None = None,
    seen: Sequence[Seen] | None = None,
    observers: Sequence[Observer] = (),
    watch: Callable[[], None] | None = None,
    retry_missing: bool | None = None,
    completion: str | None = None,
    bases: Sequence[RunPaths] = (),
    reuse_notes: tuple[str, ...] = (),
    again: str = AGAIN,
) -> ParallelRunResult:
    """Run a step to its end; if the folder holds a run already, that one is gone on with.

    Args:
        definition: validated, with nothing left to resolve.
        run_folder: a folder of this run alone; made where it is not there.
        run_id: name of the run.
        fingerprint: see `RunRecord.fingerprint`.
        source_sha256: of the source, as it was when the fingerprint was made.
        task_run: Prefect's id of the task run.
        log: the flow's log; it gets what the driver's own log file gets.
        listings: the files of each input, where they have been listed already.
        seen: see `reuse.data`, of the same listings: what the fingerprint was made of.
        observers: are told how the run gets on, in this thread; one that raises is told nothing more.
        watch: called several times a second, in this thread; ends the run by raising.
        retry_missing: whether mini-batches of which rows are missing (R16) are tried again; None:
            unless every failure is tolerated, since a script that leaves out rows may mean it.
        completion: see `RunRecord.completion`; None: any.
        bases: earlier runs with the same settings, newest first; of the first of which something still
            holds, a new run takes that over (R202).
        reuse_notes: what is taken over of earlier runs, and why not more, for the log and the report.
        again: how a person goes on with the run if it does not complete.

    Raises:
        ParallelRunError: the run failed; the text shows the script's own error and where to look.
        NotResumable: the folder holds another run, or not all of what its script wrote.
    """
    paths = RunPaths(run_folder)
    level = str(definition.config.logging_level)
    with ExitStack() as held:
        with explained(paths.journal):
            _make(paths, run_id)
            lock = held.enter_context(RunLock(paths))
            run_log = held.enter_context(driver_log(paths, run_id, level=level, forward_to=log))
        try:
            write_readme(paths)
        except OSError as error:
            run_log.warning("%s could not be written: %s", paths.readme, error)
        observer = Observers(observers, run_log)
        overview = Overview(
            paths,
            step=definition.name,
            run_id=run_id,
            log=run_log,
            observer=observer,
            guard=lock.check,
        )
        sitting = Sitting(
            definition=definition,
            paths=paths,
            lock=lock,
            log=run_log,
            overview=held.enter_context(overview),
            observer=observer,
            earlier=RunRecord.read(paths) if paths.record.exists() else None,
            record=_first_record(definition, paths, run_id, task_run),
            watch=watch,
            completion=completion or uuid4().hex,
            bases=bases,
            reuse_notes=reuse_notes,
            again=again,
        )
        try:
            held.enter_context(sitting.delivery.claimed(run_log))
            sitting.plan(listings, seen, fingerprint, source_sha256)
            return sitting.run(retry_missing)
        except (LockLost, NotResumable):
            raise  # what is in the folder is not ours to touch
        except BaseException as error:
            sitting.fail(error)


def _make(paths: RunPaths, run_id: str) -> None:
    paths.logs.mkdir(parents=True, exist_ok=True)
    if not paths.token.exists() or paths.token.read_text() != run_id:
        paths.token.write_text(run_id)


def _first_record(
    definition: StepDefinition, paths: RunPaths, run_id: str, task_run: str | None
) -> RunRecord:
    config = definition.config
    return RunRecord(
        step=definition.name,
        run_id=run_id,
        fingerprint="",
        task_run=task_run,
        started_at=datetime.now(UTC),
        output=str(definition.output_folder or paths.output),
        append_row_file_name=(
            config.append_row_file_name if config.output_action == "append_row" else None
        ),
        output_order=config.output_order,
        output_format=config.output_format,
    )
