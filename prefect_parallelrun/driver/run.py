"""The story of one sitting, in order: lock, check, snapshot, plan, schedule, judge, publish, report.

A run that is new has one; one that failed, was cancelled or killed goes on in another, in the same folder.
"""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from prefect_parallelrun import reuse
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.accounts import Accounts
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.driver.worker_settings import worker_settings
from prefect_parallelrun.errors import (
    EntryScriptError,
    ErrorThresholdExceeded,
    OutputError,
    ParallelRunError,
    RunCancelled,
)
from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.lock import LockLost, RunLock
from prefect_parallelrun.output.publication import check_destination
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan, plan_step
from prefect_parallelrun.report import failure
from prefect_parallelrun.report.driver_log import driver_log
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun.report.summary import closing_line
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import (
    CANCELLED,
    FAILED,
    RUNNING,
    RunRecord,
    keep_definition,
)

AGAIN = "run the step again to go on"
"""How a person goes on with a run that has not completed, where nothing else is said."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class NotResumable(OutputError):
    """The run in this folder is another one than the step would be now; nothing in it was touched."""


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
    on_progress: Callable[[Standing], None] | None = None,
    watch: Callable[[], None] | None = None,
    retry_missing: bool | None = None,
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
        on_progress: called a few times a second, in this thread.
        watch: called several times a second, in this thread; ends the run by raising.
        retry_missing: whether mini-batches of which rows are missing (R16) are tried again; None:
            unless every failure is tolerated, since a script that leaves out rows may mean it.
        again: how a person goes on with the run if it does not complete.

    Raises:
        ParallelRunError: the run failed; the text shows the script's own error and where to look.
        NotResumable: the folder holds another run.
    """
    paths = RunPaths(run_folder)
    _make(paths, run_id)
    level = definition.config.logging_level
    with (
        RunLock(paths) as lock,
        driver_log(paths, run_id, level=str(level), forward_to=log) as run_log,
    ):
        sitting = _Sitting(
            definition=definition,
            paths=paths,
            lock=lock,
            log=run_log,
            earlier=RunRecord.read(paths) if paths.record.exists() else None,
            record=_first_record(definition, paths, run_id, task_run),
            watch=watch,
            again=again,
        )
        try:
            sitting.plan(listings, fingerprint, source_sha256)
            return sitting.run(retry_missing, on_progress)
        except (LockLost, NotResumable):
            raise  # what is in the folder is not ours to touch
        except BaseException as error:
            sitting.fail(error)


def _make(paths: RunPaths, run_id: str) -> None:
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        paths.token.write_text(run_id)
    except OSError as error:
        raise OutputError(f"the run folder {paths.root} cannot be written: {error}") from error


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
    )


