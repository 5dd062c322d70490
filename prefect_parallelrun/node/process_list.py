"""All processes of a host, as `ps` lists them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime

import psutil

COMMAND = ("ps", "-eo", "user:16,pid,ppid,stat,nlwp,pcpu,rss,vsz,time,lstart,comm", "--sort=-rss")
"""Names of programs, and no command lines: those may hold passwords (R78). Without them, `ps` also reads
nothing that a process which hangs could hold up."""
LIMIT_S = 10.0
"""How long `ps` may take."""
END_S = 0.5
"""How much longer it may take when the node ends."""
LOOK_S = 0.05


def process_list(ending: threading.Event) -> bytes:
    """Return what `ps` says, or an equal table where there is no `ps`; it may be cut short.

    Args:
        ending: set when the node ends.
    """
    try:
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
        )
    except OSError:
        return _table()
    with process:
        output = _output(process, ending)
    return output if process.returncode <= 0 else _table()  # that of busybox knows no such columns


def _output(process: subprocess.Popen[bytes], ending: threading.Event) -> bytes:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return process.communicate(timeout=LOOK_S)[0]
        except subprocess.TimeoutExpired:
            if ending.is_set():
                deadline = min(deadline, time.monotonic() + END_S)
        if time.monotonic() > deadline:
            break
    # It may have started others that hold the pipe.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=END_S)[0]
    return b""


def _table() -> bytes:
    head = (
        f"{'USER':<16} {'PID':>7} {'PPID':>7} STAT NLWP {'%CPU':>5} {'RSS':>9} {'VSZ':>10} "
        f"{'TIME':>8} {'STARTED':>24} COMMAND"
    )
    lines = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error), process.oneshot():
            lines.append(_line(process))
    text = "\n".join([head, *(line for _, line in sorted(lines, reverse=True)), ""])
    return text.encode(errors="backslashreplace")


def _line(process: psutil.Process) -> tuple[int, str]:
    times, memory, began = process.cpu_times(), process.memory_info(), process.create_time()
    cpu_s = times.user + times.system
    percent = 100 * cpu_s / max(time.time() - began, 0.001)
    minutes, seconds = divmod(int(cpu_s), 60)
    spent = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    state = _STATES.get(process.status(), "?")
    return memory.rss, (
        f"{process.username():<16.16} {process.pid:>7} {process.ppid():>7} {state:<4} "
        f"{process.num_threads():>4} {percent:>5.1f} {memory.rss >> 10:>9} {memory.vms >> 10:>10} "
        f"{spent:>8} {datetime.fromtimestamp(began, UTC):%a %b %e %H:%M:%S %Y} {process.name()}"
    )


_STATES = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_IDLE: "I",
}
