"""One end of a private socket, for a process that never waits on any of its sockets."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice

from prefect_parallelrun_runtime import channel

_READ = 1 << 16
_READS_PER_ROUND = 16
"""So that one process with large results does not keep the others waiting."""
_BUFFERS_PER_SEND = 512


class Link:
    """Frames in, frames out."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._splitter = channel.Splitter()
        self._out: deque[bytes | memoryview] = deque()
        self.unsent = 0
        """Bytes that are waiting to be sent."""
        self.closed = False
        """Whether the other end is gone."""
        self.garbled = False
        """Whether something came that is no frame; nothing is read any more."""

    def fileno(self) -> int:
        """Return the descriptor, for epoll."""
        return self._socket.fileno()

    def receive(self) -> list[tuple[int, int, bytes]]:
        """Return the frames that are complete by now (kind, tag, whole frame), a bounded number."""
        found: list[tuple[int, int, bytes]] = []
        for _ in range(_READS_PER_ROUND):
            data = self._read()
            found += self._split(data)
            if len(data) < _READ:
                break
        return found

    def drain(self) -> list[tuple[int, int, bytes]]:
        """Return all frames that are complete, until nothing more is there to read."""
        found: list[tuple[int, int, bytes]] = []
        while data := self._read():
            found += self._split(data)
        return found

    def _split(self, data: bytes) -> list[tuple[int, int, bytes]]:
        try:
            return self._splitter.feed(data)
        except channel.Garbage as garbage:
            self.garbled = True
            return garbage.complete

    def _read(self) -> bytes:
        if self.garbled:
            return b""
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
        return data

    def send(self, data: bytes) -> None:
        """Take `data` to be sent by the next `flush`."""
        self._out.append(data)
        self.unsent += len(data)

    def flush(self) -> None:
        """Send as much as the kernel takes now."""
        while self._out:
            try:
                sent = self._socket.sendmsg(islice(self._out, _BUFFERS_PER_SEND))
            except BlockingIOError:
                return
            except ConnectionError:
                # What the peer can no longer take, nobody wants; that it is gone is noticed elsewhere.
                self._out.clear()
                self.unsent = 0
                return
            self.unsent -= sent
            while self._out and sent >= len(self._out[0]):
                sent -= len(self._out.popleft())
            if sent:
                self._out[0] = memoryview(self._out[0])[sent:]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
