"""`job_result.txt`: the first file to open when a run is over."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.summary import account, closing_line


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
    failure: str | None = None,
) -> Path:
    """Write what the run came to (R85); `failure` is the text of `failure_text`, if it failed."""
    lines = [
        f"result: {state}",
        f"step: {step}",
        f"run: {run_id}",
        f"started: {_time(started_at)}",
        f"ended: {_time(ended_at)} (after {(ended_at - started_at).total_seconds():,.1f} seconds)",
        closing_line(summary),
        f"{account(summary.mini_batches)} (mini-batches)",
        *_reused(summary),
        f"attempts: {summary.attempts:,}",
        f"rows: {summary.rows:,}",
        f"output: {output or 'none'}",
    ]
    lines += [f"{what}: {path}" for what, path in _to_open(paths, summary, started_at)]
    if failure:
        lines += ["", failure]
    paths.job_result.parent.mkdir(parents=True, exist_ok=True)
    paths.job_result.write_text(
        "\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    return paths.job_result


def _to_open(paths: RunPaths, summary: RunSummary, began: datetime) -> Iterator[tuple[str, Path]]:
    """Yield the files that tell more, those that say most first."""
    if summary.errors:
        yield "errors of the script, each once", paths.error_summary
    if paths.failed_items.exists():
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


def _reused(summary: RunSummary) -> list[str]:
    if not summary.items.reused and not summary.mini_batches.reused:
        return []
    return [
        f"of these before the run was resumed: {summary.items.reused:,} (items), "
        f"{summary.mini_batches.reused:,} (mini-batches)"
    ]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
