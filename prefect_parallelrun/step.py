"""ParallelRunStep: the step as Prefect sees it, one task run with futures, caching and a result."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload
from uuid import uuid4

from prefect import State, Task, get_run_logger
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, resolve_futures_to_results
from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings
from prefect.states import Completed
from prefect.utilities.annotations import BaseAnnotation

from prefect_parallelrun import checks, settings, stopping
from prefect_parallelrun.config import ParallelRunConfig, PipelineParameter
from prefect_parallelrun.datasets import Dataset, FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition, check_name
from prefect_parallelrun.errors import ConfigError, RunCancelled
from prefect_parallelrun.report.terminal import TerminalBar
from prefect_parallelrun.report.ticker import ticking
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.work import ReusePolicy, Work, define, settled, why_afresh

if TYPE_CHECKING:
    from prefect_parallelrun.models import Reuse
    from prefect_parallelrun.planning import Plan
    from prefect_parallelrun.run_record import RunRecord

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
        # It returns a state where it was cancelled or failures were tolerated; `__call__` opens that.
        body = cast("Callable[..., ParallelRunResult]", _run_step)
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
                **parameters, return_state=return_state, wait_for=wait_for
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

    def definition(self) -> StepDefinition:
        """Return the step as it would run now, with every value known; futures are waited for.

        Raises:
            ParallelRunError: it cannot work.
        """
        return settled(resolve_futures_to_results(self._now()))

    def plan(self) -> Plan:
        """Return what would run, without running anything: counts, sizes and the mini-batches."""
        from prefect_parallelrun.planning import plan_step

        work = Work.of_step(self.definition())
        # DataFrames are written there, for whoever reads mini-batches of the plan.
        scratch = Path(tempfile.gettempdir(), f"parallelrun-plan-{uuid4().hex}")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        plan = plan_step(work.definition, scratch=scratch, listings=work.listings)
        plan.reuse = self.explain(work)
        return plan

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
        define(known).validate(inputs_pending=pending)
        return parameters


def _run_step(
    name: str,
    config: ParallelRunConfig,
    inputs: list[Any],
    side_inputs: list[Any],
    arguments: list[Any],
    output: OutputFileDatasetConfig | None,
    allow_reuse: bool,
) -> ParallelRunResult | State[Any]:
    """Run a step: the body of the task. All that matters is a parameter, for pickling and caching."""
    # Here, since it brings distributed: a step that is reused does not wait for that.
    from prefect_parallelrun.driver.reopening import NotResumable

    work = Work.of_this_task_run(
        {
            "name": name,
            "config": config,
            "inputs": inputs,
            "side_inputs": side_inputs,
            "arguments": arguments,
            "output": output,
        }
    )
    again = None if allow_reuse else "set allow_reuse=True and run the step again to go on"
    level, looking = get_run_logger().getEffectiveLevel(), "looking for earlier runs"
    with TerminalBar(name, level=level) as bar, stopping.FlowWatch() as watch:
        try:
            try:
                bar.show(looking, None)
                with ticking(looking, get_run_logger()):
                    earlier, notes = work.earlier_run(allow_reuse=allow_reuse)
                result = _sit(work, earlier, notes, again, bar, watch)
            except NotResumable as reason:
                result = _sit(work, None, (f"{reason}; this is a new run",), again, bar, watch)
        except RunCancelled as error:
            return watch.end_task_run(error)
        except TerminationSignal as error:
            return watch.end_by_signal(error)
    # The name of the state is what Prefect's pages show.
    named: State[ParallelRunResult] = Completed(name=result.state, data=result)
    return result if result.state == "Completed" else named


def _sit(
    work: Work,
    earlier: RunRecord | None,
    notes: tuple[str, ...],
    again: str | None,
    bar: TerminalBar,
    watch: stopping.FlowWatch,
) -> ParallelRunResult:
    """Go on with an earlier run, or begin one."""
    from prefect_parallelrun.driver.run import AGAIN, run_step

    context = TaskRunContext.get()
    assert context is not None
    run_id = earlier.run_id if earlier is not None else settings.new_run_id(work.fingerprint)
    return run_step(
        work.definition,
        run_folder=settings.step_folder(work.definition.name) / run_id,
        run_id=run_id,
        fingerprint=work.fingerprint,
        source_sha256=work.source_sha256,
        task_run=str(context.task_run.id),
        listings=work.listings,
        log=get_run_logger(),
        on_progress=bar.show,
        watch=watch.check,
        reuse_notes=notes,
        again=again or AGAIN,
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
        return default.at(chosen)
    return chosen
