"""A few mini-batches in this process, so that a breakpoint works and the script's own exception is raised.

No cluster, no supervisor, no retries, no time-outs; the same loader and the same way into the script.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.bundle import Bundle, Pending
from prefect_parallelrun.driver.sources import Fetched
from prefect_parallelrun.errors import DatasetError, refuse
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.node.fetching import Fetching
from prefect_parallelrun.node.side_inputs import with_paths
from prefect_parallelrun.node.transfer import Unavailable
from prefect_parallelrun.planning import Plan, plan_step
from prefect_parallelrun.run_record import Cuts
from prefect_parallelrun_runtime import encode, entry_script, load, path_values, script
from prefect_parallelrun_runtime.load_error import LoadError

_logger = logging.getLogger(__name__)

OnError = Callable[[BaseException], None]
"""Called with what the script raised while everything is still as it was then; for a debugger."""


def debug(
    definition: StepDefinition,
    *,
    mini_batches: int,
    index: int = 0,
    on_error: OnError | None = None,
) -> list[Any]:
    """Call `init()`, then `run()` on some mini-batches, then `shutdown()`; all in this process.

    Args:
        definition: of the step.
        mini_batches: how many.
        index: of the first of them.
        on_error: see `OnError`; what the script raised is raised all the same.

    Returns:
        What `run()` returned, one element per mini-batch.

    Raises:
        ConfigError: there is no mini-batch of that index.
        Exception: whatever the script raised, as it was.
        BadReturn: `run()` returned something that has no rows, or none of the output's format.
    """
    with prepared(definition, definition.list_inputs()) as here:
        chosen = list(islice(here.plan, index, index + mini_batches))
        if index and not chosen:
            raise refuse("index", index, f"the step has {len(here.plan):,} mini-batches, from 0")
        return here.run([Pending(one) for one in chosen], on_error)


@contextmanager
def prepared(
    definition: StepDefinition, listings: Sequence[Sequence[FileItem]], cuts: Cuts = None
) -> Iterator[Here]:
    """Plan a step, and fetch what its nodes would; what is written for that is removed at the end.

    Args:
        definition: of the step.
        listings: the files of each input.
        cuts: see `plan_step`.

    Raises:
        DatasetError: an input or a side input cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="parallelrun-debug-") as name:
        folder = Path(name)
        plan = plan_step(definition, scratch=folder / "inputs", listings=listings, cuts=cuts)
        with _as_a_node(
            definition, Fetched(definition, plan, listings, folder / "inputs"), plan, folder
        ) as node:
            yield Here(definition, plan, node, folder)


class Here:
    """A step that is ready to run in this process."""

    def __init__(self, definition: StepDefinition, plan: Plan, node: _Node, folder: Path) -> None:
        self.plan = plan
        self._definition = definition
        self._node = node
        self._folder = folder
        self.seconds: list[float] = []
        """How long each mini-batch took that was run, its loading included."""

    def count(self, mini_batch: MiniBatch) -> int:
        """Return how many items a mini-batch has, which for rows only its data tell.

        Raises:
            DatasetError: they cannot be read.
        """
        if mini_batch.items is not None:
            return mini_batch.items
        reader = _reader(self.plan.readers, mini_batch.input_index)
        return self._node.count(Pending(mini_batch), reader)

    def run(self, chosen: Sequence[Pending], on_error: OnError | None) -> list[Any]:
        """Return what `run()` returned for mini-batches, or parts of them."""
        # Not the step's own: what is tried out is not its output.
        output = self._folder / "output"
        output.mkdir()
        process = self._folder / "process000"
        with _as_in_a_worker_process(self._definition, process, output):
            try:
                return self._call_script(chosen, output)
            except BaseException as error:
                if on_error is not None:
                    on_error(error)
                raise

    def _call_script(self, chosen: Sequence[Pending], output: Path) -> list[Any]:
        config = self._definition.config
        if config.environment is not None:
            _logger.warning(
                "environment (%s) is not used here: the script runs in this program's own Python, %s",
                config.environment,
                sys.executable,
            )
        loaded = script.load_script(
            str(config.script_path),
            str(config.source_folder),
            self._node.arguments(self._definition.node_arguments(), output),
        )
        if loaded.init is not None:
            loaded.init()
        readers = self.plan.readers
        results = []
        for one in chosen:
            began = time.perf_counter()
            results.append(
                self._node.run(loaded, one, _reader(readers, one.mini_batch.input_index))
            )
            self.seconds.append(time.perf_counter() - began)
        if loaded.shutdown is not None:
            loaded.shutdown()
        for result in results:
            encode.encode(
                result, config.output_action, {"header": False, "to_csv": {}}, config.output_format
            )
        return results


