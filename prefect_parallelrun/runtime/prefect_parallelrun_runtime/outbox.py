"""What a worker process sends to its supervisor: results, ends of bundles, events."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from prefect_parallelrun_runtime import channel, page

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings


class Outbox:
    """The sending side of the channel, which lies open to whatever the script does to descriptors."""

    def __init__(self, channel_fd: int, status: page.StatusPage) -> None:
        self._fd = channel_fd
        self._page = status
        self._identity = self._identify()

    def send(self, *pieces: bytes) -> None:
        """Send the pieces, one behind the other, waiting for the supervisor to take them.

        Ends the process if the channel is no longer there.
        """
        # A script that closes all descriptors opens files of its own in their places.
        if self._identify() != self._identity:
            self._leave()
        sent = self._write(pieces)
        if sent == sum(map(len, pieces)):
            return
        rest = [memoryview(piece) for piece in pieces]
        while rest:
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][sent:]
                sent = self._write(rest)

    def say(self, name: str, settings: Settings, **more: Any) -> None:
        """Send an event of this process."""
        event = {"name": name, "node": settings["node"], "process": settings["process"]}
        now = {"pid": os.getpid(), "at": time.time()}
        self.send(channel.pack(channel.EVENT, 0, {**event, **now, **more}))

    def _write(self, pieces: Sequence[bytes | memoryview]) -> int:
        try:
            return os.writev(self._fd, pieces)
        except OSError:
            self._leave()

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = os.fstat(self._fd)
        except OSError:
            return None
        return (status.st_dev, status.st_ino)

    def _leave(self) -> NoReturn:
        self._page.change(page.CUT_OFF)
        os._exit(1)
