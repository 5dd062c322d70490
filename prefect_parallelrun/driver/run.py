"""The story of one run, in order: check, snapshot, plan, schedule, judge, publish, report."""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn

from prefect_parallelrun import append_row, reuse
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import sample
from prefect_parallelrun.driver.schedule import Schedule
from prefect_parallelrun.errors import EntryScriptError, ErrorThresholdExceeded, ParallelRunError
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.publication import check_destination
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RUNTIME_FOLDER, RunPaths
from prefect_parallelrun.planning import Plan, plan_step
from prefect_parallelrun.report import failed_items, failure, job_result
from prefect_parallelrun.report.driver_log import driver_log
from prefect_parallelrun.report.progress import Standing
from prefect_parallelrun.report.summary import closing_line, summarise
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun_runtime import messages

INIT_TIMEOUTS = 3
INIT_GRACE_S = 30.0
"""A process may be in import and `init()` for 3 times the run time-out and 30 seconds (R90)."""
SHUTDOWN_TIMEOUT_S = 30.0
KILL_GRACE_S = 0.5
"""Between SIGTERM, which a script may use to clean up, and SIGKILL."""


def run_step(
    definition: StepDefinition,
    *,
    run_folder: Path,
    run_id: str,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    listings: Sequence[Sequence[FileItem]] | None = None,
    on_progress: Callable[[Standing], None] | None = None,
) -> ParallelRunResult:
    """Run a step to its end.

    Args:
        definition: validated, with nothing left to resolve.
        run_folder: a folder of this run alone; it is created.
        run_id: name of the run.
        log: the flow's log; it gets what the driver's own log file gets.
        listings: the files of each input, where they have been listed already.
        on_progress: called a few times a second, in this thread.

    Raises:
        ParallelRunError: the run failed; the text shows the script's own error and where to look.
    """
    paths = RunPaths(run_folder)
    paths.logs.mkdir(parents=True)
    paths.token.write_text(run_id)
    level = definition.config.logging_level
    with driver_log(paths, run_id, level=str(level), forward_to=log) as run_log:
        run = _Run(definition, paths, run_id, run_log)
        try:
            return run.go(listings, on_progress)
        except BaseException as error:
            run.fail(error)


