"""Finding and killing processes that others started.

A process group misses what called `setsid`, and a parent-death signal misses grandchildren. The
supervisor is the subreaper of all that its worker processes start, so whatever they leave behind
becomes its own child, and no descendant can get away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_EXITING = 0x4
_PF_KTHREAD = 0x200000
"""Of `include/linux/sched.h`."""
_CPU_CLOCK = 2
"""`CPUCLOCK_SCHED`, of the kernel's `posix-timers.h`."""
_EXEC_S = 1.0
"""A program that shows no environment for so long was given none."""
_LIBC = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants."""
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) was refused")


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which has just forked it, dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def children(pid: int) -> list[int]:
    """Return the children of `pid`, of all its threads; nothing when it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        except OSError:
            if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
                return _children_by_scan(pid)  # a kernel without CONFIG_PROC_CHILDREN
    return found


def _children_by_scan(pid: int) -> list[int]:
    return [
        other
        for other in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _parent(other) == pid
    ]


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses may hold blanks and parentheses of its own.
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Return all that `pid` started, directly or not; children before grandchildren."""
    found: list[int] = []
    rest = [pid]
    while rest:
        for child in children(rest.pop()):
            found.append(child)
            rest.append(child)
    return found


def state(pid: int) -> str:
    """Say what the kernel knows of a process that gives no answer, such as `D (disk sleep) in nfs_wait`."""
    found = "gone"
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            found = next((line for line in file if line.startswith("State:")), "State: unknown")
        found = found.partition(":")[2].strip()
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            place = file.read()
        found += f" in {place}" if place not in ("", "0") else ""
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used so far, a zombie too; `nan` when it is gone.

    They are what `time.process_time` tells within the process: nothing of its children.
    """
    try:
        # The clock of another process's CPU time, as clock_getcpuclockid(3) makes its number.
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    except OSError:
        return float("nan")


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def send_group(pid: int, number: int) -> None:
    """Send a signal to the process group of `pid`; a group that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def kill_tree(pid: int) -> None:
    """Send SIGKILL to `pid` and to all that it started, while it is still their ancestor."""
    seen: set[int] = set()
    while new := [other for other in descendants(pid) if other not in seen]:
        for other in new:
            send(other, signal.SIGKILL)
        seen.update(new)
    send_group(pid, signal.SIGKILL)
    send(pid, signal.SIGKILL)


def kill_remains(session: int, marker: bytes, spare: Collection[int]) -> None:
    """Send SIGKILL to what a dead worker process left behind.

    Those are children of this process by now: of the dead one's session, or with its `marker` (an
    environment entry, `NAME=value`), and not in `spare`.
    """
    seen: set[int] = set(spare)
    # A killed process hands its children to us a moment later; hence again until nothing is new.
    while new := [pid for pid in children(os.getpid()) if pid not in seen]:
        for pid in new:
            if _session(pid) == session or marker in _environment(pid):
                kill_tree(pid)
        seen.update(new)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def kill_everything(limit_s: float = 10.0) -> None:
    """Kill every descendant of this process, and wait until none is left.

    Gives up after `limit_s`: a process within a broken file system's call cannot be killed by anybody.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            send(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def kill_marked(prefix: bytes, limit_s: float = 10.0) -> bool:
    """Send SIGKILL to each process of this user that has an environment entry which begins with `prefix`.

    It goes on until none is left, or for `limit_s`; returns whether none is left. For what outlived its
    supervisor: it is nobody's descendant any more, and only its environment tells where it came from.
    """
    began = last_seen = time.monotonic()
    while True:
        marked, bare = _marked(prefix)
        now = time.monotonic()
        if marked:
            last_seen = now
        elif not bare or now - last_seen > _EXEC_S:
            return True
        if now - began > limit_s:
            return False
        for pid in marked:
            send(pid, signal.SIGKILL)
        time.sleep(0.001)


def _marked(prefix: bytes) -> tuple[list[int], bool]:
    """Return the marked processes, and whether there is one that lives and shows no environment at all.

    That one may be within `exec`, where the kernel has let go of the old environment and not yet set
    the new one: 4 looks in 100 at a shell that does nothing but `exec` (measured).
    """
    found, bare = [], False
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        environment = _environment(pid)
        if pid != os.getpid() and any(entry.startswith(prefix) for entry in environment):
            found.append(pid)
        bare = bare or (environment == [b""] and _is_program(pid))
    return found, bare


def _is_program(pid: int) -> bool:
    """Whether it is no kernel thread, and is not about to end: those have no environment."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except OSError:
        return False
    return not flags & (_PF_KTHREAD | _PF_EXITING)
