"""What a worker process did, line by line: each mini-batch as it is picked up and as it ends (rule R61).

A line that says that a mini-batch was picked up is with the kernel before anything of it is loaded, so a
death at any later moment leaves it there; how that mini-batch ended is then the supervisor's to write.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from prefect_parallelrun_runtime import failures

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Error, Result, Settings

_REASON_LIMIT = 300
_UNKNOWN = float("nan")
_ENDED = (
    "%s%smini-batch %d, attempt %d | %s | items %d, succeeded %d, failed %d | started %s | "
    "elapsed_s=%.6f cpu_s=%.6f load_s=%.6f run_s=%.6f%s\n"
)


class Lines:
    """Makes the lines of one process: time (UTC), IP address of the host, PID, and what was the case."""

    def __init__(self, address: str, pid: int) -> None:
        self._who = f" | {address} | {pid} | "
        self._second, self._date = -1, ""
        self._moment, self._stamp = -1.0, ""

    def stamp(self, moment: float) -> str:
        """Return a time, in seconds since the epoch, with its milliseconds."""
        if moment != self._moment:
            second = int(moment)
            if second != self._second:  # strftime would cost more than all else of a line
                self._second = second
                self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._moment = moment
            self._stamp = f"{self._date}.{int((moment - second) * 1000):03d}Z"
        return self._stamp

    def now(self, what: str) -> str:
        """Return the line of something that is so now."""
        return f"{self.stamp(time.time())}{self._who}{what}\n"

    def picked_up(self, task: list[Any], moment: float) -> str:
        """Return the line of a mini-batch that is picked up."""
        return (
            f"{self.stamp(moment)}{self._who}mini-batch {task[0]}, attempt {task[1]} | picked up\n"
        )

    def ended(self, task: list[Any], result: Result) -> str:
        """Return the line of a mini-batch that has ended; what is not known of it is -1 or `nan`."""
        get, items, done = result.get, result["items"], result["rows"]
        if done > items:
            done = items
        failed = items - done if items >= 0 else -1
        began, elapsed = result["started_at"], result["elapsed_s"]
        started = self.stamp(began)
        # One template for all: it takes half the time of joining what is known.
        return _ENDED % (
            self.stamp(began + elapsed),
            self._who,
            task[0],
            task[1],
            result["outcome"],
            items,
            done,
            failed,
            started,
            elapsed,
            get("cpu_s", _UNKNOWN),
            get("load_s", _UNKNOWN),
            get("run_s", _UNKNOWN),
            because(result["error"]) if "error" in result else "",
        )


class ProcessLog:
    """A worker process's end of its own log."""

    def __init__(self, settings: Settings) -> None:
        self._path = failures.process_file(settings, "process_log")
        self._lines = Lines(settings["address"], os.getpid())
        self._unwritten = ""
        self._fd, self._position = -1, 0
        self._open()

    def say(self, what: str) -> None:
        """Write that something is so now."""
        self._write(self._lines.now(what))

    def picked_up(self, task: list[Any], moment: float) -> None:
        """Write that a mini-batch was picked up, with what waits; `moment` in seconds since the epoch."""
        self._write(self._lines.picked_up(task, moment))

    def ended(self, task: list[Any], result: Result) -> None:
        """Take note that a mini-batch ended; it is written with the next line, or by `flush`."""
        self._unwritten = self._lines.ended(task, result)

    def flush(self) -> None:
        """Write what waits."""
        self._write("")

    def _write(self, text: str) -> None:
        data = (self._unwritten + text).encode("utf-8", "backslashreplace")
        self._unwritten = ""
        if not self._is_ours():
            self._open()
        try:
            self._position += os.write(self._fd, data)
        except OSError:  # a disk that is full, or refuses, costs the line and nothing else
            return

    def _is_ours(self) -> bool:
        # A script that closes all descriptors opens files of its own in their places. Where ours ends,
        # no other does; to compare positions costs a fifth of what `fstat` does.
        try:
            return os.lseek(self._fd, 0, os.SEEK_CUR) == self._position
        except OSError:
            return False

    def _open(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._position = os.lseek(self._fd, 0, os.SEEK_END)


def because(error: Error) -> str:
    """Return the end of a line: what went wrong, briefly."""
    first = next(iter(error["message"].splitlines()), "")
    return f" | {error['type']}: {first[:_REASON_LIMIT]}"