class _Node:
    """Fetches, in this process, what the agent of a node would."""

    def __init__(self, fetched: Fetched, fetching: Fetching, folder: Path) -> None:
        self._fetched = fetched
        self._fetching = fetching
        self._paths = fetching.begin(folder)

    def arguments(self, texts: list[str], output: Path) -> list[str]:
        """Return the script's arguments with the paths of side inputs and output."""
        return with_paths(texts, self._paths, output=str(output))

    def run(self, loaded: script.Script, one: Pending, reader: dict[str, Any]) -> Any:
        """Call `run()` while the data of its mini-batch is there."""
        with self._staged(one) as (index, work):
            return _run(loaded, index, work, reader)

    def count(self, one: Pending, reader: dict[str, Any]) -> int:
        """Return how many items there are.

        Raises:
            DatasetError: they cannot be read.
        """
        try:
            with self._staged(one) as (_, work):
                return load.load(work, reader).items
        except LoadError as error:
            raise DatasetError(str(error)) from error

    @contextmanager
    def _staged(self, one: Pending) -> Iterator[tuple[int, dict[str, Any]]]:
        bundle = Bundle(number=one.mini_batch.index, node="", members=[one])
        tasks = json.dumps(self._fetched.tasks(bundle)).encode()
        with self._fetching.staged(bundle.number, tasks) as ready:
            [[index, _, _, work]] = json.loads(ready)
            yield index, work


@contextmanager
def _as_a_node(
    definition: StepDefinition, fetched: Fetched, plan: Plan, folder: Path
) -> Iterator[_Node]:
    """Have what nodes fetch: the side inputs now, the rest when it is its turn.

    Raises:
        DatasetError: a side input cannot be had.
    """
    fetching = Fetching(
        fetched.sources,
        run_id=folder.name.removeprefix("parallelrun-"),
        node="debug",
        readers=plan.readers,
        limit_s=definition.options.task_overhead_timeout,
        tell=lambda event: None,
    )
    try:
        yield _Node(fetched, fetching, folder)
    except Unavailable as error:
        raise DatasetError(str(error)) from None
    finally:
        fetching.close()


def _reader(readers: list[dict[str, Any]], input_index: int) -> dict[str, Any]:
    return readers[input_index] if input_index >= 0 else {}


def _run(loaded: script.Script, index: int, work: dict[str, Any], reader: dict[str, Any]) -> Any:
    mini_batch = load.load(work, reader)
    if not mini_batch.items:  # a byte range in which no row begins: run() does not get it
        return []
    if isinstance(mini_batch.data, load.FileList):
        mini_batch.data.task_id = index
    if not loaded.wants_context:
        return loaded.run(mini_batch.data)
    key = path_values.key_of(work, reader)
    context = script.MiniBatchContext(index, mini_batch.dataset, key)
    return loaded.run(mini_batch.data, context)


@contextmanager
def _as_in_a_worker_process(
    definition: StepDefinition, folder: Path, output: Path
) -> Iterator[None]:
    """Give the script the arguments, environment and working directory of a worker process."""
    folder.mkdir()
    # Copies, since a script may write into its working directory.
    snapshot.lay_out(definition.config, folder, leave_out=(*definition.left_out, folder.parent))
    before = os.environ.copy(), sys.argv[:], sys.path[:], Path.cwd()
    modules = set(sys.modules)
    os.environ.update(definition.config.environment_variables or {})
    os.environ["AZUREML_BI_OUTPUT_PATH"] = str(output)
    entry_script.configure_here(
        log_dir=str(folder.parent / "logs"),
        output_dir=str(output),
        level=str(definition.config.logging_level),
    )
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before[3])
        sys.path[:], sys.argv[:] = before[2], before[1]
        _forget_modules(set(sys.modules) - modules, definition.config.source_folder)
        os.environ.clear()
        os.environ.update(before[0])


def _forget_modules(names: set[str], source_folder: Path) -> None:
    """Forget the script and its helpers: the next step may have others of the same names, or edited."""
    for name in names:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(source_folder):
            del sys.modules[name]
