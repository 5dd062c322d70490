"""One driver's stay with a run, stage by stage: plan, schedule, judge, publish, report."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.accounts import Accounts
from prefect_parallelrun.driver.delivery import Delivery
from prefect_parallelrun.driver.reopening import (
    NotResumable,
    refuse_another_plan,
    refuse_losses,
)
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.driver.worker_settings import worker_settings
from prefect_parallelrun.errors import (
    EntryScriptError,
    ErrorThresholdExceeded,
    InitFailed,
    NoProgress,
    ParallelRunError,
    RunCancelled,
)
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.output.trouble import explained
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import plan_step
from prefect_parallelrun.report import failure
from prefect_parallelrun.report.overview import Overview
from prefect_parallelrun.report.summary import closing_line
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import (
    CANCELLED,
    FAILED,
    RUNNING,
    RunRecord,
    keep_definition,
    keep_listings,
)


@dataclass(kw_only=True)
class Sitting:
    """One driver's stay with a run: what its stages share."""

    definition: StepDefinition
    paths: RunPaths
    lock: RunLock
    log: logging.Logger
    overview: Overview
    earlier: RunRecord | None
    """As the last sitting left it; None in the first."""
    record: RunRecord
    watch: Callable[[], None] | None
    again: str
    reuse_notes: tuple[str, ...] = ()
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _opened: bool = False
    """Whether it came as far as the journal; before, it leaves reports and record as it found them."""
    _attempts: int = 0
    """Attempts that ended in it."""

    def __post_init__(self) -> None:
        if self.earlier is not None:
            self.record = self.earlier
        self.delivery = Delivery(self.definition, self.paths)
        self.accounts = Accounts(
            self.paths, self.definition, self.delivery.place, self.began, self.log
        )
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
        """Settle what is to run; nothing of an earlier sitting is touched.

        Raises:
            NotResumable: it is another run than the one in the folder, or something of that is lost.
        """
        self.log.info("Step %s, run %s", self.definition.name, self.record.run_id)
        self.log.info("Logs: %s", self.paths.logs)
        if self.lock.before is not None:
            self.log.info("Took the run over from a driver that is gone: %s", self.lock.before)
        for note in self.reuse_notes:
            self.log.info("%s", note)
        if self.earlier is not None:
            refuse_losses(self.paths, self.earlier)  # before the output folder is made anew
        self.delivery.check(self.record)
        if listings is None:
            self.overview.stage("listing the inputs")
            listings = self.definition.list_inputs()
        self.overview.stage("planning")
        self._plan = plan_step(self.definition, scratch=self.paths.inputs, listings=listings)
        grouping = reuse.grouping(self.definition, listings)
        if self.earlier is not None:
            refuse_another_plan(self.earlier, grouping, self._plan)
        self.overview.stage("packing the source")
        draft = self.paths.source.with_suffix(".tmp")
        with explained(self.paths.journal):
            self._source = snapshot.take(
                self.definition.config,
                draft,
                leave_out=(*self.definition.left_out, self.delivery.destination, self.paths.root),
            )
        # Edited since the fingerprint was made, it would make rows that belong to another one.
        edited = source_sha256 not in (None, self._source.sha256)
        if edited and self.earlier is not None:
            draft.unlink()
            raise NotResumable(
                f"the source changed while run {self.record.run_id} was about to be gone on with"
            )
        self._fetched = Fetched.of(self.definition, self._plan, listings)
        for note in (*self._source.notes, *self._plan.notes):
            self.log.info("%s", note)
        self._seen = list(reuse.data(self.definition, listings))
        parts = reuse.fingerprint_parts(
            self.definition, source_sha256=self._source.sha256, seen=self._seen
        )
        self._planned: dict[str, object] = {
            "fingerprint": "" if edited else fingerprint,
            "source_sha256": self._source.sha256,
            "grouping": grouping,
            "parts": parts,
            "reuse": self.reuse_notes,
            "contents": reuse.contents_of(parts),
            "kind": self._plan.kind,
            "mini_batches": self._plan.known_count,
            "items": self._plan.items,
        }

    def run(self, retry_missing: bool | None) -> ParallelRunResult:
        """Schedule what is not done yet, and publish."""
        if retry_missing is None:
            retry_missing = self.limits.error_threshold != -1
        self._look()
        self.overview.stage("opening the journal")
        with OutputWriter(
            self.paths,
            keep_rows=self.record.append_row_file_name is not None,
            retry_missing=retry_missing,
            guard=self.lock.check,
            log=self.log,
        ) as writer:
            self._begin()
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
                    destination=self.delivery.destination,
                ),
                self._fetched,
                limits=self.limits,
                paths=self.paths,
                run_id=self.record.run_id,
                writer=writer,
                log=self.log,
                overview=self.overview,
                watch=self._look,
                first_node=self.paths.next_node(),
            )
            self.accounts.begin(self._plan, schedule)
            try:
                schedule.run()
            finally:
                self._attempts = schedule.attempts
            return self._finish(writer, schedule)

    def fail(self, error: BaseException) -> NoReturn:
        """Leave the reports of a sitting that did not complete, and raise all that a person needs."""
        cancelled = isinstance(error, RunCancelled) or not isinstance(error, Exception)
        state = CANCELLED if cancelled else FAILED
        self.overview.stage("writing the reports")
        if isinstance(error, ParallelRunError):
            error.run_id, error.logs_directory = self.record.run_id, str(self.paths.logs)
        elif isinstance(error, Exception):
            self.log.error("The driver failed: %s", _named(error), exc_info=error)
        ours = self._opened or self.earlier is None
        kept, summary = "", RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
        text = _text(error, kept, summary, self.paths)
        try:
            summary = self.accounts.add_up(self.record)
            kept = self._kept(summary)
            if not self._opened:  # they are not of this sitting
                summary = replace(
                    summary, errors=(), distinct_errors=0, errors_counted=0, missing_rows=0
                )
            text = _text(error, kept, summary, self.paths)
            if ours:
                self._report(summary, state, failed=text)
        except Exception as unread:
            # A journal that cannot be read, or a fault of ours, must not hide why the run failed.
            self.log.error("The reports of the run could not be written: %s", unread, exc_info=True)
        if ours:
            self._leave(state)
        where = f"Start looking in {self.paths.job_result}, then in {self.paths.driver_log}"
        self.overview.end(state, f"{text}\n{where}")
        if cancelled or not isinstance(error, ParallelRunError):  # nobody may read its text
            self.log.warning(" ".join(filter(None, [f"{state} ({_why(error)}).", kept])))
        if not isinstance(error, ParallelRunError):
            raise error
        raise type(error)(
            text,
            run_id=error.run_id,
            logs_directory=error.logs_directory,
            first_errors=failure.first_errors(summary),
        ) from error.__cause__

    # -- inside ------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write down what the run is, now that there is a journal of it."""
        self._opened = True
        with explained(self.paths.journal):
            self.paths.source.with_suffix(".tmp").replace(self.paths.source)
            keep_listings(self.paths, ((one.name, one.files) for one in self._seen))
            self._write_down(RUNNING, **self._planned)
            if self.record.append_row_file_name is None:
                # From here on the script changes its output; what it came to is noted at the end.
                self.paths.manifest.unlink(missing_ok=True)
        try:
            keep_definition(self.paths, self.definition)
        # Whatever the datasets and settings of a user raise when they are pickled.
        except Exception as error:
            self.log.debug("The step cannot be written down: %r", error)

    def _leave(self, state: str) -> None:
        """Write down how a sitting ended that did not complete."""
        changes: dict[str, object] = {}
        if self.earlier is not None and not self._attempts:
            # There are no rows of another source or input, so the run is still its step's.
            changes = self.earlier.model_dump(include={"fingerprint", "source_sha256", "contents"})
        if self._opened and self.record.append_row_file_name is None:
            with self.accounts.at_no_cost("How the output looks"):
                manifest.write(self.paths.root, self.delivery.destination, None)
        with self.accounts.at_no_cost("The state of the run"):
            self._write_down(state, **changes)

    def _look(self) -> None:
        """Raise if this driver is to stop."""
        self.lock.check()
        if self.watch is not None:
            self.watch()

    def _finish(self, writer: OutputWriter, schedule: Schedule) -> ParallelRunResult:
        self.overview.stage("writing the last rows")
        writer.flush()
        summary = self.accounts.add_up(self.record)
        tally = _tally(summary)
        # Of all sittings together, while the schedule counts what this one tried.
        if why := (
            policy.verdict(self.limits, tally)
            or policy.exceeded(self.limits, tally, schedule.planned)
        ):
            raise (ErrorThresholdExceeded if summary.items.succeeded else EntryScriptError)(why)
        self._look()
        self.lock.confirm()
        changed = schedule.attempts > 0
        self.overview.stage("publishing the output")
        file = self.delivery.publish(writer, self.record, earlier=self.earlier, changed=changed)
        if self.delivery.remote is not None:
            self.overview.stage("uploading the output")
        uploaded = self.delivery.upload(
            file, earlier=self.earlier, changed=changed, log=self.log, look=self._look
        )
        self.overview.stage("writing the reports")
        remote = self.delivery.remote
        result = ParallelRunResult(
            name=self.definition.name,
            run_id=self.record.run_id,
            run_directory=str(self.paths.root),
            output=self.delivery.place,
            append_row_file=self.delivery.place_of(file),
            output_credentials=remote.storage.credentials if remote is not None else None,
            output_format=self.definition.config.output_format,
            mini_batches=summary.mini_batches,
            items=summary.items,
            attempts=summary.attempts,
            reused=self.earlier is not None and not schedule.attempts,
            started_at=self.began,
            ended_at=datetime.now(UTC),
            logs_directory=str(self.paths.logs),
        )
        report = self._report(summary, result.state, failed=None)
        result = result.model_copy(update={"report": None if report is None else str(report)})
        with explained(self.paths.journal):
            manifest.write(self.paths.root, self.delivery.destination, file, uploaded=uploaded)
            self._write_down(result.state, mini_batches=schedule.planned)
        told = f"{closing_line(summary)}; output: {result.append_row_file or result.output}"
        self.overview.end(result.state, told)
        self.log.info("%s: %s", result.state, told)
        return result

    def _report(self, summary: RunSummary, state: str, *, failed: str | None) -> Path | None:
        """Write the reports; return where the one for browsers is, unless it could not be written."""
        record = self.record.model_copy(update={"state": state})
        return self.accounts.report(summary, record, failed=failed)

    def _write_down(self, state: str, **changes: object) -> None:
        self.record = self.record.model_copy(update={"state": state, **changes})
        self.record.write(self.paths)

    def _kept(self, summary: RunSummary) -> str:
        """Say what is kept of a run that did not complete, and how to go on; empty if nothing is."""
        done, total = summary.mini_batches.succeeded, summary.mini_batches.total
        if not done or not summary.items.succeeded:
            return ""
        are = "mini-batch is" if total == 1 else "mini-batches are"
        text = f"{done:,} of {total:,} {are} done and kept"
        if summary.items.failed:  # some of them may be of mini-batches that are done otherwise
            text += f", with {summary.items.succeeded:,} of {summary.items.total:,} items"
        return f"{text}: {self.again}"


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
        cause = str(error)
    elif isinstance(error, Exception):
        cause = f"the driver failed: {_named(error)}\nits stack trace: {paths.driver_error}"
    else:
        cause = f"the run was stopped from outside ({_why(error)})"
    cause = "\n".join(filter(None, [cause, kept]))
    of_starts = isinstance(error, InitFailed | NoProgress)
    return failure.failure_text(summary, cause=cause, paths=paths, of_starts=of_starts)


def _why(error: BaseException) -> str:
    """Say in a few words what ended a sitting: a signal comes as an exception."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C or SIGINT"
    if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
        return "SIGTERM"
    return str(error) if isinstance(error, ParallelRunError) else type(error).__name__


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
