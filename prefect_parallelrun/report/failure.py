"""The script's own errors, where their owner looks: in the exception, the log and error.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect_parallelrun.models import ErrorGroup, RunSummary
from prefect_parallelrun.output.error_shapes import SHAPES, shape
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.replaced import replaced
from prefect_parallelrun.report.summary import errors_line
from prefect_parallelrun.report.wording import counted, visible

_ITEMS_SHOWN = 5
_LINE = 500


def failure_text(
    summary: RunSummary, *, cause: str, paths: RunPaths, of_starts: bool = False
) -> str:
    """Say why a run failed (R206): the cause, the script's own error, where, and what to open.

    That is the most frequent one; `of_starts`: of those that no mini-batch had to do with, if there are any.
    """
    parts = [cause]
    if summary.errors:
        first = summary.errors[0]
        if of_starts:
            first = next((one for one in summary.errors if one.first_mini_batch is None), first)
        parts += [headline(first), _whereabouts(first), *_details(first)]
        parts.append(f"{errors_line(summary)}\nall of them: {paths.error_summary}")
    if summary.missing_rows:
        parts.append(
            f"{counted(summary.missing_rows, 'item')} failed because run() returned fewer elements "
            f"than its mini-batch has items; which mini-batches: {paths.failed_items}"
        )
    if len(parts) == 1:
        parts.append(f"the log of the run: {paths.driver_log}")
    return visible("\n\n".join(parts))


def first_errors(summary: RunSummary) -> tuple[str, ...]:
    """Return one line per distinct error, most frequent first."""
    return tuple(visible(f"{headline(error)} × {error.count:,}") for error in summary.errors)


def process_errors(
    failures: Sequence[Mapping[str, Any]], paths: RunPaths
) -> tuple[ErrorGroup, ...]:
    """Group failures of import, `init()` and `shutdown()`, most frequent first; each a `messages.Event`.

    Of more than `SHAPES` groups the rarest are left out.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for event in failures:
        kind, where = event["error"]["type"], event["error"]["where"]
        key = kind, where, shape(where, event["error"]["message"])
        groups.setdefault(key, []).append(event)
    made = (
        ErrorGroup(
            type=kind,
            where=where,
            message=events[0]["error"]["message"],
            count=len(events),
            first_mini_batch=None,
            first_items=(),
            node=events[0]["node"],
            process=events[0]["process"],
            log_file=paths.process_error(events[0]["node"], events[0]["process"]),
            traceback=events[0]["error"]["traceback"],
        )
        for (kind, where, _), events in groups.items()
    )
    return tuple(sorted(made, key=lambda group: -group.count)[:SHAPES])


def write_error_summary(paths: RunPaths, summary: RunSummary) -> Path | None:
    """Write `user/error.txt`: each distinct error once (R59); without errors there is no file."""
    path = paths.error_summary
    if not summary.errors:
        path.unlink(missing_ok=True)
        return None
    head = f"{errors_line(summary)}\nfailed {_times(summary.errors_counted)}\n"
    if summary.distinct_errors > len(summary.errors):
        head += f"below are the {len(summary.errors):,} most frequent\n"
    parts = [head]
    parts += [entry(number, error) for number, error in enumerate(summary.errors, 1)]
    with replaced(path) as file:
        file.write(visible("\n".join(parts)))
    return path


def kept_process_errors(paths: RunPaths) -> tuple[ErrorGroup, ...]:
    """Return what `process_errors` found in the last sitting that ended; the journal has the others."""
    try:
        kept = json.loads(paths.process_errors.read_text(encoding="utf-8"))
        return tuple(ErrorGroup(**{**one, "first_items": ()}) for one in kept)
    except (OSError, ValueError, TypeError):
        return ()


def keep_process_errors(paths: RunPaths, summary: RunSummary) -> None:
    """Keep what `process_errors` found for later looks; what an earlier sitting left holds no more."""
    paths.process_errors.unlink(missing_ok=True)
    groups = [asdict(error) for error in summary.errors if error.first_mini_batch is None]
    if groups:
        with replaced(paths.process_errors) as file:
            json.dump(groups, file)


def entry(number: int, error: ErrorGroup) -> str:
    """Return one distinct error as the summary has it: how often, where first, and its stack trace."""
    first = "once," if error.count == 1 else f"{_times(error.count)}; first"
    head = f"--- {number}. {headline(error)}\n{first} {_whereabouts(error)}"
    return "\n\n".join([head, *_details(error)]) + "\n"


def _details(error: ErrorGroup) -> list[str]:
    """Return the stack trace, and before it the message if that has more than the trace shows."""
    message, trace = error.message.strip(), error.traceback.rstrip()
    # One of several lines, or none of it in the trace (a time-out), must not get lost.
    shown = message in trace or (not trace and "\n" not in message)
    return [part for part in ("" if shown else message, trace) if part]


def headline(error: ErrorGroup) -> str:
    """Return an error in one line: type, message, and where in the script, if that is known."""
    lines = error.message.strip().splitlines()
    first = lines[0] if lines else ""
    if len(first) > _LINE:
        first = first[:_LINE] + "…"
    place = f" ({error.where})" if error.where else ""
    return (f"{error.type}: {first}" if first else error.type) + place


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _whereabouts(error: ErrorGroup) -> str:
    lines = [
        "outside of any mini-batch"
        if error.first_mini_batch is None
        else f"in mini-batch {error.first_mini_batch:,}"
    ]
    if error.node:
        lines[0] += f" on {error.node} {error.process}".rstrip()
    if error.first_items:
        items = error.first_items[:_ITEMS_SHOWN]
        more = ", …" if len(error.first_items) > _ITEMS_SHOWN else ""
        lines.append(f"items: {', '.join(items)}{more}")
    if error.log_file:
        lines.append(f"stack trace in: {error.log_file}")
    return "\n".join(lines)
