"""What one task run of a step is to do, and whether an earlier result may stand for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from prefect import Task, get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import ResultStore
from prefect.settings import get_current_settings

from prefect_parallelrun import reasons, reuse, settings
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.models import Reuse
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.report.terminal import TerminalBar
from prefect_parallelrun.report.ticker import ticking
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord


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
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """Settle the parameters of a task run, list its inputs and read its source; people see that it does.

        Raises:
            ParallelRunError: something in them cannot work.
        """
        definition, log, doing = settled(parameters), get_run_logger(), "listing the inputs"
        bar = TerminalBar(definition.name, level=log.getEffectiveLevel(), kept=False)
        with bar, ticking(doing, log):
            bar.show(doing, None)
            return cls.of_step(definition)

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
            fingerprint=reuse.fingerprint_of(definition.name, parts),
        )
        return cls(definition, listings, source.sha256, wanted)

    @property
    def shows_changes(self) -> bool:
        """Whether it would show in the fingerprint if any of the data were others now."""
        return not self.wanted.blind

    @classmethod
    def of_this_task_run(cls, parameters: Mapping[str, Any]) -> Self:
        """Return what the cache policy found out for this task run, else find it out."""
        context, kept = TaskRunContext.get(), _of_task_run.get()
        _of_task_run.set(None)
        if kept is not None and context is not None and kept[0] == context.task_run.id:
            assert isinstance(kept[1], cls)
            return kept[1]
        return cls.of(parameters)

    def earlier_run(self, *, allow_reuse: bool) -> tuple[RunRecord | None, tuple[str, ...]]:
        """Return the run that this task run goes on with, and in sentences what is reused, or why nothing.

        It is None where this task run is to begin one. Without reuse it is only the one which an earlier
        try of the same task run began.
        """
        context = TaskRunContext.get()
        assert context is not None
        task, task_run = context.task, context.task_run
        runs = settings.step_folder(self.definition.name)
        record, why = reasons.earlier_run(
            self.wanted,
            runs,
            afresh=why_afresh(task, allow_reuse=allow_reuse),
            task_run=str(task_run.id) if task_run.run_count > 1 else None,
            expiration=task.cache_expiration,
        )
        try:
            return record, reasons.explain(self.wanted, runs, record, why).reasons
        # What is only told must not end the run; it meets by itself what is wrong with an earlier one.
        except Exception as error:
            return record, (f"what is reused cannot be told: {type(error).__name__}: {error}",)

    def reuse(self, *, afresh: str | None = None, expiration: timedelta | None = None) -> Reuse:
        """Return what a new task run would take over of earlier runs, without running anything.

        Args:
            afresh: see `why_afresh`.
            expiration: how long an earlier result holds.

        Raises:
            OutputError: the journal of the earlier run cannot be read.
        """
        runs = settings.step_folder(self.definition.name)
        record, why = reasons.earlier_run(self.wanted, runs, afresh=afresh, expiration=expiration)
        return reasons.explain(self.wanted, runs, record, why)


def why_afresh(task: Task[..., Any], *, allow_reuse: bool) -> str | None:
    """Return why a task takes no earlier result; None if it does."""
    if not allow_reuse:
        return "allow_reuse=False"
    refresh = task.refresh_cache
    if refresh is None:
        refresh = get_current_settings().tasks.refresh_cache
    return "Prefect's refresh_cache is on" if refresh else None


_of_task_run: ContextVar[tuple[UUID, Work] | None] = ContextVar("work_of_task_run", default=None)
"""From the cache policy to the task's body, so that the inputs are listed once."""


@dataclass
class ReusePolicy(CachePolicy):
    """Takes an earlier result where the step is the same, nothing failed, and its output is intact.

    A stored result that holds no more cannot be taken out of Prefect's storage, so the key ends
    with a generation: the first that is free, or whose result holds.
    """

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """Return the name under which the result is looked for, and will be stored."""
        task_run = task_ctx.task_run
        if not inputs["allow_reuse"]:
            return f"parallelrun-{task_run.id}"
        try:
            work = Work.of(inputs)
        except ParallelRunError:
            return None  # the task's body meets the same error, and raises it
        if not work.shows_changes:
            _of_task_run.set((task_run.id, work))
            return f"parallelrun-{task_run.id}"
        with ticking("looking for an earlier result", get_run_logger()):
            for generation in itertools.count():
                key = f"parallelrun-{work.fingerprint}-{generation}"
                if not task_ctx.result_store.exists(key):
                    _of_task_run.set((task_run.id, work))
                    return key
                if _holds(task_ctx.result_store, key, RemoteFolder.of(work.definition.output)):
                    return key
        raise AssertionError("there is always a next generation")


def _holds(store: ResultStore, key: str, remote: RemoteFolder | None) -> bool:
    """Return whether a stored result may stand for a new run."""
    # Whatever cannot be read or understood, of whatever version, does not hold.
    with contextlib.suppress(Exception):
        result = store.read(key).result
        return (
            isinstance(result, ParallelRunResult)
            and not result.items.failed
            and not result.mini_batches.failed
            and reuse.is_intact(Path(result.run_directory), remote)
        )
    return False


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
