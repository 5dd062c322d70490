"""What one task run of a step is to do, and what earlier runs have done of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from uuid import UUID, uuid4

from prefect import Task, get_run_logger
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import get_current_settings

from prefect_parallelrun import reasons, reuse, settings
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import watched
from prefect_parallelrun.driver.reopening import stands
from prefect_parallelrun.incremental import plan_new_run
from prefect_parallelrun.models import Reuse
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan, plan_step
from prefect_parallelrun.report.terminal import TerminalBar
from prefect_parallelrun.report.ticker import ticking
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord, kept_cuts


@dataclass(frozen=True, slots=True)
class Work:
    """What a task run is to do, with the files that its inputs have now."""

    definition: StepDefinition
    listings: list[list[FileItem]]
    source_sha256: str
    """Of the source, as it is now."""
    wanted: reasons.Wanted
    """The same, as earlier runs are compared with it."""

    @property
    def fingerprint(self) -> str:
        """See `reuse.step_fingerprint`."""
        return self.wanted.fingerprint

    @classmethod
    def of(cls, parameters: Mapping[str, Any], watch: Callable[[], None]) -> Self:
        """Settle the parameters of a task run, list its inputs and read its source; people see that it does.

        Args:
            parameters: of the task run.
            watch: called several times a second meanwhile; ends that by raising.

        Raises:
            ParallelRunError: something in them cannot work.
            Exception: what `watch` raises.
        """
        definition, log, doing = settled(parameters), get_run_logger(), "listing the inputs"
        bar = TerminalBar(definition.name, level=log.getEffectiveLevel(), kept=False)
        with bar, ticking(doing, log):
            bar.progress(doing, None)
            # Listing a bucket, or reading all files, may take hours.
            found = watched.begun(lambda: cls.of_step(definition), "parallelrun-listing")
            watched.settled(found, math.inf, watch)
            return found.result()

    @classmethod
    def of_step(cls, definition: StepDefinition) -> Self:
        """List the inputs of a step and read its source.

        Raises:
            ParallelRunError: something in them cannot work.
        """
        listings = definition.list_inputs()
        source = snapshot.digest(definition.config, leave_out=definition.left_out)
        seen = list(reuse.data(definition, listings))
        parts = reuse.fingerprint_parts(definition, source_sha256=source.sha256, seen=seen)
        wanted = reasons.Wanted(
            definition=definition,
            seen=seen,
            parts=parts,
            fingerprint=reuse.step_fingerprint(definition.name, parts),
        )
        return cls(definition, listings, source.sha256, wanted)

    @classmethod
    def of_this_task_run(
        cls, parameters: Mapping[str, Any], watch: Callable[[], None]
    ) -> tuple[Self, str]:
        """Return what the cache policy found out for this task run, else find it out; see `of`.

        With it comes the name that its completion gets; see `RunRecord.completion`.

        Raises:
            TerminationSignal: it stopped the cache policy.
        """
        context, kept = TaskRunContext.get(), of_task_run.get()
        of_task_run.set(None)
        if kept is not None and context is not None and kept[0] == context.task_run.id:
            _, work, completion = kept
            if isinstance(work, TerminationSignal):
                raise work
            assert isinstance(work, cls)
            return work, completion
        return cls.of(parameters, watch), uuid4().hex

    def earlier_run(
        self, *, allow_reuse: bool
    ) -> tuple[RunRecord | None, list[RunPaths], tuple[str, ...]]:
        """Return the run that this task run goes on with, and in sentences what is reused, or why nothing.

        It is None where this task run is to begin one; then the list has its bases, see `bases`. Without
        reuse it is only the one which an earlier try of the same task run began.
        """
        record, why = self._found(allow_reuse=allow_reuse)
        bases = [] if record is not None else self.bases(allow_reuse=allow_reuse)
        if record is None and why:
            return None, bases, (why,)
        try:
            if record is not None:
                return record, bases, reasons.explain(self.wanted, self._runs, record).reasons
            if bases:
                return None, bases, ()  # the run tells, once it is planned
            return None, bases, (reasons.nothing_alike(self.wanted, self._runs),)
        # What is only told must not end the run; it meets by itself what is wrong with an earlier one.
        except Exception as error:
            why = f"what is reused cannot be told: {type(error).__name__}: {error}"
            return record, bases, (why,)

    def completion(self, *, allow_reuse: bool) -> str | None:
        """Return the name of the completion whose output stands for this task run; None if none does."""
        record, _ = self._found(allow_reuse=allow_reuse)
        if record is None:
            return None
        paths = RunPaths(self._runs / record.run_id)
        held = stands(paths, record, RemoteFolder.of(self.definition.output))
        return record.completion if held and record.completion else None

    def bases(self, *, allow_reuse: bool) -> list[RunPaths]:
        """Return the earlier runs of which mini-batches may be taken over if this task run begins one."""
        context = TaskRunContext.get()
        assert context is not None
        if why_afresh(context.task, allow_reuse=allow_reuse):
            return []
        return reasons.bases(self.wanted, self._runs, expiration=context.task.cache_expiration)

    def reuse(self, *, afresh: str | None = None, expiration: timedelta | None = None) -> Reuse:
        """Return what a new task run would take over of earlier runs, without running anything.

        Args:
            afresh: see `why_afresh`.
            expiration: how long an earlier result holds.

        Raises:
            DatasetError: an input cannot be read.
            OutputError: the journal of the earlier run cannot be read.
        """
        with TemporaryDirectory(prefix="parallelrun-plan-") as scratch:
            found = self.plan(Path(scratch), afresh=afresh, expiration=expiration).reuse
        assert found is not None
        return found

    def plan(
        self, scratch: Path, *, afresh: str | None = None, expiration: timedelta | None = None
    ) -> Plan:
        """Return the mini-batches of a new task run, with what it would take over of earlier runs.

        Args:
            scratch: see `plan_step`.
            afresh: see `why_afresh`.
            expiration: how long an earlier result holds.

        Raises:
            DatasetError: an input cannot be read.
            OutputError: the journal of the earlier run cannot be read.
        """
        runs, wanted = self._runs, self.wanted
        record, why = reasons.earlier_run(wanted, runs, afresh=afresh, expiration=expiration)
        told: tuple[str, ...] = (why,) if why else ()
        if record is not None:
            found = reasons.explain(wanted, runs, record)
            if found.run_id is not None:
                plan = plan_step(
                    self.definition,
                    scratch=scratch,
                    listings=self.listings,
                    cuts=kept_cuts(RunPaths(runs / record.run_id)),
                )
                plan.reuse = found
                return plan
            told = found.reasons
        planned = plan_new_run(
            self.definition,
            self.listings,
            wanted.seen,
            [] if afresh else reasons.bases(wanted, runs, expiration=expiration),
            scratch=scratch,
            retry_missing=self.definition.config.error_threshold != -1,
        )
        planned.plan.reuse = reasons.explain_new(wanted, runs, planned, told)
        return planned.plan

    @property
    def _runs(self) -> Path:
        """The folder of all runs of the step."""
        return settings.step_folder(self.definition.name)

    def _found(self, *, allow_reuse: bool) -> tuple[RunRecord | None, str]:
        """Return what `reasons.earlier_run` finds for the task run that asks."""
        context = TaskRunContext.get()
        assert context is not None
        task, task_run = context.task, context.task_run
        return reasons.earlier_run(
            self.wanted,
            self._runs,
            afresh=why_afresh(task, allow_reuse=allow_reuse),
            task_run=str(task_run.id) if task_run.run_count > 1 else None,
            expiration=task.cache_expiration,
        )


def why_afresh(task: Task[..., Any], *, allow_reuse: bool) -> str | None:
    """Return why a task takes no earlier result; None if it does."""
    if not allow_reuse:
        return "allow_reuse=False"
    refresh = task.refresh_cache
    if refresh is None:
        refresh = get_current_settings().tasks.refresh_cache
    return "Prefect's refresh_cache is on" if refresh else None


of_task_run: ContextVar[tuple[UUID, Work | TerminationSignal, str] | None] = ContextVar(
    "of_task_run", default=None
)
"""From the cache policy to the task's body: the task run, its work, so that the inputs are listed once,
or the signal that came meanwhile, and the completion that the result is stored under."""


def define(parameters: Mapping[str, Any]) -> StepDefinition:
    """Return the definition that the task's parameters make."""
    side_inputs = [
        (one, one.as_folder() if isinstance(one, ParallelRunResult) else one)
        for one in parameters["side_inputs"]
    ]
    return StepDefinition(
        name=parameters["name"],
        config=parameters["config"],
        inputs=tuple(
            one.as_input(one.name) if isinstance(one, ParallelRunResult) else one
            for one in parameters["inputs"]
        ),
        side_inputs=tuple(dataset for _, dataset in side_inputs),
        arguments=tuple(_as_argument(one, side_inputs) for one in parameters["arguments"]),
        output=parameters["output"],
        never_shipped=(settings.prefect_home(), settings.run_root()),
    )


def settled(parameters: Mapping[str, Any]) -> StepDefinition:
    """Return the definition that the task's parameters make, with no futures left, validated."""
    definition = define(parameters)
    definition.validate()
    return definition


def _as_argument(value: Any, side_inputs: Sequence[tuple[Any, Any]]) -> Any:
    """Return the output of an earlier step as an argument; everything else as it is."""
    if not isinstance(value, ParallelRunResult):
        return value
    datasets = [dataset for result, dataset in side_inputs if result == value]
    return datasets[0] if datasets else value.as_argument()
