"""A node's supervisor as its agent sees it: a process, and a socket that bundles go into and frames come out of."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.node.own_errors import noted
from prefect_parallelrun_runtime import channel, messages, reaper, supervisor

END_S = 2.0
"""How long a supervisor may take to kill what it started; measured: some milliseconds. It is killed then,
and a run that is cancelled has ended within five seconds all the same."""


@dataclass(slots=True)
class Waiting:
    """A bundle that the supervisor has, or is to get."""

    frames: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    whole: bool = False
    """Whether its BUNDLE_END came."""


class Supervision:
    """Starts the supervisor of a node, speaks with it, and buries it.

    Args:
        settings: of the node, complete.
        frame_came: called with the kind and the bundle's number of each frame that is no event.
        event_came: called with each event, the last of which is `supervisor_ended`.
    """

    def __init__(
        self,
        settings: messages.Settings,
        *,
        frame_came: Callable[[int, int], None],
        event_came: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings = settings
        self._frame_came = frame_came
        self._event_came = event_came
        self._waiting: dict[int, Waiting] = {}
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self.lost = False
        """Whether the supervisor has ended."""
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                supervisor.command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            theirs.close()
        with contextlib.suppress(OSError):  # the reader sees the end of the socket, and says so
            self._send(channel.pack(channel.SETTINGS, 0, settings))
        self._reader = threading.Thread(
            target=self._read, name=f"parallelrun-{settings['node']}", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    @contextmanager
    def expecting(self, number: int) -> Iterator[Waiting | None]:
        """Take in what comes of a bundle; None where nothing can come of it, or somebody else takes it."""
        waiting = Waiting()
        with self._lock:
            possible = not self.lost and number not in self._waiting
            if possible:
                self._waiting[number] = waiting
        if not possible:
            yield None
            return
        try:
            yield waiting
        finally:
            with self._lock:
                del self._waiting[number]

    def give(self, number: int, header: messages.BundleHeader, tasks: bytes) -> None:
        """Hand over a bundle that is expected."""
        with contextlib.suppress(OSError):
            self._send(channel.pack(channel.BUNDLE, number, header, tasks))

    def stop(self) -> None:
        """Let the worker processes finish and call `shutdown()`, and wait for that as long as it may take."""
        if self.lost:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._send(channel.pack(channel.STOP))
            self._process.wait(self._settings["shutdown_timeout_s"] + 10)
            self._reader.join(END_S)  # what the supervisor said last

    def close(self) -> None:
        """End the supervisor and all that it started, whatever they are at."""
        # Its end of the socket closes, upon which it kills every descendant and ends.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    # -- inside ------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        with self._send_lock:
            self._socket.sendall(data)

    def _read(self) -> None:
        try:
            with noted(self._settings, "reading from the supervisor"):
                for kind, number, frame in self._incoming():
                    self._take(kind, number, frame)
        finally:
            self._bury()
            with self._lock:
                self.lost = True
                waiting_still = list(self._waiting.values())
            self._event_came({"name": "supervisor_ended"})
            for waiting in waiting_still:
                waiting.ended.set()

    def _incoming(self) -> Iterator[tuple[int, int, bytes]]:
        splitter = channel.Splitter()
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except OSError:
                return
            if not data:
                return
            yield from splitter.feed(data)

    def _take(self, kind: int, number: int, frame: bytes) -> None:
        if kind == channel.EVENT:
            self._event_came(next(channel.frames(frame)).json())
            return
        self._frame_came(kind, number)
        if waiting := self._waiting.get(number):
            waiting.frames.append(frame)
            if kind == channel.BUNDLE_END:
                waiting.whole = True
                waiting.ended.set()

    def _bury(self) -> None:
        """Wait for the end of the supervisor, and kill what it leaves behind."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            # As long as it is there, it is the ancestor even of what has left its session and environment.
            reaper.kill_tree(self._process.pid)
            code = self._process.wait()
        if code < 0:
            run, node = self._settings["run_id"], self._settings["node"]
            reaper.kill_marked(f"PARALLELRUN_PROCESS={run}/{node}/".encode())
