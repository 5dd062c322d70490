"""Only what failed, once more, with the script as it is now, into the same output (R204)."""

from __future__ import annotations

from collections.abc import Sequence

from prefect_parallelrun import reuse
from prefect_parallelrun.driver.run import AGAIN, Log, run_step
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.observer import Observer
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.run_record import RunRecord, kept_cuts, kept_definition


def retry_failed(
    paths: RunPaths, *, log: Log, observers: Sequence[Observer] = ()
) -> ParallelRunResult:
    """Run again what failed in a run that has ended, and merge it into the run's output.

    The step is as it was, but for what its files hold now: source, inputs, side inputs. Where one of
    these has changed, the rows belong to no fingerprint any more, and no step takes the run for its own.

    Raises:
        OutputError: the step itself goes on with the run, nothing in it failed, its inputs are
            others now, or not all of what its script wrote is there.
        ConfigError, EntryScriptError: the step cannot work as it is now; the run is as it was.
        ParallelRunError: it failed again; what has succeeded meanwhile is kept.
    """
    record = RunRecord.read(paths)
    _refuse_what_a_step_goes_on_with(paths, record)
    definition = kept_definition(paths)
    definition.validate()
    listings = definition.list_inputs()
    if reuse.grouping(definition, listings, kept_cuts(paths)) != record.grouping:
        raise OutputError(
            f"the inputs of run {record.run_id} are others than they were, so it cannot be said "
            "which of them failed: run the step itself again"
        )
    source = snapshot.digest(definition.config, leave_out=definition.left_out)
    seen = list(reuse.data(definition, listings))
    parts = reuse.fingerprint_parts(definition, source_sha256=source.sha256, seen=seen)
    fingerprint = reuse.step_fingerprint(definition.name, parts)
    unchanged = fingerprint == record.fingerprint
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
        retry_missing=True,
        again=(
            AGAIN if unchanged else f"run `parallelrun retry-failed {record.run_id}` again to go on"
        ),
    )


def _refuse_what_a_step_goes_on_with(paths: RunPaths, record: RunRecord) -> None:
    """Refuse a run that has something left to do which its own step would do better, or nothing at all."""
    with Journal(paths.journal) as journal:
        summary = summarise(journal, mini_batches=record.mini_batches, items=record.items)
    counts = summary.mini_batches
    settled = counts.succeeded + counts.failed == counts.total
    # No step has the fingerprint of a retry that did not complete, so that is ours to go on with.
    if record.fingerprint and not settled:
        raise OutputError(
            f"run {record.run_id} has not tried every mini-batch (its state is "
            f"{record.state}; {counts.succeeded + counts.failed:,} of {counts.total:,} are settled): "
            "run the step again, and it goes on"
        )
    if settled and not counts.failed and not summary.items.failed:
        raise OutputError(f"nothing failed in run {record.run_id}, so there is nothing to retry")