class _Run:
    """What the stages of one run share."""

    def __init__(
        self, definition: StepDefinition, paths: RunPaths, run_id: str, log: logging.Logger
    ) -> None:
        self.definition = definition
        self.config = definition.config
        self.paths = paths
        self.run_id = run_id
        self.log = log
        self.plan: Plan | None = None
        self.schedule: Schedule | None = None
        self.started_at = datetime.now(UTC)
        self.rows_wanted = self.config.output_action == "append_row"
        self.limits = policy.Limits(
            max_attempts=self.config.run_max_try,
            error_threshold=self.config.error_threshold,
            allowed_failed_count=self.config.allowed_failed_count,
            allowed_failed_percent=self.config.allowed_failed_percent,
            rows_wanted=self.rows_wanted,
            isolate=self.config.isolate_failures,
        )
        self.destination = definition.output_folder or paths.output

    def go(
        self,
        listings: Sequence[Sequence[FileItem]] | None,
        on_progress: Callable[[Standing], None] | None,
    ) -> ParallelRunResult:
        """Go through the stages; see the module."""
        self.log.info("Step %s, run %s", self.definition.name, self.run_id)
        self.log.info("Logs: %s", self.paths.logs)
        check_destination(
            self.destination, self.config.append_row_file_name if self.rows_wanted else None
        )
        source = snapshot.take(
            self.config, self.paths.source, leave_out=(*self.definition.left_out, self.destination)
        )
        self.plan = plan_step(self.definition, scratch=self.paths.inputs, listings=listings)
        for note in (*source.notes, *self.plan.notes):
            self.log.info("%s", note)
        settings = self._settings(source.entry_script, self.plan)
        with OutputWriter(self.paths, keep_rows=self.rows_wanted, log=self.log) as writer:
            self.schedule = Schedule(
                self.definition,
                self.plan,
                settings,
                limits=self.limits,
                paths=self.paths,
                run_id=self.run_id,
                writer=writer,
                log=self.log,
                on_progress=on_progress,
            )
            self.schedule.run()
            return self._finish(writer)

    def fail(self, error: BaseException) -> NoReturn:
        """Leave the reports of a failed run, and raise the error with all that a person needs."""
        try:
            summary = self._account()
            text = self._failure_text(error, summary)
            state = (
                "Failed" if isinstance(error, Exception) else f"Stopped ({type(error).__name__})"
            )
            self._report(summary, state, failed=text)
        except (OSError, sqlite3.Error, ParallelRunError) as unwritten:
            # A full disk must not hide why the run failed.
            self.log.error("The reports of the failed run could not be written: %s", unwritten)
            raise error from None
        if isinstance(error, ParallelRunError):
            raise type(error)(
                text,
                run_id=self.run_id,
                logs_directory=str(self.paths.logs),
                first_errors=failure.first_errors(summary),
            ) from error.__cause__
        raise error

    def _failure_text(self, error: BaseException, summary: RunSummary) -> str:
        if isinstance(error, ParallelRunError):
            return failure.failure_text(summary, cause=str(error), paths=self.paths)
        return "".join(traceback.format_exception(error))

    # -- inside ------------------------------------------------------------------------------

    def _settings(self, entry_script: str, plan: Plan) -> messages.Settings:
        return messages.Settings(
            protocol=messages.PROTOCOL,
            run_id=self.run_id,
            step=self.definition.name,
            node="",
            process_count=self.config.process_count_per_node or 0,
            python="",
            environment=dict(self.config.environment_variables or {}),
            runtime_folder=str(RUNTIME_FOLDER),
            source_folder="",
            source_directory=str(self.config.source_folder),
            entry_script=entry_script,
            arguments=self.definition.script_arguments(str(self.destination)),
            work_folder="",
            output_folder=str(self.destination),
            files=messages.Files(
                stdout="", stderr="", error="", entry_script_log="", system_error=""
            ),
            logging_level=self.config.logging_level,
            run_timeout_s=self.config.run_invocation_timeout,
            load_timeout_s=self.definition.options.task_overhead_timeout,
            init_timeout_s=INIT_TIMEOUTS * self.config.run_invocation_timeout + INIT_GRACE_S,
            shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
            kill_grace_s=KILL_GRACE_S,
            init_failures_allowed=0,
            output_action=self.config.output_action,
            append_row=self._append_row(),
            inputs=plan.readers,
            process="",
        )

    def _append_row(self) -> messages.AppendRow:
        keywords = append_row.to_csv_keywords(self.config.script_path.parent)
        # A header above every mini-batch is never meant: once, at the top, it is.
        wanted = keywords.pop("header", self.definition.options.append_row_dataframe_header)
        return messages.AppendRow(header=bool(wanted), to_csv=keywords)

    def _finish(self, writer: OutputWriter) -> ParallelRunResult:
        writer.flush()
        summary = self._account()
        tally = policy.Tally(
            mini_batches_succeeded=summary.mini_batches.succeeded,
            mini_batches_failed=summary.mini_batches.failed,
            items_succeeded=summary.items.succeeded,
            items_failed=summary.items.failed,
        )
        if why := policy.verdict(self.limits, tally):
            raise (ErrorThresholdExceeded if summary.items.succeeded else EntryScriptError)(why)
        file = None
        if self.rows_wanted:
            file = writer.publish(
                self.destination, self.config.append_row_file_name, order=self.config.output_order
            )
        result = ParallelRunResult(
            name=self.definition.name,
            run_id=self.run_id,
            run_directory=str(self.paths.root),
            output=str(self.destination),
            append_row_file=str(file) if file else None,
            mini_batches=summary.mini_batches,
            items=summary.items,
            attempts=summary.attempts,
            reused=False,
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            logs_directory=str(self.paths.logs),
            report=None,
        )
        self._report(summary, result.state, failed=None)
        reuse.write_manifest(self.paths.root, self.destination, file)
        self.log.info(
            "%s: %s; output: %s", result.state, closing_line(summary), file or self.destination
        )
        return result

    def _account(self) -> RunSummary:
        """Add up what there is; before the first mini-batch there is no journal."""
        if self.schedule is None:
            return RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)
        items = self.plan.items if self.plan is not None else None
        with Journal(self.paths.journal) as journal:
            summary = summarise(journal, mini_batches=self.schedule.planned, items=items)
        starts = failure.process_errors(self.schedule.script_failures, self.paths)
        return replace(summary, errors=summary.errors + starts)

    def _report(self, summary: RunSummary, state: str, *, failed: str | None) -> None:
        failure.write_error_summary(self.paths, summary)
        if summary.items.failed and self.plan is not None:
            kind: Literal["file", "tabular"] = "tabular" if self.plan.kind == "tabular" else "file"
            with Journal(self.paths.journal) as journal:
                failed_items.write_failed_items(self.paths, journal, self._items_of, kind=kind)
        job_result.write_job_result(
            self.paths,
            summary,
            step=self.definition.name,
            run_id=self.run_id,
            state=state,
            output=str(self.destination),
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            failure=failed,
        )

    def _items_of(self, indices: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
        """Yield the items of mini-batches by going through the plan once more."""
        assert self.plan is not None
        wanted = set(indices)
        for mini_batch in self.plan:
            if not wanted:
                return
            if mini_batch.index in wanted:
                wanted.discard(mini_batch.index)
                files = mini_batch.work.get("files")
                yield mini_batch.index, list(files if files is not None else sample(mini_batch))
