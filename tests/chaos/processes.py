"""Processes of this machine, by what is in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def environment(pid: int) -> list[str]:
    """Return the environment with which a process was started; empty when it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def command(pid: int) -> str:
    """Return its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def state(pid: int) -> tuple[str, int] | None:
    """Return the letter of its state and its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def marked(*beginnings: str) -> Iterator[int]:
    """Yield each process with an entry in its environment that begins so."""
    for name in os.listdir("/proc"):
        if name.isdigit() and any(e.startswith(beginnings) for e in environment(int(name))):
            yield int(name)


def send(pid: int, number: int, mark: str) -> bool:
    """Send a signal to a process if it is ours: `mark` is in its environment. Whether it was sent."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # The handle stands for this very process: a number may be given to another one meanwhile.
        if mark not in environment(pid):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def kill_all(pids: Iterator[int]) -> None:
    """Send SIGKILL to what a failed round left behind."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
