"""What is told of a sitting that did not complete: what ended it, what is kept, how to go on."""

from __future__ import annotations

import signal

from prefect_parallelrun.errors import InitFailed, NoProgress, ParallelRunError
from prefect_parallelrun.models import RunSummary
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import failure


def what_is_kept(summary: RunSummary, again: str) -> str:
    """Say what is kept of a run, and how to go on; empty if nothing is.

    Args:
        summary: of the run.
        again: how a person goes on with it.
    """
    done, total = summary.mini_batches.succeeded, summary.mini_batches.total
    if not done or not summary.items.succeeded:
        return ""
    are = "mini-batch is" if total == 1 else "mini-batches are"
    text = f"{done:,} of {total:,} {are} done and kept"
    if summary.items.failed:  # some of them may be of mini-batches that are done otherwise
        text += f", with {summary.items.succeeded:,} of {summary.items.total:,} items"
    return f"{text}: {again}"


def text_of(error: BaseException, kept: str, summary: RunSummary, paths: RunPaths) -> str:
    """Say what ended a sitting, what is kept, and what the script's own errors were."""
    if isinstance(error, ParallelRunError):
        cause = str(error)
    elif isinstance(error, Exception):
        cause = f"the driver failed: {named(error)}\nits stack trace: {paths.driver_error}"
    else:
        cause = f"the run was stopped from outside ({cause_of(error)})"
    cause = "\n".join(filter(None, [cause, kept]))
    of_starts = isinstance(error, InitFailed | NoProgress)
    return failure.failure_text(summary, cause=cause, paths=paths, of_starts=of_starts)


def cause_of(error: BaseException) -> str:
    """Say in a few words what ended a sitting: a signal comes as an exception."""
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C or SIGINT"
    by_us = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    if by_us or getattr(error, "signal", None) == signal.SIGTERM:  # as Prefect raises it
        return "SIGTERM"
    return str(error) if isinstance(error, ParallelRunError) else type(error).__name__


def named(error: BaseException) -> str:
    """Return an exception as people read it."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
