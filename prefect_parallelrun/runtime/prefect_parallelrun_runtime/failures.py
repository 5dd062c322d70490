"""What went wrong in the user's code, in words, for the driver and for the log."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Error, Settings

_OURS = os.path.dirname(os.path.abspath(__file__))
_MESSAGE_LIMIT = 8_000
_TRACEBACK_LIMIT = 64_000
_STDERR_SHOWN = 2_000
_ITEMS_SHOWN = 3
_OUT_OF_MEMORY = "OutOfMemoryError"
"""What PyTorch, CuPy and others call it; they have nothing in common but the name."""
_CUDA_OUT_OF_MEMORY = "CUDA out of memory"


def record(
    settings: Settings,
    *,
    category: str,
    type_: str,
    message: str,
    where: str = "",
    trace: str,
    stage: str,
) -> Error:
    """Return the record of a failure; every one is made here.

    Its stack trace names the user's own source files: the snapshot is gone when somebody reads it.
    """
    trace = in_users_source(trace, settings)
    return {
        "category": category,
        "type": type_,
        "message": _writable(shorten(message, _MESSAGE_LIMIT)),
        "where": _writable(where),
        "traceback": _writable(shorten(trace, _TRACEBACK_LIMIT)),
        "stage": stage,
    }


def in_users_source(text: str, settings: Settings) -> str:
    """Return a text with the paths of source files as the user knows them."""
    users = settings.get("source_directory", "")
    if not users:
        return text
    return text.replace(os.path.join(settings["source_folder"], ""), os.path.join(users, ""))


def _writable(text: str) -> str:
    # A file name that is not UTF-8 has surrogates, and no log, journal or report could hold them.
    return text.encode("utf-8", "backslashreplace").decode()


def describe(
    exc: BaseException, settings: Settings, *, stage: str, category: str = "exception"
) -> Error:
    """Return the record of an exception, its stack trace without frames of ours."""
    trace = _from_user_code(exc.__traceback__)
    message = _message(exc)
    if _is_out_of_memory(exc, message):
        category = "memory"
        message = f"{message or 'out of memory'} ({_peak()})"
    try:
        text = "".join(traceback.format_exception(type(exc), exc, trace))
    except BaseException as broken:
        # An exception that cannot be shown must not hide that there was one.
        text = f"{type(exc).__name__} (its stack trace cannot be shown: {type(broken).__name__})\n"
    if isinstance(exc, SystemExit) and (told := _told_on_stderr(settings)):
        # "2" says nothing; what argparse has against the arguments, for one, stands there.
        message += f"\nThe end of its stderr:\n{told}"
    return record(
        settings,
        category=category,
        type_=type(exc).__qualname__,
        message=message,
        where=_where(exc, trace, settings["source_folder"]),
        trace=text,
        stage=stage,
    )


def process_file(settings: Settings, kind: str) -> str:
    """Return the path of a worker process's log file, `kind` being a key of `messages.Files`."""
    return settings["files"][kind].replace("{process}", settings["process"])  # type: ignore[literal-required,no-any-return]


def end_of(path: str, limit: int) -> str:
    """Return the last `limit` bytes of a text file, stripped; nothing when it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - limit))
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""


def append_own(settings: Settings, who: str, trouble: str = "") -> None:
    """Append trouble of this product's own code to its log (rule R80).

    Args:
        who: What had it, such as `supervisor`.
        trouble: In words; left out: the exception that is being handled.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    text = trouble or traceback.format_exc()
    append(settings["files"]["system_error"], f"{stamp}Z | {who}\n{text.rstrip()}\n\n")


def make_log_folders(settings: Settings) -> Iterator[str]:
    """Make the folders of a node's log files; yield why, of each that cannot be written."""
    for folder in {os.path.dirname(str(file)) for file in settings["files"].values()}:
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK):
                yield f"{folder} cannot be written: it is read-only here"
        except OSError as error:
            yield f"{folder} cannot be written: {error}"


def append_to_log(path: str, heading: str, error: Error, items: list[str]) -> None:
    """Append one failure, with its stack trace, to a process's error log (rule R60)."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    lines = [f"{stamp}Z | {heading} | {error['type']}: {error['message']}"]
    if items:
        lines.append("first items: " + ", ".join(items))
    lines.append(error["traceback"].rstrip() or "(no stack trace)")
    append(path, "\n".join(lines) + "\n\n")


def append(path: str, text: str) -> None:
    """Append to a log file of ours as far as that is possible: a full disk, or a folder that is gone, must fail nothing."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


def heading(task: list[Any], stage: str) -> str:
    """Return how a log names an attempt."""
    return f"mini-batch {task[0]}, attempt {task[1]}, {stage}"


def first_items(work: dict[str, Any]) -> list[str]:
    """Return a few words that tell a person which items a mini-batch has."""
    key = [f"{name}={value}" for name, value in work.get("key", {}).items()]
    paths: list[str] | None = work.get("files") or work.get("paths")
    if paths is not None:
        more = len(paths) - _ITEMS_SHOWN
        return key + paths[:_ITEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])
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


def _told_on_stderr(settings: Settings) -> str:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the script may have closed or replaced it
            stream.flush()
    return end_of(process_file(settings, "stderr"), _STDERR_SHOWN)


def _is_out_of_memory(exc: BaseException, message: str) -> bool:
    return (
        isinstance(exc, MemoryError)
        or any(one.__name__ == _OUT_OF_MEMORY for one in type(exc).__mro__)
        or _CUDA_OUT_OF_MEMORY in message
    )


def _peak() -> str:
    """Say how much memory this process has had at most."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return peak(int(line.split()[1]))
    except (OSError, MemoryError):  # where memory is short, there may be none for this either
        pass
    return peak(0)


def peak(kilobytes: int) -> str:
    """Say what the most memory was that a process had; 0: nobody knows."""
    if not kilobytes:
        return "it is not known how much memory the process had"
    return f"the process had {kilobytes / 1024:,.0f} MB at its peak"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as broken:
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
