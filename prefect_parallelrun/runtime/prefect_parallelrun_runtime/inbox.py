"""What the supervisor sent to a worker process: its settings, then bundles, then a stop."""

from __future__ import annotations

import json
import os
import select
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from prefect_parallelrun_runtime import channel

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings, Task

_READ = 1 << 16


class Work(NamedTuple):
    """A bundle, opened."""

    tag: int
    tasks: list[Task]


class Inbox:
    """Frames from the supervisor, in order.

    The channel is read with plain `os.read`: importing `socket` would cost more than all else here.
    """

    def __init__(self, channel_fd: int, claims_fd: int) -> None:
        self._fd = channel_fd
        self._poll = select.poll()
        self._poll.register(channel_fd, select.POLLIN)
        self._claims_fd = claims_fd
        self._splitter = channel.Splitter()
        self._bundles: deque[Work] = deque()
        self._settings: Settings | None = None
        self._stopped = False
        self._claim: int | None = None

    def settings(self) -> Settings:
        """Wait for the settings; they come first."""
        while self._settings is None:
            self._read()
        return self._settings

    def next(self) -> Work | None:
        """Wait for the next bundle that is still ours, and begin it; None: there will be no more."""
        while True:
            while not self._bundles:
                if self._stopped:
                    return None
                self._read()
            work = self._bundles.popleft()
            if self._is_ours(work.tag):
                return work

    def peek(self) -> Work | None:
        """Return the bundle after this one, as far as is known now, without waiting."""
        if not self._bundles and not self._stopped and self._poll.poll(0):
            self._read()
        return self._bundles[0] if self._bundles else None

    def _is_ours(self, tag: int) -> bool:
        # The number of each bundle is in the claims pipe, in the order of the bundles, unless the
        # supervisor has taken it out again; then the bundle is another process's by now.
        if self._claim is None:
            try:
                self._claim = int.from_bytes(os.read(self._claims_fd, 4), "little")
            except BlockingIOError:
                return False
        if self._claim != tag:
            return False
        self._claim = None
        return True

    def _read(self) -> None:
        data = os.read(self._fd, _READ)
        if not data:
            os._exit(1)  # the supervisor is gone; nobody is left to talk to
        for kind, tag, raw in self._splitter.feed(data):
            (frame,) = channel.frames(raw)
            if kind == channel.BUNDLE:
                self._bundles.append(Work(tag, json.loads(frame.payload)))
            elif kind == channel.STOP:
                self._stopped = True
            elif kind == channel.SETTINGS:
                self._settings = frame.json()
