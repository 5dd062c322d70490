"""Files that are replaced in one step: a reader sees all of the earlier one or all of the new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file beside `path` that takes its place once it is complete.

    If it cannot be completed, the earlier file stays as it was and nothing is left beside it.
    """
    temporary = path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        # A disk that is read-only does not remove it either, and must not hide what went wrong first.
        with suppress(OSError):
            temporary.unlink()
        raise
