"""An incomplete run, gone on with from its folder alone: no flow, no step file (R201)."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_parallelrun import reuse
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import Log, run_step
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.lock import driver_of
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord, kept_definition


def resume(
    paths: RunPaths,
    *,
    with_current_script: bool = False,
    log: Log,
    observers: Sequence[Observer] = (),
) -> ParallelRunResult:
    """Go on with a run that failed, was cancelled or killed; what is done is not run again.

    The step is the one that is kept with the run. Its task run in Prefect stays as it is.

    Args:
        paths: of the run.
        with_current_script: go on although the script has changed. The rows are then those of two
            scripts, and no step takes the run for its own any more.
        log: it gets what the driver's own log file gets.
        observers: see `run_step`.

    Raises:
        OutputError: the run completed, another driver is at work on it, its script or inputs are others
            now, or not all of what is done is there.
        ConfigError, EntryScriptError: the step cannot work as it is now; the run is as it was.
        ParallelRunError: it failed again; what has succeeded meanwhile is kept.
    """
    record = RunRecord.read(paths)
    refuse_completed(record)
    if (driver := driver_of(paths)) is not None:
        raise OutputError(
            f"run {record.run_id} is being worked on by another driver: {driver}. Wait until it has "
            f"ended, or look at it with `parallelrun status {record.run_id}`"
        )
    definition = kept_definition(paths)
    if not with_current_script:
        _refuse_changed_script(paths, record, definition)
    definition.validate()
    listings = definition.list_inputs()
    source = snapshot.digest(definition.config, leave_out=definition.left_out)
    seen = list(reuse.data(definition, listings))
    parts = reuse.fingerprint_parts(definition, source_sha256=source.sha256, seen=seen)
    # Where nothing was planned yet there is nothing to differ from.
    if record.grouping and reuse.contents_of(parts) != record.contents:
        raise OutputError(
            f"files that run {record.run_id} reads changed since, so that its rows would not be of one input: "
            "run the step again, which begins a new run"
        )
    fingerprint = reuse.step_fingerprint(definition.name, parts)
    unchanged = fingerprint == record.fingerprint
    more = " --with-current-script" if with_current_script else ""
    return run_step(
        definition,
        run_folder=paths.root,
        run_id=record.run_id,
        fingerprint=fingerprint if unchanged else "",
        source_sha256=source.sha256,
        log=log,
        listings=listings,
        seen=seen,
        observers=observers,
        again=f"run `parallelrun resume {record.run_id}{more}` to go on",
    )


def refuse_completed(record: RunRecord) -> None:
    """Refuse a run that has nothing left to do.

    Raises:
        OutputError: it completed.
    """
    if not record.completed:
        return
    advice = "there is nothing to go on with"
    if record.state != "Completed":
        advice = f"to try what failed once more, run `parallelrun retry-failed {record.run_id}`"
    raise OutputError(f"run {record.run_id} has ended ({record.state}): {advice}")


def _refuse_changed_script(paths: RunPaths, record: RunRecord, definition: StepDefinition) -> None:
    try:
        files = snapshot.differences(paths.source, definition.config, leave_out=definition.left_out)
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the script of run {record.run_id} cannot be compared with what it was: {error}"
        ) from error
    if files:
        raise OutputError(
            f"the script changed since run {record.run_id} began: {', '.join(files)}. Its rows would be of "
            "two scripts: run the step again, which begins a new run; or put the files back; or give "
            "--with-current-script"
        )
