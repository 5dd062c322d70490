"""Commands that look: plan, status, errors, report, verify, explain; and clean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_parallelrun.cli.app import LOOK, TIDY, Exit, app, tell
from prefect_parallelrun.cli.running import Flag, Json, script_errors

if TYPE_CHECKING:
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.report.status import Status
    from prefect_parallelrun.step import ParallelRunStep
    from prefect_parallelrun.work import Work


@app.command(group=LOOK)
def plan(
    what: str,
    /,
    *,
    time: int | None = None,
    list_: Annotated[int, Parameter(name="--list")] = 5,
    json: Json = False,
) -> int:
    """Show what would run, without running it: mini-batches, their sizes, and what is reused.

    Examples:

        parallelrun plan step.yaml
        parallelrun plan step.yaml --time 20   # and how long all would take
        parallelrun plan score-files --list 50

    Parameters
    ----------
    what
        The step file; or a run, for its step with the files that are there now.
    time
        Run so many mini-batches in this process, evenly spread, and project the time of the whole run.
        Their output is thrown away.
    list_
        Show so many of the largest mini-batches, with their items.
    json
        Print it as JSON.
    """
    from contextlib import redirect_stdout
    from dataclasses import asdict
    from tempfile import TemporaryDirectory

    from prefect_parallelrun import checks
    from prefect_parallelrun.cli import texts
    from prefect_parallelrun.driver.bundle import sample
    from prefect_parallelrun.driver.projection import process_count, project

    if time is not None:
        checks.whole_number(least=1)("time", time)
    checks.whole_number(least=0)("list", list_)
    work, step = _work_and_step(what)
    with TemporaryDirectory(prefix="parallelrun-plan-") as scratch:
        found = work.plan(Path(scratch)) if step is None else step.plan(work)
        outline = found.outline(largest=list_)
    reuse = found.reuse
    assert reuse is not None
    projection = None
    if time is not None:
        # What the script prints is no part of the answer.
        with redirect_stdout(sys.stderr), script_errors(False) as on_error:
            projection = project(
                work.definition,
                work.listings,
                timed=time,
                done=reuse.mini_batches,
                on_error=on_error,
            )
        if projection is None:
            return Exit.FAILED
    largest = [(one, sample(one, most=texts.ITEMS_SHOWN)) for one in outline.largest]
    if json:
        tell(
            {
                "step": work.definition.name,
                "mini_batches": outline.mini_batches,
                "items": outline.items,
                "item": found.kind,
                "bytes": outline.bytes,
                "sizes": [asdict(one) for one in outline.sizes],
                "largest": [
                    {"mini_batch": one.index, "bytes": one.size, "items": one.items, "first": items}
                    for one, items in largest
                ],
                "nodes": work.definition.config.node_count,
                "processes": process_count(work.definition.config),
                "reuse": asdict(reuse),
                "projection": None if projection is None else asdict(projection),
                "notes": found.notes,
            }
        )
    else:
        texts.show_plan(work.definition, found, outline, largest, reuse, projection)
    return Exit.DONE


@app.command(group=LOOK)
def status(run: str, /, *, follow: Flag = False, json: Json = False) -> int:
    """Show where a run stands: what it is at, what is done, what went wrong, and where to look.

    Works while another process runs it, and on a folder that cannot be written. Exit codes: 0 completed,
    3 completed with failed items, 1 failed, cancelled or interrupted, 4 still going on.

    Examples:

        parallelrun status score-files
        parallelrun status score-files --follow
        until parallelrun status score-files --json > now.json; [ $? != 4 ]; do sleep 60; done

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    follow
        Show progress until it ends. Ctrl-C ends the showing, not the run.
    json
        Print it as JSON, with `--follow` at the end.
    """
    from prefect_parallelrun import settings
    from prefect_parallelrun.cli import texts
    from prefect_parallelrun.report.status import status_of

    paths = settings.run_paths(run)
    if follow:
        texts.follow(paths)
    found = status_of(paths)
    if json:
        tell(texts.status_json(found))
    else:
        texts.show_status(found)
    return _exit_of(found)


@app.command(group=LOOK)
def errors(run: str, /, *, limit: int = 20, json: Json = False) -> int:
    """Show the errors of a run's script, each distinct one once, with its stack trace and where it was.

    Exit codes: 0 no errors, 1 there are some.

    Examples:

        parallelrun errors score-files
        parallelrun errors score-files --limit 1

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    limit
        So many distinct errors, most frequent first.
    json
        Print them as JSON.
    """
    from dataclasses import asdict

    from prefect_parallelrun import checks, settings
    from prefect_parallelrun.cli import texts
    from prefect_parallelrun.report.status import status_of

    checks.whole_number(least=1)("limit", limit)
    paths = settings.run_paths(run)
    found = status_of(paths)
    groups = found.summary.errors
    missing, failed = found.summary.missing_rows, found.summary.items.failed
    if json:
        tell(
            {
                "run": found.run_id,
                "state": found.pulse.state,
                "distinct_errors": found.summary.distinct_errors,
                "errors": [asdict(one) for one in groups[:limit]],
                "missing_rows": missing,
                "failed_items": failed,
                "failed_items_file": found.failed_items,
                "error_summary": paths.error_summary if paths.error_summary.exists() else None,
            }
        )
    else:
        texts.show_errors(found, limit)
    return Exit.FAILED if groups or missing else Exit.DONE


@app.command(group=LOOK)
def report(
    run: str,
    /,
    *,
    open_: Annotated[Flag, Parameter(name="--open")] = False,
    json: Json = False,
) -> int:
    """Make the HTML report of a run anew, and print where it is: one file that needs no network.

    Examples:

        parallelrun report score-files --open

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    open_
        Open it in the browser.
    json
        Print where it is as JSON.
    """
    import webbrowser

    from prefect_parallelrun import settings
    from prefect_parallelrun.errors import OutputError
    from prefect_parallelrun.report.report_again import report_of

    paths = settings.run_paths(run)
    try:
        path = report_of(paths)
    except OSError as error:
        raise OutputError(f"the report {paths.report} cannot be written: {error}") from error
    if json:
        tell({"run": paths.root.name, "report": path})
    else:
        print(path)
    if open_ and not webbrowser.open(path.absolute().as_uri()):
        print("no browser could be opened here", file=sys.stderr)
        return Exit.FAILED
    return Exit.DONE


@app.command(group=LOOK)
def verify(run: str, /, *, json: Json = False) -> int:
    """Check a run: every item accounted for, every row of the output in its place.

    Exit codes: 0 all is as it should be, 1 something is not.

    Example:

        parallelrun verify score-files

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    json
        Print what was found as JSON.
    """
    from prefect_parallelrun import settings
    from prefect_parallelrun.report.verify import verify as check

    found = check(settings.run_paths(run))
    if json:
        tell({"findings": found.findings, "closing": found.closing})
    else:
        for finding in found.findings:
            print(finding)
        print(found.closing)
    return Exit.FAILED if found.findings else Exit.DONE


@app.command(group=LOOK)
def explain(what: str, /, *, json: Json = False) -> int:
    """Say which earlier run would be used, and for what is not reused, why: before anything runs.

    Named are the files of the script and of the data that changed, the arguments and settings that did,
    and what failed last time.

    Examples:

        parallelrun explain step.yaml
        parallelrun explain score-files

    Parameters
    ----------
    what
        The step file; or a run, for its step with the script and files that are there now.
    json
        Print it as JSON.
    """
    from dataclasses import asdict

    from prefect_parallelrun.cli import texts

    work, step = _work_and_step(what)
    reuse = work.reuse() if step is None else step.explain(work)
    if json:
        tell({"step": work.definition.name, **asdict(reuse)})
    else:
        texts.show_reuse(reuse)
    return Exit.DONE


@app.command(group=TIDY)
def clean(
    step: str | None = None,
    /,
    *,
    keep: int | None = None,
    older_than: str | None = None,
    dry_run: Flag = False,
    everything: Flag = False,
    json: Json = False,
) -> int:
    """Remove old run folders, with their logs and the outputs that lie in them.

    Never removed are a run that a driver works on, and outputs that lie elsewhere. Only with `--everything`:
    the newest completed run of a step, a run that can be resumed, and one whose record cannot be read.

    Examples:

        parallelrun clean --dry-run
        parallelrun clean score-files --keep 1
        parallelrun clean --older-than 30d

    Parameters
    ----------
    step
        Of this step alone; without it, of all.
    keep
        So many of the newest runs of each step stay; 5, or none with `--everything`.
    older_than
        Only runs that ended so long ago: `90m`, `36h`, `30d`, `8w`.
    dry_run
        Only say what would be removed.
    everything
        Also what the next run could use.
    json
        Print what was removed as JSON.
    """
    from prefect_parallelrun import checks, housekeeping
    from prefect_parallelrun.cli import texts
    from prefect_parallelrun.errors import OutputError

    if keep is not None:
        checks.whole_number(least=0)("keep", keep)
    rules = housekeeping.Rules(
        keep=keep if keep is not None else 0 if everything else 5,
        older_than=None if older_than is None else texts.age(older_than),
        everything=everything,
    )
    verdicts = list(housekeeping.judge(rules, step))
    refused = {}
    for verdict in verdicts:
        if verdict.kept is None and not dry_run:
            try:
                housekeeping.remove(verdict)
            except OutputError as error:
                refused[verdict.folder] = str(error)
    if json:
        tell(texts.cleaned_json(verdicts, refused, dry_run=dry_run))
    else:
        texts.show_cleaned(verdicts, refused, dry_run=dry_run)
    return Exit.FAILED if refused else Exit.DONE


def _work_and_step(what: str) -> tuple[Work, ParallelRunStep | None]:
    """Return what a step file, or the step of a run, would do now, and of a file the step."""
    from prefect_parallelrun.work import Work

    if what.endswith((".yaml", ".yml")):
        from prefect_parallelrun.step_file import load_step

        step = load_step(Path(what))
        return Work.of_step(step.definition()), step
    return Work.of_step(_definition_of(what)), None


def _definition_of(run: str) -> StepDefinition:
    from prefect_parallelrun import settings
    from prefect_parallelrun.run_record import kept_definition

    definition = kept_definition(settings.run_paths(run))
    definition.validate()
    return definition


def _exit_of(found: Status) -> Exit:
    if found.pulse.goes_on:
        return Exit.GOING_ON
    if not found.pulse.state.startswith("Completed"):
        return Exit.FAILED
    failed: Any = found.summary.items.failed or found.summary.mini_batches.failed
    return Exit.FAILED_ITEMS if failed else Exit.DONE
