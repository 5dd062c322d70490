"""What one task run of a step does where Prefect has no result for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import State, get_run_logger
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Completed

from prefect_parallelrun import settings, stopping
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import OutputFileDatasetConfig
from prefect_parallelrun.driver.reopening import NotResumable
from prefect_parallelrun.errors import RunCancelled
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.terminal import TerminalBar
from prefect_parallelrun.report.ticker import ticking
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord
from prefect_parallelrun.ui.events import RunEvents
from prefect_parallelrun.ui.page import Page
from prefect_parallelrun.work import Work


def run_task(
    name: str,
    config: ParallelRunConfig,
    inputs: list[Any],
    side_inputs: list[Any],
    arguments: list[Any],
    output: OutputFileDatasetConfig | None,
    allow_reuse: bool,
) -> ParallelRunResult | State[Any]:
    """Run a step: the body of the task. All that matters is a parameter, for pickling and caching."""
    parameters = {
        "name": name,
        "config": config,
        "inputs": inputs,
        "side_inputs": side_inputs,
        "arguments": arguments,
        "output": output,
    }
    log = get_run_logger()
    with stopping.FlowWatch() as watch, RunEvents(log) as events:
        try:
            work, completion = Work.of_this_task_run(parameters, watch.check)
            with TerminalBar(name, level=log.getEffectiveLevel()) as bar:
                result = _TaskRun(work, completion, allow_reuse, (bar, events), watch).run(bar)
        except RunCancelled as error:
            return watch.end_task_run(error)
        except TerminationSignal as error:
            return watch.end_by_signal(error)
    # The name of the state is what Prefect's pages show.
    named: State[ParallelRunResult] = Completed(name=result.state, data=result)
    return result if result.state == "Completed" else named


@dataclass(frozen=True, slots=True)
class _TaskRun:
    """What each of its sittings needs."""

    work: Work
    completion: str
    """See `RunRecord.completion`."""
    allow_reuse: bool
    observers: Sequence[Observer]
    watch: stopping.FlowWatch

    def run(self, bar: TerminalBar) -> ParallelRunResult:
        """Go on with the earlier run that there is, as far as it can be gone on with."""
        looking = "looking for earlier runs"
        bar.progress(looking, None)
        try:
            with ticking(looking, get_run_logger()):
                earlier, bases, notes = self.work.earlier_run(allow_reuse=self.allow_reuse)
            return self.sit(earlier, bases, notes)
        except NotResumable as reason:
            bases = self.work.bases(allow_reuse=self.allow_reuse)
            return self.sit(None, bases, (f"{reason}; this is a new run",))

    def sit(
        self, earlier: RunRecord | None, bases: Sequence[RunPaths], notes: tuple[str, ...]
    ) -> ParallelRunResult:
        """Go on with an earlier run, or begin one."""
        # Here, since it brings distributed: a step that is reused does not wait for that.
        from prefect_parallelrun.driver.run import AGAIN, run_step

        context = TaskRunContext.get()
        assert context is not None
        work, log = self.work, get_run_logger()
        step = work.definition.name
        run_id = earlier.run_id if earlier is not None else settings.new_run_id(work.fingerprint)
        folder = settings.step_folder(step) / run_id
        with Page(RunPaths(folder), step, log=log) as page:
            return run_step(
                work.definition,
                run_folder=folder,
                run_id=run_id,
                fingerprint=work.fingerprint,
                source_sha256=work.source_sha256,
                task_run=str(context.task_run.id),
                listings=work.listings,
                seen=work.wanted.seen,
                log=log,
                observers=(*self.observers, page),
                watch=self.watch.check,
                completion=self.completion,
                bases=bases,
                reuse_notes=notes,
                again=AGAIN if self.allow_reuse else f"set allow_reuse=True and {AGAIN}",
            )
