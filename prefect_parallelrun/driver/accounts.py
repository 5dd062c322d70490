"""What a sitting came to: added up from the journal, and written down for people."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.bundle import sample
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.report import failed_items, failure, job_report, job_result
from prefect_parallelrun.report.gather import gather
from prefect_parallelrun.report.page import write_report
from prefect_parallelrun.report.summary import errors_line, summarise, with_process_errors
from prefect_parallelrun.run_record import RunRecord


@dataclass
class Accounts:
    """The summary and the reports of one sitting; before `begin` it has only what earlier ones left."""

    paths: RunPaths
    definition: StepDefinition
    output: str
    """The output folder, or its URL."""
    started_at: datetime
    """UTC, when the sitting began."""
    log: logging.Logger
    """Of the run."""
    _plan: Plan | None = None
    _schedule: Schedule | None = None
    _unwritten: list[str] = field(default_factory=list)
    """What could not be written, and why."""

    def begin(self, plan: Plan, schedule: Schedule) -> None:
        """Take note of what is scheduled; from now on there is a journal."""
        self._plan, self._schedule = plan, schedule

    def planned(self, record: RunRecord) -> int | None:
        """Return how many mini-batches the plan has; None where only reading the input would tell."""
        return record.mini_batches if self._schedule is None else self._schedule.planned

    def add_up(self, record: RunRecord) -> RunSummary:
        """Return what the run came to so far, the errors of this sitting's processes included.

        Raises:
            OutputError: the journal cannot be read.
        """
        if not self.paths.journal.exists():
            return RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
        with Journal(self.paths.journal) as journal:
            summary = summarise(journal, mini_batches=self.planned(record), items=record.items)
        if self._schedule is None:
            return summary
        starts = failure.process_errors(self._schedule.script_failures, self.paths)
        return with_process_errors(summary, starts)

    def report(self, summary: RunSummary, record: RunRecord, *, failed: str | None) -> Path | None:
        """Write the error summary, the failed items, the job report, the HTML report and the job result.

        Each on its own: what cannot be written is told in the log and in the job result, and raises nothing.

        Args:
            summary: see `add_up`.
            record: of the run, with the state in which the sitting ended.
            failed: why it did not complete, for people; None if it did.

        Returns:
            Where the HTML report is; None where it could not be written.
        """
        with self.at_no_cost("The errors of processes"):
            failure.keep_process_errors(self.paths, summary)
        with self.at_no_cost("The error summary"):
            failure.write_error_summary(self.paths, summary)
        if self._plan is not None:
            with (
                self.at_no_cost("The list of failed items"),
                Journal(self.paths.journal) as journal,
            ):
                failed_items.write_failed_items(
                    self.paths, journal, self._items_of, kind=self._plan.kind
                )
            with self.at_no_cost("The job report"), Journal(self.paths.journal) as journal:
                job_report.write_job_report(self.paths, journal, base=record.base)
        report = None
        # After all that it links to but the result, which names it.
        with self.at_no_cost("The report"):
            # Where only reading the inputs tells how they are cut, they are not read for this alone.
            known = self._plan is not None and record.mini_batches is not None
            items_of = self._items_of if known else None
            data = gather(
                self.paths,
                record,
                summary,
                items_of=items_of,
                failure=failed,
                definition=self.definition,
            )
            report = write_report(self.paths, data)
            self.log.info("Report: %s", report)
        if failed is None and summary.errors:  # else they are in what is raised
            self.log.warning("%s; all of them: %s", errors_line(summary), self.paths.error_summary)
        with self.at_no_cost("The job result"):
            job_result.write_job_result(
                self.paths,
                summary,
                step=record.step,
                run_id=record.run_id,
                state=record.state,
                output=self.output,
                started_at=self.started_at,
                ended_at=datetime.now(UTC),
                base=record.base,
                failure=failed,
                unwritten=self._unwritten,
            )
        return report

    @contextmanager
    def at_no_cost(self, what: str) -> Iterator[None]:
        """Give up what cannot be written: it must not hide how the run ended."""
        try:
            yield
        except Exception as error:
            self._unwritten.append(f"{what}: {error}")
            self.log.warning("%s could not be written: %s", what, error, exc_info=True)

    def _items_of(self, indices: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
        """Yield input and items of mini-batches by going through the plan once more."""
        assert self._plan is not None
        wanted = set(indices)
        for mini_batch in self._plan:
            if not wanted:
                return
            if mini_batch.index in wanted:
                wanted.discard(mini_batch.index)
                files = mini_batch.work.get("files")
                items = list(files if files is not None else sample(mini_batch))
                yield mini_batch.input_index, items
