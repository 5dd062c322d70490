"""Files that only the driver sees, read over Dask by a node with which it shares no file system.

A node asks by an event, and the driver answers by a call of the agent, piece by piece. Both may be lost on
their way, so what has no answer is asked for again: it is only read.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from prefect_parallelrun.node.transfer import Stopped

PIECE = 4 << 20
"""Bytes of a file in one answer. They go through the scheduler, which passes on other things meanwhile."""
AGAIN_S = 0.5
"""After that a request without an answer is made again; each further time after twice as long."""
AGAIN_AT_MOST_S = 8.0
LOOK_S = 0.2
"""How soon a request is given up once the node ends."""


@dataclass(slots=True)
class _Wanted:
    there: threading.Event = field(default_factory=threading.Event)
    data: bytes = b""
    error: tuple[int, str] | None = None


class Requests:
    """What one node asks of its driver.

    Args:
        publish: tells the driver.
        stopping: says that the node ends.
    """

    def __init__(
        self, publish: Callable[[dict[str, Any]], None], stopping: Callable[[], bool]
    ) -> None:
        self._publish = publish
        self._stopping = stopping
        self._numbers = itertools.count()
        self._waiting: dict[int, _Wanted] = {}

    def ask(self, **what: Any) -> bytes:
        """Return what the driver answers, whenever that is.

        Raises:
            OSError: the driver's own, of the file.
            Stopped: the node ends.
        """
        number, wanted, pause = next(self._numbers), _Wanted(), AGAIN_S
        self._waiting[number] = wanted
        try:
            asked = -AGAIN_AT_MOST_S
            while not wanted.there.wait(LOOK_S if asked > 0 else 0):
                if self._stopping():
                    raise Stopped
                if (now := time.monotonic()) - asked >= pause:
                    pause = pause if asked < 0 else min(2 * pause, AGAIN_AT_MOST_S)
                    asked = now
                    self._publish({"name": "wants", "request": number, "wanted": what})
        finally:
            del self._waiting[number]
        if wanted.error is not None:
            raise OSError(*wanted.error)
        return wanted.data

    def answered(self, number: int, data: bytes, error: tuple[int, str] | None) -> None:
        """Take in an answer; a second one to the same request means nothing."""
        if (wanted := self._waiting.get(number)) is not None:
            wanted.data, wanted.error = data, error
            wanted.there.set()


class DriverFiles(AbstractFileSystem):  # type: ignore[misc]
    """The driver's files, as far as the run is about them, in the form in which storages are read here."""

    protocol = "parallelrun-driver"
    cachable = False

    def __init__(self, requests: Requests) -> None:
        super().__init__()
        self._requests = requests

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return size and time of change of a file."""
        found: dict[str, Any] = json.loads(self._requests.ask(info=path))
        return {"name": path, "type": "file", **found}

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return the bytes [start, end) of a file."""
        at, parts = start or 0, []
        while end is None or at < end:
            length = PIECE if end is None else min(PIECE, end - at)
            part = self._requests.ask(file=path, at=at, length=length)
            parts.append(part)
            at += len(part)
            if len(part) < length:
                break
        return b"".join(parts)

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        """Copy a file to this disk."""
        with Path(lpath).open("wb") as target:
            at = 0
            while part := self._requests.ask(file=rpath, at=at, length=PIECE):
                target.write(part)
                at += len(part)


class DriverStorage:
    """Stands for a `Storage` of local files that this node does not see."""

    protocol = "file"
    credentials = None
    is_local = False
    options: dict[str, Any] = {}  # noqa: RUF012  (nobody changes it)

    def __init__(self, requests: Requests) -> None:
        self._files = DriverFiles(requests)

    def filesystem(self, url: str = "") -> DriverFiles:
        """Return the driver's files."""
        return self._files
