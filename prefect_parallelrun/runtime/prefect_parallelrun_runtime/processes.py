"""One worker process as its supervisor holds it: start, status, orders, killing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
import traceback
from typing import NamedTuple, NoReturn

from prefect_parallelrun_runtime import channel, failures, leases, link, page, process_log, reaper
from prefect_parallelrun_runtime.messages import Error, Settings

_STACKS_POLL_S = 0.02
_STACKS_LIMIT_S = 0.5
_UNKILLABLE_S = 10.0
"""After SIGKILL. What lives on sits in a call of a broken file system or driver, and is given up."""
_BOOT = (
    # The working directory is the user's: it must not be searched for our modules, nor for Python's.
    "import sys; sys.path[:] = [{!r}] + [p for p in sys.path if p]; "
    "from prefect_parallelrun_runtime.worker import main; main({})"
)
_DESCRIPTORS = 8
"""That the supervisor has open for each process, with some to spare while one starts."""
_COPY_LIMIT = 1 << 16
"""Bytes. A source file up to that size is the process's own to write; what is larger, a model say, is
a link to the node's one copy. Copies cost a start 25 µs each, the link 15."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class StartError(Exception):
    """A worker process could not be started: the system lacked something for it."""

    def __init__(self, process: str, reason: OSError) -> None:
        super().__init__(f"{process} could not be started: {reason}")
        self.process = process


class Grounds(NamedTuple):
    """What each worker process of a node starts from."""

    settings: Settings
    folders: list[str]
    """In the source snapshot, relative to its root; listed once."""
    files: list[tuple[str, int]]
    """In the source snapshot: name, and size in bytes."""
    descriptors: tuple[int, int]
    """How many a process may have open: the limit that was there before the supervisor raised its own."""
    address: str
    """IP address of this host."""


def prepare(settings: Settings) -> Grounds:
    """Look at the source snapshot, and make room for the descriptors of so many processes."""
    folders: list[str] = []
    files: list[tuple[str, int]] = []
    root = settings["source_folder"]
    for folder, inner, names in os.walk(root):
        below = os.path.relpath(folder, root)
        folders.extend(os.path.normpath(os.path.join(below, name)) for name in inner)
        for name in names:
            size = os.path.getsize(os.path.join(folder, name))
            files.append((os.path.normpath(os.path.join(below, name)), size))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _DESCRIPTORS * (settings["process_count"] + 2)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    return Grounds(settings, folders, files, (soft, hard), _address())


