"""Why a worker process is no more, in words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from prefect_parallelrun_runtime import failures, page, reaper

if TYPE_CHECKING:
    from prefect_parallelrun_runtime import deadlines, processes
    from prefect_parallelrun_runtime.messages import Error, Settings

DOING = {
    page.STARTING: "the script was imported",
    page.INIT: "init() ran",
    page.IDLE: "it waited for work",
    page.LOADING: "a mini-batch was loaded",
    page.RUNNING: "run() was running",
    page.ENCODING: "the rows that run() returned were encoded",
    page.SENDING: "a result was sent",
    page.ENDING: "shutdown() ran",
    page.LEAVING: "it was ending",
    page.CUT_OFF: "it had something to send and could not, as the script had closed file "
    "descriptors that it did not open (os.closerange?)",
}
STAGES = {
    page.STARTING: "import",
    page.INIT: "init",
    page.IDLE: "idle",
    page.LOADING: "load",
    page.RUNNING: "run",
    page.ENCODING: "result",
    page.SENDING: "result",
    page.ENDING: "shutdown",
    page.LEAVING: "shutdown",
    page.CUT_OFF: "run",
}
_STACK_LINE = re.compile(
    r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE
)
_TAIL = 4000


class Death(NamedTuple):
    """How a process ended, as the kernel told its parent."""

    status: int
    """As `wait` gives it."""
    peak_kb: int
    """The most memory it had."""
    by_memory: bool
    """Whether the kernel killed it for memory."""
    cpu_s: float
    """CPU time that it had used; `nan`: the kernel does not tell."""

    @property
    def reason(self) -> str:
        """`exit`, `signal` or `memory`."""
        if self.by_memory:
            return "memory"
        return "signal" if os.WIFSIGNALED(self.status) else "exit"


def unkillable(pid: int) -> Death:
    """Return what stands for the end of a process that is given up, since even SIGKILL does not end it."""
    return Death(int(signal.SIGKILL), 0, False, reaper.cpu_s(pid))


class Register:
    """Collects the children that have ended: worker processes, and orphans that came to us."""

    def __init__(self) -> None:
        self._dead: dict[int, tuple[int, int, float]] = {}
        self._oom_kills = oom_kills()

    def reap(self, pids: Collection[int]) -> None:
        """Take all dead children from the kernel; remember how those among `pids` ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                # It stays a zombie at first: only as long can the kernel be asked for its CPU time.
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if dead is None:
                    return
                cpu_s = reaper.cpu_s(dead.si_pid)
                pid, status, usage = os.wait4(dead.si_pid, 0)
                if pid in pids:
                    self._dead[pid] = (status, usage.ru_maxrss, cpu_s)

    def take(self, pid: int) -> Death | None:
        """Return how a process ended; None while it lives."""
        if pid not in self._dead:
            return None
        status, peak_kb, cpu_s = self._dead.pop(pid)
        by_memory = False
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            # One count of the kernel explains one death.
            by_memory = oom_kills() > self._oom_kills
            self._oom_kills += by_memory
        return Death(status, peak_kb, by_memory, cpu_s)


def cause(
    process: processes.WorkerProcess,
    death: Death,
    limits: deadlines.Deadlines,
    settings: Settings,
) -> tuple[str, Error | None]:
    """Return why a process ended, for `process_ended`, and the error if that was not what was wanted."""
    doom = process.doom
    if doom is None:
        if process.stopping_at is not None and death.reason == "exit":
            return "stopped", None
        phase = process.page.read().phase
        return death.reason, of_process(death, phase, process.file("stderr"), settings)
    if doom.reason == "garbage":
        return doom.reason, of_garbage(doom.status.phase, settings)
    if doom.reason != "timeout":
        return doom.reason, None
    phase = doom.status.phase
    if process.stopping_at is not None and phase != page.LEAVING:
        phase = page.ENDING
    words, stacks = limits.words[phase], process.page.stacks()
    return doom.reason, of_timeout(phase, words, stacks, doom.silent_in, settings)


def of_process(death: Death, phase: int, stderr_file: str, settings: Settings) -> Error:
    """Return the error of a mini-batch, or of a start, that a death ended."""
    while_ = f"while {DOING.get(phase, DOING[page.IDLE])}"
    if death.reason == "memory":
        how = f"was killed for memory {while_}; {failures.peak(death.peak_kb)}"
    elif death.reason == "signal":
        how = f"was killed by signal {_signal(os.WTERMSIG(death.status))} {while_}"
    else:
        how = f"ended with exit code {os.waitstatus_to_exitcode(death.status)} {while_}"
    tail = failures.end_of(stderr_file, _TAIL)
    return failures.record(
        settings,
        category=death.reason,
        type_="ProcessDied",
        message=f"the worker process {how}",
        trace=f"The end of {stderr_file}:\n{tail}" if tail else "",
        stage=STAGES.get(phase, STAGES[page.IDLE]),
    )


def of_garbage(phase: int, settings: Settings) -> Error:
    """Return the error of what wrote into the channel of its worker process."""
    return failures.record(
        settings,
        category="exit",
        type_="ChannelBroken",
        message="the worker process was killed, as what came from it was no result: the script, or a "
        "library of it, has written to a file descriptor that it did not open",
        trace="",
        stage=STAGES[phase],
    )


def of_timeout(phase: int, words: str, stacks: str, silent_in: str, settings: Settings) -> Error:
    """Return the error of what took too long.

    Args:
        stacks: Where it was when that was noticed; empty: it did not say.
        silent_in: Then: where the kernel had it.
    """
    trace = (
        f"Stacks of all threads at that moment:\n{stacks}"
        if stacks
        else (
            "It did not answer the signal that asks for the stacks of its threads. "
            f"The kernel says: {silent_in}."
        )
    )
    return failures.record(
        settings,
        category="timeout",
        type_="TimedOut",
        message=words,
        where=_where(stacks, settings["source_folder"]),
        trace=trace,
        stage=STAGES[phase],
    )


def oom_kills() -> int:
    """Return how often the kernel has killed for memory around here (of the cgroup, else of the host)."""
    for name in (*_cgroup_files(), "/proc/vmstat"):
        try:
            with open(name, encoding="ascii") as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except OSError:
            continue
    return 0


def _cgroup_files() -> list[str]:
    found: list[str] = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                _number, controllers, path = line.rstrip("\n").split(":", 2)
                # In a container the group itself may be what is mounted, and the path lead nowhere.
                if not controllers:
                    found += [f"/sys/fs/cgroup{place}/memory.events" for place in (path, "")]
                elif "memory" in controllers.split(","):
                    found += [
                        f"/sys/fs/cgroup/memory{place}/memory.oom_control" for place in (path, "")
                    ]
    except OSError:
        pass
    return found


def _signal(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)


def _where(stacks: str, source_folder: str) -> str:
    # The thread that took the signal comes first if it can be told, as that is nearly always the
    # one in which run() is.
    threads = sorted(
        re.split(r"\n\n", stacks), key=lambda text: not text.startswith("Current thread")
    )
    for thread in threads:
        for match in _STACK_LINE.finditer(thread):
            found = failures.place(
                match["file"], int(match["line"]), match["function"], source_folder
            )
            if found:
                return found
    return ""
