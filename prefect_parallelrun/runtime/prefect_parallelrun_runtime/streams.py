"""The script's stdout and stderr, which are log files of ours."""

from __future__ import annotations

import io
import sys
from typing import Any


class LogFile(io.FileIO):
    """Descriptor 1 or 2. What the disk does not take is lost: a `print` must fail no mini-batch."""

    def write(self, data: Any) -> int:
        """Write, or do as if."""
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def open_logs() -> None:
    """Set `sys.stdout` and `sys.stderr` up, line by line; what cannot be encoded is escaped."""
    sys.stdout = sys.__stdout__ = _stream(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, sys.stderr)  # type: ignore[misc]


def _stream(fd: int, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(LogFile(fd, "wb", closefd=False)),
        encoding=before.encoding,  # the user's PYTHONIOENCODING has been heard
        errors="backslashreplace",
        line_buffering=True,
    )
