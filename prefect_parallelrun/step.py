"""ParallelRunStep: the step as Prefect sees it, one task run with futures, caching and a result."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload
from uuid import uuid4

from prefect import State, Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, resolve_futures_to_results
from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
from prefect.utilities.annotations import BaseAnnotation

from prefect_parallelrun import checks, flow_parameters, stopping
from prefect_parallelrun.cache_policy import ReusePolicy
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition, check_name
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.pipeline_parameter import PipelineParameter, blamed
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.task_run import run_task
from prefect_parallelrun.work import Work, define, settled, why_afresh

if TYPE_CHECKING:
    from prefect_parallelrun.blocks import ParallelRunConfigBlock
    from prefect_parallelrun.models import Reuse
    from prefect_parallelrun.planning import Plan

_PENDING = (PrefectFuture, State, BaseAnnotation)
"""What stands for a value that is known only once earlier tasks have run."""
_LISTS = ("inputs", "side_inputs", "arguments")
"""The parameters in which single values may be pipeline parameters, or pending."""
_TRACED = 100
"""Of so many paths of a dataset Prefect is asked which task they came from."""


class ParallelRunStep:
    """A parallel job that a flow calls, over files or tables; one task run per call.

    Args:
        name: 3 to 32 lower-case letters, digits and dashes; names the task run and the run folders.
        parallel_run_config: the entry script, and how it runs; also a block with these settings.
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
        parallel_run_config: ParallelRunConfig | ParallelRunConfigBlock,
        inputs: Sequence[Any],
        *,
        output: OutputFileDatasetConfig | str | Path | None = None,
        side_inputs: Sequence[Any] | None = None,
        arguments: Sequence[Any] | None = None,
        allow_reuse: bool = True,
        task_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_name(name)
        self.name = name
        self.parallel_run_config = _as_config(parallel_run_config).located()
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
        # It returns a state where it was cancelled or failures were tolerated; `__call__` opens that.
        body = cast("Callable[..., ParallelRunResult]", run_task)
        self._task: Task[..., ParallelRunResult] = Task(
            fn=body, name=name, **{**options, **self.task_options}
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
        with _quiet_logs(), stopping.stops_on_sigterm():
            ended: ParallelRunResult | State[ParallelRunResult] = self._task(
                **parameters,
                return_state=return_state,
                wait_for=_with_paths(wait_for, parameters),
            )
        if isinstance(ended, State):
            # Of a task that returned a state, Prefect gives that out, whatever was asked for.
            stopping.raise_cause(ended, signals_only=return_state)
            if not return_state:
                return ended.result()
        return ended

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
        parameters = self._now()
        future: PrefectFuture[ParallelRunResult] = self._task.submit(
            **parameters, wait_for=_with_paths(wait_for, parameters)
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

    def definition(self) -> StepDefinition:
        """Return the step as it would run now, with every value known; futures are waited for.

        Raises:
            ParallelRunError: it cannot work.
        """
        return settled(resolve_futures_to_results(self._now()))

    def plan(self, work: Work | None = None) -> Plan:
        """Return what would run, without running anything: counts, sizes and the mini-batches.

        Args:
            work: of this step, where its inputs have been listed already.
        """
        work = work or Work.of_step(self.definition())
        # DataFrames are written there, for whoever reads mini-batches of the plan.
        scratch = Path(tempfile.gettempdir(), f"parallelrun-plan-{uuid4().hex}")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return work.plan(
            scratch,
            afresh=why_afresh(self._task, allow_reuse=self.allow_reuse),
            expiration=self._task.cache_expiration,
        )

    def explain(self, work: Work | None = None) -> Reuse:
        """Return what a run would take over of earlier ones, and why not more (R210); runs nothing.

        Args:
            work: of this step, where its inputs have been listed already.
        """
        return (work or Work.of_step(self.definition())).reuse(
            afresh=why_afresh(self._task, allow_reuse=self.allow_reuse),
            expiration=self._task.cache_expiration,
        )

    def debug(
        self,
        mini_batches: int = 1,
        *,
        index: int = 0,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> list[Any]:
        """Run the script in this process, for a debugger, and return what `run()` returned.

        A breakpoint in the script works, and the script's own exception is raised. Nothing is kept: the
        output folder is a temporary one.

        Args:
            mini_batches: so many of them.
            index: the first of them; see `plan()`.
            on_error: called with what the script raised, while working directory, environment and
                `sys.argv` are still the script's: for a debugger.
        """
        from prefect_parallelrun.driver import inline

        checks.whole_number(least=1)("mini_batches", mini_batches)
        checks.whole_number(least=0)("index", index)
        results: list[Any] = inline.debug(
            self.definition(), mini_batches=mini_batches, index=index, on_error=on_error
        )
        return results

    def _now(self) -> dict[str, Any]:
        """Return the parameters of the task, with the pipeline parameters of this flow run."""
        return self._parameters(flow_parameters.of_this_flow_run())

    def _parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the task, refusing what can be known to be wrong already.

        Args:
            given: the parameters of the flow run.
        """
        parameters: dict[str, Any] = {
            "name": self.name,
            "config": self.parallel_run_config.resolved(given),
            **{
                where: [flow_parameters.chosen(where, one, given) for one in getattr(self, where)]
                for where in _LISTS
            },
            "output": self.output,
            "allow_reuse": self.allow_reuse,
        }
        known, pending = dict(parameters), False
        for part in _LISTS:
            if any(isinstance(one, _PENDING) for one in parameters[part]):
                pending = True
                # Half of the arguments would be read wrongly, half of the datasets would not.
                rest = [one for one in parameters[part] if not isinstance(one, _PENDING)]
                known[part] = [] if part == "arguments" else rest
        with blamed(*self._pipeline_parameters(given)):
            define(known).validate(inputs_pending=pending)
        return parameters

    def _pipeline_parameters(self, given: Mapping[str, Any]) -> list[tuple[str, PipelineParameter]]:
        """Return what the parameters of the flow run give, with where it stands."""
        found = [
            *self.parallel_run_config.pipeline_parameters,
            *((where, one) for where in _LISTS for one in getattr(self, where)),
        ]
        return [
            (where, one)
            for where, one in found
            if isinstance(one, PipelineParameter) and one.name in given
        ]


def _with_paths(wait_for: Any, parameters: Mapping[str, Any]) -> list[Any]:
    """Return what is to be waited for, and paths of the datasets, which Prefect does not look into.

    Of one that is the result of a task, its pages then draw the edge.
    """
    datasets = [*parameters["inputs"], *parameters["side_inputs"]]
    given = [islice(getattr(one, "paths", ()), _TRACED) for one in datasets]
    return [wait_for, *chain.from_iterable(given)]


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep Prefect from warning, outside of flows, that logs of tasks need a flow to be sent."""
    setting = PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW
    if FlowRunContext.get() is not None or setting.value() != "warn":
        yield
        return
    with temporary_settings({setting: "ignore"}):
        yield


def _as_config(value: Any) -> ParallelRunConfig:
    # By its method: importing the blocks takes 0.1 s, for a class that is there once there is a block.
    config = value.to_config() if hasattr(value, "to_config") else value
    if not isinstance(config, ParallelRunConfig):
        wanted = "a ParallelRunConfig, or a ParallelRunConfigBlock"
        raise checks.unfit("parallel_run_config", value, wanted)
    return config


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
