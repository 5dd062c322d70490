"""One mini-batch of a run, once more, in this process, with its exact input and arguments (R213)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from prefect_parallelrun import reuse
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import inline
from prefect_parallelrun.driver.bundle import Pending
from prefect_parallelrun.driver.splitting import Part
from prefect_parallelrun.errors import OutputError, refuse
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord, kept_cuts, kept_definition


def replay(
    paths: RunPaths,
    mini_batch: int,
    *,
    items: Part | None = None,
    as_it_was: bool = False,
    with_current_inputs: bool = False,
    tell: Callable[[str], None],
    on_error: Callable[[BaseException], None] | None = None,
) -> Any:
    """Return what `run()` returned for one mini-batch of a run; nothing in the run is changed.

    Args:
        paths: of the run.
        mini_batch: its index, as in every report.
        items: of its items only those from the first number up to the second one, from 0.
        as_it_was: with the script as it was when the run began, not as it is now.
        with_current_inputs: although files that the run reads have changed since.
        tell: gets, in sentences, what is not as it was.
        on_error: see `inline.debug`.

    Raises:
        OutputError: the run cannot be read, was never planned, or its inputs are others now.
        DatasetError: an input cannot be read.
        ConfigError: it has no such mini-batch, or that has no such items.
        Exception: whatever the script raised, as it was.
    """
    if mini_batch < 0:
        raise refuse("mini_batch", mini_batch, "they are counted from 0")
    record = RunRecord.read(paths)
    if not record.grouping:
        raise OutputError(
            f"run {record.run_id} ended before anything was planned, so it has no mini-batches: {paths.job_result} "
            "says why"
        )
    definition = kept_definition(paths)
    with ExitStack() as held:
        if as_it_was:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="parallelrun-replay-"))
            definition = _as_it_was(paths, definition, Path(folder))
        else:
            _tell_of_script(paths, definition, tell)
        definition.validate()
        listings = definition.list_inputs()
        cuts = kept_cuts(paths)
        if reuse.grouping(definition, listings, cuts) != record.grouping:
            raise OutputError(
                f"the inputs of run {record.run_id} are others than they were, so its mini-batches are too"
            )
        if reuse.contents(definition, listings) != record.contents:
            if not with_current_inputs:
                raise OutputError(
                    f"files that run {record.run_id} reads changed since: give --with-current-inputs to "
                    "replay with them as they are now"
                )
            tell("files that the run reads changed since; they are taken as they are now")
        with inline.prepared(definition, listings, cuts) as ready:
            chosen = next(islice(ready.plan, mini_batch, None), None)
            if chosen is None:
                count = len(ready.plan)
                raise refuse(
                    "mini_batch", mini_batch, f"run {record.run_id} has 0 to {count - 1:,}"
                )
            if items is not None and items[1] > (count := ready.count(chosen)):
                noun = "items" if chosen.items is not None else "rows"
                raise refuse("items", f"{items[0]}:{items[1]}", f"it has {count:,} {noun}")
            (result,) = ready.run([Pending(chosen, part=items)], on_error)
            return result


def _as_it_was(paths: RunPaths, definition: StepDefinition, folder: Path) -> StepDefinition:
    """Return the step with the source that the run has kept, unpacked into a folder."""
    config = definition.config
    script = config.script_path.relative_to(config.source_folder)
    try:
        snapshot.unpack(paths.source.read_bytes(), folder)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{paths.source}, the run's own script, cannot be read: {error}"
        ) from error
    changes = {"source_directory": str(folder), "entry_script": str(folder / script)}
    return replace(definition, config=config.model_copy(update=changes))


def _tell_of_script(
    paths: RunPaths, definition: StepDefinition, tell: Callable[[str], None]
) -> None:
    try:
        files = snapshot.differences(paths.source, definition.config, leave_out=definition.left_out)
    except (OSError, ValueError) as error:
        tell(f"it cannot be seen whether the script is as it was: {error}")
        return
    if files:
        tell(
            f"the script changed since the run began: {', '.join(files)}; --as-it-was takes the run's own"
        )
