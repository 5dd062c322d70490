"""`job_result.txt`: the first file to open when a run is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.replaced import replaced
from prefect_parallelrun.report.summary import account, closing_line
from prefect_parallelrun.report.wording import visible


def write_job_result(
    paths: RunPaths,
    summary: RunSummary,
    *,
    step: str,
    run_id: str,
    state: str,
    output: str | None,
    started_at: datetime,
    ended_at: datetime,
    base: str | None = None,
    failure: str | None = None,
    unwritten: Sequence[str] = (),
) -> Path:
    """Write what the run came to (R85).

    Args:
        paths: of the run.
        summary: what it came to.
        step: name of the step.
        run_id: of the run.
        state: in which the sitting ended.
        output: the output folder, or its URL.
        started_at: UTC, when the sitting began.
        ended_at: UTC.
        base: the run of which mini-batches were taken over.
        failure: the text of `failure_text`, if it failed.
        unwritten: other files that could not be written, and why.
    """
    lines = [
        f"result: {state}",
        f"step: {step}",
        f"run: {run_id}",
        f"started: {_time(started_at)}",
        f"ended: {_time(ended_at)} (after {(ended_at - started_at).total_seconds():,.1f} seconds)",
        closing_line(summary),
        f"{account(summary.mini_batches)} (mini-batches)",
        *_reused(summary, base),
        f"attempts: {summary.attempts:,}",
        f"rows: {summary.rows:,}",
        f"output: {output or 'none'}",
    ]
    lines += [f"{what}: {path}" for what, path in _to_open(paths, summary, started_at)]
    lines += [f"not written: {what}" for what in unwritten]
    if failure:
        lines += ["", failure]
    with replaced(paths.job_result) as file:
        file.write(visible("\n".join(lines) + "\n"))
    return paths.job_result


def _to_open(paths: RunPaths, summary: RunSummary, began: datetime) -> Iterator[tuple[str, Path]]:
    """Yield the files that tell more, those that say most first."""
    if summary.errors and paths.error_summary.is_file():
        yield "errors of the script, each once", paths.error_summary
    if paths.failed_items.is_file():
        yield "failed items", paths.failed_items
    own = [each for each in paths.driver_error.parent.glob("*") if _is_of(each, began)]
    if own:
        yield "errors of prefect-parallelrun itself", own[0] if len(own) == 1 else own[0].parent
    if _is_of(paths.report, began):
        yield "report", paths.report
    overviews = paths.progress_overviews()
    if overviews:
        yield "progress", overviews[-1]
    yield "log of the run", paths.driver_log
    yield "what the other files are", paths.readme


def _is_of(path: Path, began: datetime) -> bool:
    """Return whether a file is of the sitting that began then."""
    return path.exists() and path.stat().st_mtime >= began.timestamp()


def _reused(summary: RunSummary, base: str | None) -> list[str]:
    if not summary.items.reused and not summary.mini_batches.reused:
        return []
    taken = "" if base is None else f"taken over of run {base}, or done "
    return [
        f"of these {taken}before the run was resumed: {summary.items.reused:,} (items), "
        f"{summary.mini_batches.reused:,} (mini-batches)"
    ]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