@dataclass(kw_only=True)
class _Sitting:
    """One driver's stay with a run: what its stages share."""

    definition: StepDefinition
    paths: RunPaths
    lock: RunLock
    log: logging.Logger
    earlier: RunRecord | None
    """As the last sitting left it; None in the first."""
    record: RunRecord
    watch: Callable[[], None] | None
    again: str
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if self.earlier is not None:
            self.record = self.earlier
        self.destination = self.definition.output_folder or self.paths.output
        self.accounts = Accounts(self.paths, self.destination, self.began)
        config = self.definition.config
        self.limits = policy.Limits(
            max_attempts=config.run_max_try,
            error_threshold=config.error_threshold,
            allowed_failed_count=config.allowed_failed_count,
            allowed_failed_percent=config.allowed_failed_percent,
            rows_wanted=config.output_action == "append_row",
            isolate=config.isolate_failures,
        )

    # -- the stages --------------------------------------------------------------------------

    def plan(
        self,
        listings: Sequence[Sequence[FileItem]] | None,
        fingerprint: str,
        source_sha256: str | None,
    ) -> None:
        """Settle what is to run, and write down what the run is.

        Raises:
            NotResumable: it is another run than the one in the folder.
        """
        self.log.info("Step %s, run %s", self.definition.name, self.record.run_id)
        self.log.info("Logs: %s", self.paths.logs)
        if self.lock.before is not None:
            self.log.info("Took the run over from a driver that is gone: %s", self.lock.before)
        check_destination(self.destination, self.record.append_row_file_name)
        if listings is None:
            listings = self.definition.list_inputs()
        self._plan = plan_step(self.definition, scratch=self.paths.inputs, listings=listings)
        grouping = reuse.grouping(self.definition, listings)
        if self.earlier is not None:
            _refuse_another_plan(self.earlier, grouping, self._plan)
        self._source = snapshot.take(
            self.definition.config,
            self.paths.source,
            leave_out=(*self.definition.left_out, self.destination),
        )
        # Edited since the fingerprint was made, it would make rows that belong to another one.
        edited = source_sha256 not in (None, self._source.sha256)
        if edited and self.earlier is not None:
            raise NotResumable(
                f"the source changed while run {self.record.run_id} was about to be gone on with"
            )
        for note in (*self._source.notes, *self._plan.notes):
            self.log.info("%s", note)
        self._write_down(
            RUNNING,
            fingerprint="" if edited else fingerprint,
            source_sha256=self._source.sha256,
            grouping=grouping,
            kind=self._plan.kind,
            mini_batches=self._plan.known_count,
            items=self._plan.items,
        )
        try:
            keep_definition(self.paths, self.definition)
        # Whatever the datasets and settings of a user raise when they are pickled.
        except Exception as error:
            self.log.debug("The step cannot be written down: %r", error)

    def run(
        self, retry_missing: bool | None, on_progress: Callable[[Standing], None] | None
    ) -> ParallelRunResult:
        """Schedule what is not done yet, and publish."""
        if retry_missing is None:
            retry_missing = self.limits.error_threshold != -1
        self._look()
        with OutputWriter(
            self.paths,
            keep_rows=self.record.append_row_file_name is not None,
            retry_missing=retry_missing,
            guard=self.lock.check,
            log=self.log,
        ) as writer:
            if self.earlier is not None:
                self.log.info(
                    "resumed: %s mini-batches are done and are not run again",
                    f"{writer.earlier.mini_batches:,}",
                )
            schedule = Schedule(
                self.definition,
                self._plan,
                worker_settings(
                    self.definition,
                    self._plan,
                    run_id=self.record.run_id,
                    entry_script=self._source.entry_script,
                    destination=self.destination,
                ),
                limits=self.limits,
                paths=self.paths,
                run_id=self.record.run_id,
                writer=writer,
                log=self.log,
                on_progress=on_progress,
                watch=self._look,
                first_node=self.paths.next_node(),
            )
            self.accounts.begin(self._plan, schedule)
            schedule.run()
            return self._finish(writer, schedule)

    def fail(self, error: BaseException) -> NoReturn:
        """Leave the reports of a sitting that did not complete, and raise all that a person needs."""
        cancelled = isinstance(error, RunCancelled) or not isinstance(error, Exception)
        state = CANCELLED if cancelled else FAILED
        if isinstance(error, ParallelRunError):
            error.run_id, error.logs_directory = self.record.run_id, str(self.paths.logs)
        try:
            summary = self.accounts.add_up(self.record)
            kept = self._kept(summary)
            text = _text(error, kept, summary, self.paths)
            self._report(summary, state, failed=text)
            self._write_down(state)
        except (OSError, sqlite3.Error, ParallelRunError) as unwritten:
            # A full disk must not hide why the run failed.
            self.log.error("The reports of the run could not be written: %s", unwritten)
            raise error from error.__cause__
        if cancelled or not isinstance(error, ParallelRunError):  # nobody may read its text
            self.log.warning("%s (%s). %s", state, type(error).__name__, kept)
        if not isinstance(error, ParallelRunError):
            raise error
        raise type(error)(
            text,
            run_id=error.run_id,
            logs_directory=error.logs_directory,
            first_errors=failure.first_errors(summary),
        ) from error.__cause__

    # -- inside ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Raise if this driver is to stop."""
        self.lock.check()
        if self.watch is not None:
            self.watch()

    def _finish(self, writer: OutputWriter, schedule: Schedule) -> ParallelRunResult:
        writer.flush()
        summary = self.accounts.add_up(self.record)
        if why := policy.verdict(self.limits, _tally(summary)):
            raise (ErrorThresholdExceeded if summary.items.succeeded else EntryScriptError)(why)
        self._look()
        self.lock.confirm()
        file = self._publish(writer, changed=schedule.attempts > 0)
        result = ParallelRunResult(
            name=self.definition.name,
            run_id=self.record.run_id,
            run_directory=str(self.paths.root),
            output=str(self.destination),
            append_row_file=str(file) if file else None,
            mini_batches=summary.mini_batches,
            items=summary.items,
            attempts=summary.attempts,
            reused=self.earlier is not None and not schedule.attempts,
            started_at=self.began,
            ended_at=datetime.now(UTC),
            logs_directory=str(self.paths.logs),
            report=None,
        )
        self._report(summary, result.state, failed=None)
        reuse.write_manifest(self.paths.root, self.destination, file)
        self._write_down(result.state, mini_batches=schedule.planned)
        self.log.info(
            "%s: %s; output: %s", result.state, closing_line(summary), file or self.destination
        )
        return result

    def _publish(self, writer: OutputWriter, *, changed: bool) -> Path | None:
        """Put the output file in its place, unless it is there as an earlier sitting left it."""
        name = self.record.append_row_file_name
        if name is None:
            return None
        completed = self.earlier is not None and self.earlier.completed
        if completed and not changed and reuse.is_intact(self.paths.root):
            return self.destination / name
        return writer.publish(self.destination, name, order=self.definition.config.output_order)

    def _report(self, summary: RunSummary, state: str, *, failed: str | None) -> None:
        self.accounts.report(
            summary,
            step=self.record.step,
            run_id=self.record.run_id,
            state=state,
            failed=failed,
        )

    def _write_down(self, state: str, **changes: object) -> None:
        self.record = self.record.model_copy(update={"state": state, **changes})
        self.record.write(self.paths)

    def _kept(self, summary: RunSummary) -> str:
        """Say what is kept of a run that did not complete, and how to go on; empty if nothing is."""
        done, total = summary.mini_batches.succeeded, summary.mini_batches.total
        if not done:
            return ""
        are = "mini-batch is" if total == 1 else "mini-batches are"
        return f"{done:,} of {total:,} {are} done and kept: {self.again}"


def _refuse_another_plan(earlier: RunRecord, grouping: str, plan: Plan) -> None:
    counts = earlier.mini_batches, plan.known_count
    if earlier.grouping not in ("", grouping) or (None not in counts and counts[0] != counts[1]):
        raise NotResumable(
            f"run {earlier.run_id} cannot be gone on with: it was planned with "
            f"{counts[0]} mini-batches, and the step has {counts[1]} now, or others. Start a new run "
            "(allow_reuse=False)"
        )


def _tally(summary: RunSummary) -> policy.Tally:
    return policy.Tally(
        mini_batches_succeeded=summary.mini_batches.succeeded,
        mini_batches_failed=summary.mini_batches.failed,
        items_succeeded=summary.items.succeeded,
        items_failed=summary.items.failed,
    )


def _text(error: BaseException, kept: str, summary: RunSummary, paths: RunPaths) -> str:
    """Say what ended a sitting, what is kept, and what the script's own errors were."""
    if isinstance(error, ParallelRunError):
        cause = "\n".join(filter(None, [str(error), kept]))
        return failure.failure_text(summary, cause=cause, paths=paths)
    return "\n".join(["".join(traceback.format_exception(error)), kept])
