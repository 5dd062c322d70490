"""What a sitting came to: added up from the journal, and written down for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prefect_parallelrun.driver.bundle import sample
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.report import failed_items, failure, job_result
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.run_record import RunRecord


@dataclass
class Accounts:
    """The summary and the reports of one sitting; before `begin` it has only what earlier ones left."""

    paths: RunPaths
    output: str
    """The output folder, or its URL."""
    started_at: datetime
    """UTC, when the sitting began."""
    _plan: Plan | None = None
    _schedule: Schedule | None = None

    def begin(self, plan: Plan, schedule: Schedule) -> None:
        """Take note of what is scheduled; from now on there is a journal."""
        self._plan, self._schedule = plan, schedule

    def add_up(self, record: RunRecord) -> RunSummary:
        """Return what the run came to so far, the errors of this sitting's processes included.

        Raises:
            OutputError: the journal cannot be read.
        """
        if not self.paths.journal.exists():
            return RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
        planned = record.mini_batches if self._schedule is None else self._schedule.planned
        with Journal(self.paths.journal) as journal:
            summary = summarise(journal, mini_batches=planned, items=record.items)
        if self._schedule is None:
            return summary
        starts = failure.process_errors(self._schedule.script_failures, self.paths)
        return replace(summary, errors=summary.errors + starts)

    def report(
        self, summary: RunSummary, *, step: str, run_id: str, state: str, failed: str | None
    ) -> None:
        """Write the error summary, the failed items and the job result.

        Args:
            summary: see `add_up`.
            step: name of the step.
            run_id: of the run.
            state: how the sitting ended.
            failed: why it did not complete, for people; None if it did.
        """
        failure.write_error_summary(self.paths, summary)
        if self._plan is not None:
            with Journal(self.paths.journal) as journal:
                failed_items.write_failed_items(
                    self.paths, journal, self._items_of, kind=self._plan.kind
                )
        job_result.write_job_result(
            self.paths,
            summary,
            step=step,
            run_id=run_id,
            state=state,
            output=self.output,
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            failure=failed,
        )

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
