"""One worker process as its supervisor holds it: start, status, orders, killing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import traceback
from typing import NamedTuple, NoReturn

from prefect_parallelrun_runtime import channel, link, page, reaper
from prefect_parallelrun_runtime.messages import Error, Settings

_STACKS_POLL_S = 0.02
_STACKS_LIMIT_S = 0.5
_UNKILLABLE_S = 10.0
"""After SIGKILL. What lives on sits in a call of a broken file system or driver, and is given up."""
_BOOT = (
    # The working directory is the user's: it must not be searched for our modules, nor for Python's.
    "import sys; sys.path[:] = [{runtime!r}] + [p for p in sys.path if p]; "
    "from prefect_parallelrun_runtime.worker import main; main({channel}, {page}, {claims})"
)


class SourceTree(NamedTuple):
    """The names in the source snapshot, relative to its root; listed once."""

    folders: list[str]
    files: list[str]


def list_source(root: str) -> SourceTree:
    """Return what is in the source snapshot."""
    tree = SourceTree([], [])
    for folder, folders, files in os.walk(root):
        below = os.path.relpath(folder, root)
        tree.folders.extend(os.path.normpath(os.path.join(below, name)) for name in folders)
        tree.files.extend(os.path.normpath(os.path.join(below, name)) for name in files)
    return tree


class Doom:
    """A killing that goes on while the supervisor does other things."""

    __slots__ = ("next_at", "reason", "status", "step", "until")

    def __init__(self, reason: str, status: page.Status, now: float) -> None:
        self.reason = reason
        """See `messages.Event`."""
        self.status = status
        """What it was doing when the killing began."""
        self.step = "ask" if reason == "timeout" else "terminate"
        self.next_at = now
        self.until = now + _STACKS_LIMIT_S


class WorkerProcess:
    """A worker process; its name, log files and private folder are its alone."""

    def __init__(self, slot: int, name: str, settings: Settings, tree: SourceTree) -> None:
        self.slot = slot
        self.name = name
        self.ready = False
        """Whether `init()` has succeeded."""
        self.stopping_at: float | None = None
        """When it was told to stop (monotonic seconds)."""
        self.has_worked = False
        """Whether it has run a mini-batch, or died of one."""
        self.start_failure: Error | None = None
        """What it said when import or `init()` raised."""
        self.doom: Doom | None = None
        self.marker = f"PARALLELRUN_PROCESS={settings['run_id']}/{settings['node']}/{name}".encode()
        self._settings = settings
        self._start(tree)
        self.started_at = time.monotonic()

    def file(self, kind: str) -> str:
        """Return the path of one of its log files, `kind` being a key of `messages.Files`."""
        return self._settings["files"][kind].replace("{process}", self.name)  # type: ignore[literal-required,no-any-return]

    def _start(self, tree: SourceTree) -> None:
        folder = os.path.join(self._settings["work_folder"], self.name)
        os.makedirs(folder, exist_ok=True)
        ours, theirs = socket.socketpair()
        # A bundle that is sent to a process may still be taken back: whoever reads its number from
        # this pipe first, has it.
        self._claims_out, self._claims_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.page = page.new_page()
        stdout, stderr = _open_log(self.file("stdout")), _open_log(self.file("stderr"))
        boot = _BOOT.format(
            runtime=self._settings["runtime_folder"],
            channel=theirs.fileno(),
            page=self.page.fd,
            claims=self._claims_out,
        )
        inherited = (theirs.fileno(), self.page.fd, self._claims_out)
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become_worker(
                supervisor,
                self._settings,
                folder,
                tree,
                (stdout, stderr),
                inherited,
                boot,
                self._environment(),
            )
        self.pidfd = os.pidfd_open(self.pid)
        theirs.close()
        os.close(stdout)
        os.close(stderr)
        self.link = link.Link(ours)
        settings: Settings = {**self._settings, "process": self.name}
        self.link.send(channel.pack(channel.SETTINGS, header=settings))
        self.link.flush()

    def _environment(self) -> dict[str, str]:
        name, _, value = self.marker.decode().partition("=")
        environment = dict(self._settings["environment"])
        paths = [self._settings["runtime_folder"], environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["AZUREML_BI_OUTPUT_PATH"] = self._settings["output_folder"]
        environment[name] = value
        return environment

    def give(self, tag: int, frame: bytes) -> None:
        """Hand a bundle over."""
        os.write(self._claims_in, tag.to_bytes(4, "little"))
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


def _open_log(path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)


def _become_worker(
    supervisor: int,
    settings: Settings,
    folder: str,
    tree: SourceTree,
    logs: tuple[int, int],
    inherited: tuple[int, int, int],
    boot: str,
    environment: dict[str, str],
) -> NoReturn:
    """Turn a fresh fork of the supervisor, which has one thread, into a worker process."""
    try:
        os.dup2(logs[0], 1)
        os.dup2(logs[1], 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.setsid()
        reaper.die_with_parent(supervisor)
        _restore_signals()
        # The kernel shall take a worker process for memory, not the Dask worker that it serves.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        _link_source(settings["source_folder"], folder, tree)
        os.chdir(folder)
        for fd in inherited:
            os.set_inheritable(fd, True)
        os.execvpe(settings["python"], [settings["python"], "-c", boot], environment)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(126)


def _restore_signals() -> None:
    # What is ignored or blocked here would stay so in the script.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _link_source(source: str, folder: str, tree: SourceTree) -> None:
    for name in tree.folders:
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    for name in tree.files:
        # An earlier run may have used this folder.
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.join(source, name), os.path.join(folder, name))
