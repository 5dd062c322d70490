"""ParallelRunStep: the step as Prefect sees it, one task run with futures, caching and a result."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload
from uuid import UUID

from prefect import State, Task, get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectFuture, resolve_futures_to_results
from prefect.results import ResultStore
from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
from prefect.utilities.annotations import BaseAnnotation

from prefect_parallelrun import checks, reuse, settings
from prefect_parallelrun.config import ParallelRunConfig, PipelineParameter
from prefect_parallelrun.datasets import Dataset, FileDataset, FileItem, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition, check_name
from prefect_parallelrun.errors import ConfigError, ParallelRunError
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.result import ParallelRunResult

if TYPE_CHECKING:
    from prefect_parallelrun.planning import Plan

_PENDING = (PrefectFuture, State, BaseAnnotation)
"""What stands for a value that is known only once earlier tasks have run."""


class ParallelRunStep:
    """A parallel job that a flow calls, over files or tables; one task run per call.

    Args:
        name: 3 to 32 lower-case letters, digits and dashes; names the task run and the run folders.
        parallel_run_config: the entry script, and how it runs.
        inputs: datasets of one kind, each cut into mini-batches by itself; also futures and
            results of earlier steps.
        output: folder for the output, or an OutputFileDatasetConfig; without it a folder of the run.
        side_inputs: FileDatasets that every mini-batch can read, not cut.
        arguments: for the script's `sys.argv`; a dataset or output among them becomes its path.
        allow_reuse: whether an earlier result of the same settings and inputs is taken.
        task_options: options of Prefect's task, such as retries.

    Raises:
        ConfigError: a value cannot work; nothing has been started.
        EntryScriptError: the entry script cannot work; nothing has been started.
    """

    def __init__(
        self,
        name: str,
        parallel_run_config: ParallelRunConfig,
        inputs: Sequence[Any],
        *,
        output: OutputFileDatasetConfig | str | Path | None = None,
        side_inputs: Sequence[Any] | None = None,
        arguments: Sequence[Any] | None = None,
        allow_reuse: bool = True,
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_name(name)
        if not isinstance(parallel_run_config, ParallelRunConfig):
            raise checks.unfit("parallel_run_config", parallel_run_config, "a ParallelRunConfig")
        self.name = name
        self.parallel_run_config = parallel_run_config.located()
        self.inputs = _listed("inputs", inputs)
        self.output = _as_output(output)
        self.side_inputs = _listed("side_inputs", side_inputs or ())
        self.arguments = _listed("arguments", arguments or ())
        self.allow_reuse = checks.flag("allow_reuse", allow_reuse)
        self.task_options = dict(task_options or {})
        self._parameters({})
        options: dict[str, Any] = {
            "task_run_name": name,
            "cache_policy": ReusePolicy(),
            "persist_result": True,
            "result_serializer": "json",
            # The stored form says that it was reused; one kept in memory would not.
            "cache_result_in_memory": False,
        }
        self._task: Task[..., ParallelRunResult] = Task(
            fn=_run_step, name=name, **{**options, **self.task_options}
        )

    def __repr__(self) -> str:
        return f"ParallelRunStep({self.name!r})"

    @overload
    def __call__(
        self, *, return_state: Literal[False] = False, wait_for: Any = None
    ) -> ParallelRunResult: ...

    @overload
    def __call__(
        self, *, return_state: Literal[True], wait_for: Any = None
    ) -> State[ParallelRunResult]: ...

    def __call__(
        self, *, return_state: bool = False, wait_for: Any = None
    ) -> ParallelRunResult | State[ParallelRunResult]:
        """Run the step, in a flow or in a plain script, and return its result.

        Args:
            return_state: return the state of the task run instead, and do not raise.
            wait_for: futures of tasks that must have ended before.

        Raises:
            ParallelRunError: the run failed; the text shows the script's own error.
        """
        parameters = self._now()
        with _quiet_logs():
            result: ParallelRunResult | State[ParallelRunResult] = self._task(
                **parameters, return_state=return_state, wait_for=wait_for
            )
        return result

    def submit(self, *, wait_for: Any = None) -> PrefectFuture[ParallelRunResult]:
        """Start the step on the flow's task runner and return a future, for other tasks to take.

        Raises:
            ConfigError: there is no flow, so there is no task runner.
        """
        if FlowRunContext.get() is None:
            raise ConfigError(
                f"{self.name}.submit() was called outside of a flow, where there is no task runner: "
                "call the step itself, or submit it in a flow"
            )
        future: PrefectFuture[ParallelRunResult] = self._task.submit(
            **self._now(), wait_for=wait_for
        )
        return future

    def with_options(self, **task_options: Any) -> ParallelRunStep:
        """Return the same step with other options of Prefect's task, such as `retries=2`."""
        return ParallelRunStep(
            task_options.pop("name", self.name),
            self.parallel_run_config,
            self.inputs,
            output=self.output,
            side_inputs=self.side_inputs,
            arguments=self.arguments,
            allow_reuse=self.allow_reuse,
            task_options={**self.task_options, **task_options},
        )

    def plan(self) -> Plan:
        """Return what would run, without running anything: counts, sizes and the mini-batches."""
        from prefect_parallelrun.planning import make_plan

        work = _Work.of(resolve_futures_to_results(self._now()))
        definition = work.definition
        # Tables in memory are written there, for whoever reads mini-batches of the plan.
        scratch = tempfile.mkdtemp(prefix=f"parallelrun-plan-{self.name}-")
        plan = make_plan(
            definition.inputs,
            work.listings,
            mini_batch_size=definition.config.mini_batch_size,
            scratch=Path(scratch),
            rank_mini_batch_count=definition.options.rank_mini_batch_count,
        )
        weakref.finalize(plan, shutil.rmtree, scratch, ignore_errors=True)
        return plan

    def debug(self, mini_batches: int = 1) -> list[Any]:
        """Run the script in this process, for a debugger, and return what `run()` returned.

        Args:
            mini_batches: so many of the first mini-batches; the script's own exception is raised.
        """
        from prefect_parallelrun.driver import inline

        checks.whole_number(least=1)("mini_batches", mini_batches)
        definition = _settled(resolve_futures_to_results(self._now()))
        results: list[Any] = inline.debug(definition, mini_batches=mini_batches)
        return results

    def _now(self) -> dict[str, Any]:
        """Return the parameters of the task, with the pipeline parameters of this flow run."""
        flow_run = FlowRunContext.get()
        return self._parameters(flow_run.parameters or {} if flow_run is not None else {})

    def _parameters(self, flow_parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the task, refusing what can be known to be wrong already."""
        parameters: dict[str, Any] = {
            "name": self.name,
            "config": self.parallel_run_config.resolved(flow_parameters),
            "inputs": [_chosen(one, flow_parameters) for one in self.inputs],
            "side_inputs": [_chosen(one, flow_parameters) for one in self.side_inputs],
            "arguments": [_chosen(one, flow_parameters) for one in self.arguments],
            "output": self.output,
            "allow_reuse": self.allow_reuse,
        }
        known, pending = dict(parameters), False
        for part in ("inputs", "side_inputs", "arguments"):
            if any(isinstance(one, _PENDING) for one in parameters[part]):
                pending = True
                # Half of the arguments would be read wrongly, half of the datasets would not.
                rest = [one for one in parameters[part] if not isinstance(one, _PENDING)]
                known[part] = [] if part == "arguments" else rest
        _define(known).validate(inputs_pending=pending)
        return parameters


@dataclass(frozen=True, slots=True)
class _Work:
    """What a task run is to do, with the files that its inputs have now."""

    definition: StepDefinition
    listings: list[list[FileItem]]

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """Settle the parameters of a task run, and list its inputs.

        Raises:
            ParallelRunError: something in them cannot work.
        """
        definition = _settled(parameters)
        if definition.options.rank_mini_batch_count is not None:
            return cls(definition, [[] for _ in definition.inputs])
        return cls(definition, [dataset.list_files() for dataset in definition.inputs])


_work_of_task_run: ContextVar[tuple[UUID, _Work] | None] = ContextVar(
    "work_of_task_run", default=None
)
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
            work = _Work.of(inputs)
            source = snapshot.digest(work.definition.config, leave_out=work.definition.left_out)
            fingerprint = reuse.step_fingerprint(
                work.definition, source_sha256=source.sha256, listings=work.listings
            )
        except ParallelRunError:
            return None  # the task's body meets the same error, and raises it
        for generation in itertools.count():
            key = f"parallelrun-{fingerprint}-{generation}"
            if not task_ctx.result_store.exists(key):
                _work_of_task_run.set((task_run.id, work))
                return key
            if _holds(task_ctx.result_store, key):
                return key
        raise AssertionError("there is always a next generation")


def _holds(store: ResultStore, key: str) -> bool:
    """Return whether a stored result may stand for a new run."""
    # Whatever cannot be read or understood, of whatever version, does not hold.
    with contextlib.suppress(Exception):
        result = store.read(key).result
        return (
            isinstance(result, ParallelRunResult)
            and not result.items.failed
            and not result.mini_batches.failed
            and reuse.is_intact(Path(result.run_directory))
        )
    return False


def _run_step(
    name: str,
    config: ParallelRunConfig,
    inputs: list[Any],
    side_inputs: list[Any],
    arguments: list[Any],
    output: OutputFileDatasetConfig | None,
    allow_reuse: bool,
) -> ParallelRunResult:
    """Run a step: the body of the task. All that matters is a parameter, for pickling and caching."""
    # Here, since it brings distributed: a step that is reused does not wait for that.
    from prefect_parallelrun.driver.run import run_step

    context, kept = TaskRunContext.get(), _work_of_task_run.get()
    _work_of_task_run.set(None)
    if kept is not None and context is not None and kept[0] == context.task_run.id:
        work = kept[1]
    else:
        work = _Work.of(
            {
                "name": name,
                "config": config,
                "inputs": inputs,
                "side_inputs": side_inputs,
                "arguments": arguments,
                "output": output,
            }
        )
    run_id = settings.new_run_id()
    return run_step(
        work.definition,
        run_folder=settings.run_root() / name / run_id,
        run_id=run_id,
        listings=work.listings,
        log=get_run_logger(),
    )


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Prefect from warning, outside of flows, that logs of tasks need a flow to be sent."""
    setting = PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW
    if FlowRunContext.get() is not None or setting.value() != "warn":
        yield
        return
    with temporary_settings({setting: "ignore"}):
        yield


def _define(parameters: Mapping[str, Any]) -> StepDefinition:
    """Return the definition that the task's parameters make."""
    return StepDefinition(
        name=parameters["name"],
        config=parameters["config"],
        inputs=tuple(_as_dataset(one) for one in parameters["inputs"]),
        side_inputs=tuple(_as_dataset(one) for one in parameters["side_inputs"]),
        arguments=tuple(
            one.output if isinstance(one, ParallelRunResult) else one
            for one in parameters["arguments"]
        ),
        output=parameters["output"],
        never_shipped=(settings.prefect_home(), settings.run_root()),
    )


def _settled(parameters: Mapping[str, Any]) -> StepDefinition:
    """Return the definition that the task's parameters make, with no futures left, validated."""
    definition = _define(parameters)
    definition.validate()
    return definition


def _as_dataset(value: Any) -> Any:
    """Return the output of an earlier step as a dataset; everything else as it is."""
    return value.as_input(value.name) if isinstance(value, ParallelRunResult) else value


def _as_output(value: Any) -> OutputFileDatasetConfig | None:
    if value is None or isinstance(value, OutputFileDatasetConfig):
        return value
    if not isinstance(value, (str, Path)) or not str(value):
        raise checks.unfit("output", value, "a folder, or an OutputFileDatasetConfig")
    return OutputFileDatasetConfig(destination=str(value))


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise checks.unfit(name, value, "a list")
    return list(value)


def _chosen(value: Any, flow_parameters: Mapping[str, Any]) -> Any:
    """Return the value of a pipeline parameter; everything else as it is.

    Where the default is a FileDataset, the flow's parameter may be a path: what a person can type.
    """
    if not isinstance(value, PipelineParameter):
        return value
    chosen, default = value.value(flow_parameters), value.default_value
    if isinstance(default, FileDataset) and not isinstance(chosen, Dataset):
        dataset = FileDataset.from_files(chosen)
        return dataset.as_named_input(default.name) if default.name else dataset
    return chosen
