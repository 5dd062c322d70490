"""The status page: memory that a worker process writes and its supervisor reads, without a message.

A time-out must cost nothing while all goes well: the worker process notes what it does in shared
memory (a quarter of a microsecond), and the supervisor looks only when a deadline could have passed.
The page outlives the process, so after a death it says what was running. Behind the page, in the same
memory file, the process writes the stacks of its threads when the supervisor asks for them.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import NamedTuple

STARTING = 1
"""Interpreter start, and import of the script."""
INIT = 2
"""In the script's `init()`."""
IDLE = 3
"""Between mini-batches."""
LOADING = 4
"""Waiting for the data of a mini-batch."""
RUNNING = 5
"""In the script's `run()`."""
ENCODING = 6
"""Turning what `run()` returned into bytes."""
SENDING = 7
"""Handing the result over."""
ENDING = 8
"""In the script's `shutdown()`."""
LEAVING = 9
"""After that, or after `sys.exit()`: the interpreter waits for threads, and calls what is registered
with `atexit`."""
CUT_OFF = 10
"""Leaving with something that cannot be handed over: the script has closed the channel."""

BUSY = frozenset((LOADING, RUNNING, ENCODING, SENDING, CUT_OFF))
"""A death in one of these is charged to the mini-batch on the page, if its result has not come."""

STACKS_SIGNAL = 50
"""A real-time signal that scripts do not use: the process writes its stacks. A number, since two
interpreters may be built on C libraries that disagree about SIGRTMIN."""

# Written again and again by one process and read by another: in native order and alignment no
# field is ever half written, and equal counters at both ends show that the fields belong together.
_LAYOUT = struct.Struct("@QqddIIIIQ")
_CPU = struct.Struct("@d")
_CPU_AT = _LAYOUT.size
_STACKS_AT = mmap.PAGESIZE


class Status(NamedTuple):
    """What a worker process is doing."""

    phase: int
    bundle: int
    """Tag of the bundle; 0 for none."""
    position: int
    """Place of the mini-batch in the bundle."""
    items: int
    """Items of the mini-batch; -1 as long as they are not known."""
    since: float
    """Monotonic seconds at which the phase began."""
    picked_up: float
    """Monotonic seconds at which the mini-batch was picked up; 0: with this phase."""
    cpu_s: float
    """CPU time that the process had used when it picked up the mini-batch."""


class StatusPage:
    """One worker process's page, for the one that writes it and the one that reads it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, mmap.PAGESIZE)
        self._count = 0

    def set(
        self,
        phase: int,
        bundle: int = 0,
        position: int = 0,
        items: int = -1,
        picked_up: float = 0.0,
    ) -> float:
        """Write what begins now; returns the time it noted (monotonic seconds)."""
        self._count = count = self._count + 1
        now = time.monotonic()
        _LAYOUT.pack_into(
            self._memory, 0, count, items, now, picked_up, bundle, position, phase, 0, count
        )
        return now

    def pick_up(self, bundle: int, position: int) -> tuple[float, float]:
        """Write that a mini-batch is picked up; returns the time and the process's CPU time, in seconds."""
        cpu_s = time.process_time()
        _CPU.pack_into(self._memory, _CPU_AT, cpu_s)
        return self.set(LOADING, bundle, position), cpu_s

    def change(self, phase: int) -> None:
        """Write another phase of the same mini-batch."""
        status = self.read()
        self.set(phase, status.bundle, status.position, status.items, status.picked_up)

    def read(self) -> Status:
        """Return what the process does, or did when it died."""
        raw = self._memory[: _LAYOUT.size]
        for _ in range(1000):
            count, items, since, picked_up, bundle, position, phase, _spare, again = _LAYOUT.unpack(
                raw
            )
            newer = self._memory[: _LAYOUT.size]
            if count == again and raw == newer:
                break
            raw = newer
        # A process killed within a write leaves the counters apart for ever: take what is there.
        (cpu_s,) = _CPU.unpack_from(self._memory, _CPU_AT)
        return Status(phase, bundle, position, items, since, picked_up, cpu_s)

    def stacks_file(self) -> int:
        """Return the descriptor to write stacks to; they land behind the page."""
        os.lseek(self.fd, _STACKS_AT, os.SEEK_SET)
        return self.fd

    def stacks(self) -> str:
        """Return the stacks that the process wrote so far."""
        return os.pread(self.fd, 1 << 20, _STACKS_AT).decode(errors="replace")

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.fd)


def new_page() -> StatusPage:
    """Make an empty page, of a process that is starting."""
    fd = os.memfd_create("parallelrun-status")
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        page = StatusPage(fd)
    except OSError:
        os.close(fd)
        raise
    page.set(STARTING)
    return page
