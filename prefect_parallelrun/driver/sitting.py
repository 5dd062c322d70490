"""One driver's stay with a run, stage by stage: plan, schedule, judge, publish, report."""

from __future__ import annotations

import logging
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
from prefect_parallelrun.driver.early_end import cause_of, named, text_of, what_is_kept
from prefect_parallelrun.driver.mini_batches import MiniBatches
from prefect_parallelrun.driver.reopening import (
    NotResumable,
    refuse_another_plan,
    refuse_losses,
    stands,
)
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.driver.worker_settings import worker_settings
from prefect_parallelrun.errors import (
    EntryScriptError,
    ErrorThresholdExceeded,
    ParallelRunError,
    RunCancelled,
)
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.output.trouble import explained
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import identities
from prefect_parallelrun.report import failure
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.overview import Overview
from prefect_parallelrun.report.summary import closing_line
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import (
    CANCELLED,
    FAILED,
    RUNNING,
    RunRecord,
    keep_definition,
)

_OF_ROWS = {"fingerprint", "source_sha256", "contents", "parts", "settings"}
"""What a record says of the rows that there are."""


@dataclass(kw_only=True)
class Sitting:
    """One driver's stay with a run: what its stages share."""

    definition: StepDefinition
    paths: RunPaths
    lock: RunLock
    log: logging.Logger
    overview: Overview
    observer: Observer
    earlier: RunRecord | None
    """As the last sitting left it; None in the first."""
    record: RunRecord
    watch: Callable[[], None] | None
    again: str
    completion: str
    """See `RunRecord.completion`; of this sitting, if it makes an output."""
    bases: Sequence[RunPaths] = ()
    """Earlier runs with the same settings, newest first, of which a new run may take something over."""
    reuse_notes: tuple[str, ...] = ()
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _opened: bool = False
    """Whether it came as far as the journal; before, it leaves reports and record as it found them."""
    _stood: bool = False
    """Whether the run had nothing left to do when it began."""
    _rows_since: datetime | None = None
    """See `RunRecord.rows_since`, where it has rows that this sitting did not make."""
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
        seen: Sequence[reuse.Seen] | None,
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
            self._stood = stands(self.paths, self.earlier, self.delivery.remote)
        self.delivery.check(self.record)
        if listings is None:
            self.overview.stage("listing the inputs")
            listings = self.definition.list_inputs()
        if seen is None:
            seen = list(reuse.data(self.definition, listings))
        self.overview.stage("planning")
        ours = self._ours = MiniBatches(
            self.definition,
            self.paths,
            listings,
            seen,
            self.earlier,
            self.bases,
            retry_missing=self.limits.error_threshold != -1,
        )
        for note in ours.notes:
            self.log.info("%s", note)
        if self.earlier is not None:
            refuse_another_plan(self.earlier, ours.grouping, ours.plan)
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
        if edited:
            ours.forget_base("the source changed meanwhile")
        self._fetched = Fetched(self.definition, ours.plan, listings, self.paths.inputs)
        for note in (*self._source.notes, *ours.plan.notes):
            self.log.info("%s", note)
        parts = reuse.fingerprint_parts(
            self.definition, source_sha256=self._source.sha256, seen=seen
        )
        self._planned: dict[str, object] = {
            "fingerprint": "" if edited else fingerprint,
            "source_sha256": self._source.sha256,
            "grouping": ours.grouping,
            "readers": identities.of_readers(ours.plan),
            "parts": parts,
            "settings": reuse.settings_fingerprint(self.definition, parts),
            "contents": reuse.contents_of(parts),
            "kind": ours.plan.kind,
            "mini_batches": ours.plan.known_count,
            "items": ours.plan.items,
        }

    def run(self, retry_missing: bool | None) -> ParallelRunResult:
        """Schedule what is not done yet, and publish."""
        if retry_missing is None:
            retry_missing = self.limits.error_threshold != -1
        self._look()
        ours = self._ours
        if ours.base is not None:
            self.overview.stage(f"taking over what run {ours.base.run_id} has done")
        ours.take_over(self.record, look=self._look, log=self.log)
        self.overview.stage("opening the journal")
        with OutputWriter(
            self.paths,
            keep_rows=self.record.append_row_file_name is not None,
            retry_missing=retry_missing,
            guard=self.lock.check,
            log=self.log,
        ) as writer:
            self._begin(writer)
            done = f"{writer.earlier.mini_batches:,}"
            if ours.base is not None:
                self.log.info("taken over of run %s: %s mini-batches", ours.base.run_id, done)
            elif self.earlier is not None:
                self.log.info("resumed: %s mini-batches are done and are not run again", done)
            schedule = Schedule(
                self.definition,
                ours.plan,
                worker_settings(
                    self.definition,
                    ours.plan,
                    run_id=self.record.run_id,
                    entry_script=self._source.entry_script,
                    destination=self.delivery.destination,
                ),
                self._fetched,
                limits=self.limits,
                paths=self.paths,
                writer=writer,
                log=self.log,
                overview=self.overview,
                observer=self.observer,
                watch=self._look,
                first_node=self.paths.next_node(),
            )
            self.accounts.begin(ours.plan, schedule)
            try:
                with ours.noting(self.record):
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
            self.log.error("The driver failed: %s", named(error), exc_info=error)
        ours = self._opened or self.earlier is None
        if ours:
            # First: whoever stops a process waits a few seconds for it, and reports can take as long.
            self._leave(state)
        kept, summary = "", RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
        text = text_of(error, kept, summary, self.paths)
        try:
            summary = self.accounts.add_up(self.record)
            kept = what_is_kept(summary, self.again)
            if not self._opened:  # they are not of this sitting
                summary = replace(
                    summary, errors=(), distinct_errors=0, errors_counted=0, missing_rows=0
                )
            text = text_of(error, kept, summary, self.paths)
            if ours:
                self._report(summary, state, failed=text)
        except Exception as unread:
            # A journal that cannot be read, or a fault of ours, must not hide why the run failed.
            self.log.error("The reports of the run could not be written: %s", unread, exc_info=True)
        where = f"Start looking in {self.paths.job_result}, then in {self.paths.driver_log}"
        self.overview.end(state, f"{text}\n{where}")
        if cancelled or not isinstance(error, ParallelRunError):  # nobody may read its text
            self.log.warning(" ".join(filter(None, [f"{state} ({cause_of(error)}).", kept])))
        planned = self.accounts.planned(self.record)
        ended = self.record.model_copy(update={"state": state, "mini_batches": planned})
        self.observer.ended(ended, summary, result=None, failure=text)
        if not isinstance(error, ParallelRunError):
            if cancelled:
                error.add_note(text)  # a signal says nothing by itself
            raise error
        raise type(error)(
            text,
            run_id=error.run_id,
            logs_directory=error.logs_directory,
            first_errors=failure.first_errors(summary),
        ) from error.__cause__

    # -- inside ------------------------------------------------------------------------------

    def _begin(self, writer: OutputWriter) -> None:
        """Write down what the run is, now that there is a journal of it."""
        base, kept = self._ours.base, writer.earlier.mini_batches or writer.earlier.parts
        # First: whatever fails from here on, the record that is left must not make these rows younger.
        if base is not None:
            self._rows_since = base.oldest_rows_at
        elif self.earlier is not None and kept:
            self._rows_since = self.earlier.oldest_rows_at
        self._opened = True
        with explained(self.paths.journal):
            self.paths.source.with_suffix(".tmp").replace(self.paths.source)
            self._ours.write_down()
            self._write_down(
                RUNNING,
                **self._planned,
                base=self.record.base if base is None else base.run_id,
                # A sitting that was told nothing leaves what was told before.
                reuse=(*self.reuse_notes, *self._ours.notes) or self.record.reuse,
            )
            if self.record.append_row_file_name is None:
                # From here on the script changes its output; what it came to is noted at the end.
                self.paths.manifest.unlink(missing_ok=True)
        try:
            keep_definition(self.paths, self.definition)
        # Whatever the datasets and settings of a user raise when they are pickled.
        except Exception as error:
            self.log.debug("The step cannot be written down: %r", error)
        self.observer.began(self.record)

    def _leave(self, state: str) -> None:
        """Write down how a sitting ended that did not complete."""
        changes: dict[str, object] = {}
        if self.earlier is not None and not self._attempts:
            # There are no rows of another source or input, so the run is still its step's.
            changes = self.earlier.model_dump(include=_OF_ROWS)
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
        tally = policy.Tally.of(summary)
        # Of all sittings together, while the schedule counts what this one tried.
        if why := (
            policy.verdict(self.limits, tally)
            or policy.exceeded(self.limits, tally, schedule.planned)
        ):
            raise (ErrorThresholdExceeded if summary.items.succeeded else EntryScriptError)(why)
        self._look()
        self.lock.confirm()
        self.delivery.confirm()
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
            reused=not schedule.attempts and not (self.earlier is None and self._ours.base is None),
            started_at=self.began,
            ended_at=datetime.now(UTC),
            logs_directory=str(self.paths.logs),
        )
        report = self._report(summary, result.state, failed=None)
        result = result.model_copy(update={"report": None if report is None else str(report)})
        with explained(self.paths.journal):
            manifest.write(self.paths.root, self.delivery.destination, file, uploaded=uploaded)
            same = self._stood and not changed and self.record.completion
            self._write_down(
                result.state,
                mini_batches=schedule.planned,
                completion=self.record.completion if same else self.completion,
            )
        told = f"{closing_line(summary)}; output: {result.append_row_file or result.output}"
        self.overview.end(result.state, told)
        self.log.info("%s: %s", result.state, told)
        self.observer.ended(self.record, summary, result=result, failure=None)
        return result

    def _report(self, summary: RunSummary, state: str, *, failed: str | None) -> Path | None:
        """Write the reports; return where the one for browsers is, unless it could not be written."""
        record = self.record.model_copy(update={"state": state})
        return self.accounts.report(summary, record, failed=failed)

    def _write_down(self, state: str, **changes: object) -> None:
        changes |= {"state": state, "rows_since": self._rows_since or datetime.now(UTC)}
        self.record = self.record.model_copy(update=changes)
        self.record.write(self.paths)
