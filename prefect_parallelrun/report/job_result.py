"""`job_result.txt`: the first file to open when a run is over."""

from __future__ import annotations

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
    if summary.errors:
        lines.append(f"errors of the script, each once: {paths.error_summary}")
    if paths.failed_items.exists():
        lines.append(f"failed items: {paths.failed_items}")
    lines.append(f"log of the run: {paths.driver_log}")
    if failure:
        lines += ["", failure]
    paths.job_result.parent.mkdir(parents=True, exist_ok=True)
    paths.job_result.write_text(
        "\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    return paths.job_result


def _reused(summary: RunSummary) -> list[str]:
    if not summary.items.reused and not summary.mini_batches.reused:
        return []
    return [
        f"of these before the run was resumed: {summary.items.reused:,} (items), "
        f"{summary.mini_batches.reused:,} (mini-batches)"
    ]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