def _address() -> str:
    """Return the IP address from which this host reaches others; nothing is sent to find it."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"


class Doom:
    """A killing that goes on while the supervisor does other things."""

    __slots__ = ("next_at", "reason", "silent_in", "status", "step", "until")

    def __init__(self, reason: str, status: page.Status, now: float) -> None:
        self.reason = reason
        """See `messages.Event`."""
        self.status = status
        """What it was doing when the killing began."""
        self.step = "ask" if reason == "timeout" else "terminate"
        self.silent_in = ""
        """Where the kernel has it, if it does not tell its stacks."""
        self.next_at = now
        self.until = now + _STACKS_LIMIT_S


class WorkerProcess:
    """A worker process; its name, log files and private folder are its alone."""

    def __init__(self, slot: int, name: str, grounds: Grounds, lease: leases.Lease) -> None:
        """Start it, with the GPUs of a lease, which is closed when it has ended or cannot be started.

        Raises:
            StartError: that is not possible now.
        """
        settings = grounds.settings
        self.slot = slot
        self.name = name
        self.lease = lease
        self.ready = False
        """Whether `init()` has succeeded."""
        self.stopping_at: float | None = None
        """When it was told to stop (monotonic seconds)."""
        self.has_worked = False
        """Whether it has run a mini-batch, or died of one."""
        self.start_failure: Error | None = None
        """What it said when import or `init()` raised."""
        self.doom: Doom | None = None
        self.moved_at: float
        """When something was last given to it, or came from it (monotonic seconds)."""
        self.marker = f"PARALLELRUN_PROCESS={settings['run_id']}/{settings['node']}/{name}".encode()
        self.log_trouble = ""
        """Why what it writes is lost; empty: it is not."""
        self._settings = settings
        try:
            self._start(grounds)
        except OSError as error:
            raise StartError(name, error) from error
        self.started_at = self.moved_at = time.monotonic()
        self.lines = process_log.Lines(grounds.address, self.pid)
        said = ["started"]
        if settings["gpus"]:
            said.append(f"GPU {self.lease.environment['CUDA_VISIBLE_DEVICES'] or 'none'}")
        said += _threads(settings["environment"])
        self.log(self.lines.now(" | ".join(said)))

    def file(self, kind: str) -> str:
        """Return the path of one of its log files, `kind` being a key of `messages.Files`."""
        return self._settings["files"][kind].replace("{process}", self.name)  # type: ignore[literal-required,no-any-return]

    def log(self, line: str) -> None:
        """Append to its log what it does not write of itself (R61)."""
        failures.append(self.file("process_log"), line)

    def _start(self, grounds: Grounds) -> None:
        folder = os.path.join(self._settings["work_folder"], self.name)
        with contextlib.ExitStack() as failing, contextlib.ExitStack() as done:
            failing.callback(self.lease.close)
            os.makedirs(folder, exist_ok=True)
            ours, theirs = socket.socketpair()
            failing.callback(ours.close)
            done.callback(theirs.close)
            # A bundle that is sent to a process may still be taken back: whoever reads its number
            # from this pipe first, has it.
            self._claims_out, self._claims_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            failing.callback(os.close, self._claims_out)
            failing.callback(os.close, self._claims_in)
            self.page = page.new_page()
            failing.callback(self.page.close)
            stdout = self._open_log("stdout")
            done.callback(os.close, stdout)
            stderr = self._open_log("stderr")
            done.callback(os.close, stderr)
            inherited = (theirs.fileno(), self.page.fd, self._claims_out)
            supervisor = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                logs, kept = (stdout, stderr), self.lease.files
                environment = self._environment()
                _become_worker(supervisor, grounds, folder, logs, inherited, kept, environment)
            failing.callback(reaper.send, self.pid, signal.SIGKILL)
            self.pidfd = os.pidfd_open(self.pid)
            failing.pop_all()
        self.link = link.Link(ours)
        settings: Settings = {
            **self._settings,
            "process": self.name,
            "address": grounds.address,
        }
        self.link.send(channel.pack(channel.SETTINGS, header=settings))
        self.link.flush()

    def _open_log(self, kind: str) -> int:
        """Open a log file of the process; where that fails, what it writes is lost, but it runs."""
        path = self.file(kind)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self.log_trouble = f"{path} cannot be written: {error}"
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _environment(self) -> dict[str, str]:
        name, _, value = self.marker.decode().partition("=")
        environment = dict(self._settings["environment"])
        paths = [self._settings["runtime_folder"], environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["AZUREML_BI_OUTPUT_PATH"] = self._settings["output_folder"]
        # Those that are there and found by nobody are hidden, too, where the script is to see none.
        if self._settings["gpus"] or self._settings["gpus_per_process"] == 0:
            environment.update(self.lease.environment)
        environment[name] = value
        return environment

    def give(self, tag: int, frame: bytes) -> None:
        """Hand a bundle over."""
        os.write(self._claims_in, tag.to_bytes(4, "little"))
        self.moved_at = time.monotonic()
        self.link.send(frame)
        self.link.flush()

    def take_back(self) -> int | None:
        """Take back the oldest bundle that it was given and has not begun; return its tag, or None."""
        try:
            return int.from_bytes(os.read(self._claims_out, 4), "little")
        except BlockingIOError:
            return None

    def stop(self, now: float) -> None:
        """Tell it to call `shutdown()` and end."""
        self.stopping_at = now
        self.link.send(channel.pack(channel.STOP))
        self.link.flush()

    def escalate(self, now: float) -> bool:
        """Take the next step of killing it, if it is due; whether it is given up as unkillable."""
        doom = self.doom
        assert doom is not None
        if now < doom.next_at:
            return False
        if doom.step == "ask":
            reaper.send(self.pid, page.STACKS_SIGNAL)
            doom.step, doom.next_at = "listen", now + _STACKS_POLL_S
        elif doom.step == "listen" and now < doom.until and not self._stacks_are_complete():
            doom.next_at = now + _STACKS_POLL_S
        elif doom.step in ("listen", "terminate"):
            if doom.step == "listen" and not self.page.stacks():
                doom.silent_in = reaper.state(self.pid)
            reaper.send_group(self.pid, signal.SIGTERM)
            doom.step, doom.next_at = "kill", now + self._settings["kill_grace_s"]
        elif doom.step == "kill":
            reaper.kill_tree(self.pid)
            doom.step, doom.next_at = "killed", now + _UNKILLABLE_S
        else:
            return True
        return False

    def _stacks_are_complete(self) -> bool:
        stacks = self.page.stacks()
        # The main thread's stack is written last, and it ends in the line that started the process.
        return stacks.endswith("<module>\n")

    def close(self) -> None:
        """Let go of what belongs to a process that has ended."""
        self.link.close()
        self.page.close()
        os.close(self.pidfd)
        os.close(self._claims_out)
        os.close(self._claims_in)
        self.lease.close()


def _become_worker(
    supervisor: int,
    grounds: Grounds,
    folder: str,
    logs: tuple[int, int],
    inherited: tuple[int, int, int],
    kept: list[int],
    environment: dict[str, str],
) -> NoReturn:
    """Turn a fresh fork of the supervisor, which has one thread, into a worker process."""
    settings = grounds.settings
    try:
        os.dup2(logs[0], 1)
        os.dup2(logs[1], 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _close_all_but(*inherited, *kept)
        os.setsid()
        reaper.die_with_parent(supervisor)
        _restore_signals()
        # The kernel shall take a worker process for memory, not the Dask worker that it serves.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with contextlib.suppress(OSError):  # a sandbox may refuse either; no script depends on it
            os.nice(settings["niceness"])
        _lay_out_source(grounds, folder)
        os.chdir(folder)
        for fd in (*inherited, *kept):
            os.set_inheritable(fd, True)
        resource.setrlimit(resource.RLIMIT_NOFILE, grounds.descriptors)
        boot = _BOOT.format(settings["runtime_folder"], ", ".join(map(str, (*inherited, *kept))))
        os.execvpe(settings["python"], [settings["python"], "-c", boot], environment)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(126)


def _close_all_but(*kept: int) -> None:
    """Close what is the supervisor's alone, other processes' leases of GPUs above all.

    They would end with `exec` only, and until then a slow disk may hold this process up.
    """
    there = []
    with contextlib.suppress(OSError):  # it is better to wait for `exec` than not to run
        there = os.listdir("/proc/self/fd")
    for fd in map(int, there):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # such as that of the list itself
                os.close(fd)


def _threads(environment: dict[str, str]) -> list[str]:
    """Return, for the log, how many threads the numeric libraries are told to begin; empty if they are not."""
    told = {name: environment[name] for name in _THREADS if name in environment}
    if len(set(told.values())) == 1:
        return [f"threads {next(iter(told.values()))}"]
    return [", ".join(f"{name}={value}" for name, value in told.items())] if told else []


def _restore_signals() -> None:
    # What is ignored or blocked here would stay so in the script.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _lay_out_source(grounds: Grounds, folder: str) -> None:
    """Let the source's files appear in a process's private folder (rule R107)."""
    source = grounds.settings["source_folder"]
    for name in grounds.folders:
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    for name, size in grounds.files:
        original, own = os.path.join(source, name), os.path.join(folder, name)
        # An earlier run may have used this folder.
        with contextlib.suppress(FileExistsError):
            if size > _COPY_LIMIT or not _copied(original, own):
                os.symlink(original, own)


def _copied(original: str, own: str) -> bool:
    """Return whether a copy could be made; for want of room it may not."""
    data = os.open(original, os.O_RDONLY)
    try:
        rest = memoryview(os.read(data, _COPY_LIMIT))
        copy = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.fstat(data).st_mode & 0o777)
    finally:
        os.close(data)
    try:
        while rest:
            rest = rest[os.write(copy, rest) :]
    except OSError:
        os.unlink(own)
        return False
    finally:
        os.close(copy)
    return True
