"""What went wrong in the user's code, in words, for the driver and for the log."""

from __future__ import annotations

import os
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Error

_OURS = os.path.dirname(os.path.abspath(__file__))
_MESSAGE_LIMIT = 8_000
_TRACEBACK_LIMIT = 64_000
_ITEMS_SHOWN = 3


def describe(
    exc: BaseException, *, stage: str, source_folder: str, category: str = "exception"
) -> Error:
    """Return the record of an exception, its stack trace without frames of ours."""
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        category = "memory"
    trace = _from_user_code(exc.__traceback__)
    try:
        text = "".join(traceback.format_exception(type(exc), exc, trace))
    except (
        Exception
    ) as broken:  # an exception that cannot be shown must not hide that there was one
        text = f"{type(exc).__name__} (its stack trace cannot be shown: {type(broken).__name__})\n"
    return {
        "category": category,
        "type": type(exc).__qualname__,
        "message": shorten(_message(exc), _MESSAGE_LIMIT),
        "where": _where(exc, trace, source_folder),
        "traceback": shorten(text, _TRACEBACK_LIMIT),
        "stage": stage,
    }


def append_to_log(path: str, heading: str, error: Error, items: list[str]) -> None:
    """Append one failure, with its stack trace, to a process's error log (rule R60)."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    lines = [f"{stamp}Z | {heading} | {error['type']}: {error['message']}"]
    if items:
        lines.append("first items: " + ", ".join(items))
    lines.append(error["traceback"].rstrip() or "(no stack trace)")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write("\n".join(lines) + "\n\n")


def heading(task: list[Any], stage: str) -> str:
    """Return how a log names an attempt."""
    return f"mini-batch {task[0]}, attempt {task[1]}, {stage}"


def first_items(work: dict[str, Any]) -> list[str]:
    """Return a few words that tell a person which items a mini-batch has."""
    if "files" in work:
        files: list[str] = work["files"]
        more = len(files) - _ITEMS_SHOWN
        return files[:_ITEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])
    if "rank" in work:
        return [f"rank {work['rank']}"]
    path = str(work.get("path", ""))
    if "start" in work:
        return [f"{path} (bytes {work['start']} to {work['end']})"]
    if "row_groups" in work:
        return [f"{path} (row groups {', '.join(map(str, work['row_groups']))})"]
    return [path] if path else []


def shorten(text: str, limit: int) -> str:
    """Return `text` with its middle left out where it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def place(file_name: str, line: int, function: str, source_folder: str) -> str:
    """Return `score.py:12 in run` for a line of the user's source, else an empty string."""
    if not file_name.startswith(source_folder + os.sep):
        return ""
    return f"{file_name[len(source_folder) + 1 :]}:{line} in {function}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as broken:
        return f"(its text cannot be shown: {type(broken).__name__} in __str__)"


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((_OURS, "<frozen importlib")):
            break
        trace = trace.tb_next
    return trace


def _where(exc: BaseException, trace: TracebackType | None, source_folder: str) -> str:
    found = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        found = place(code.co_filename, trace.tb_lineno, code.co_name, source_folder) or found
        trace = trace.tb_next
    if isinstance(exc, SyntaxError) and exc.filename:
        found = place(exc.filename, exc.lineno or 0, "<module>", source_folder) or found
    return found
