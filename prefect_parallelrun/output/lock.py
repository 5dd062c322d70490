"""One driver per run folder: who has it, whether that driver still lives, and how another takes over."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.trouble import explained
from prefect_parallelrun.paths import RunPaths

HEARTBEAT_S = 5.0
"""The owner touches the lock file so often."""
STALE_S = 60.0
"""A lock of another machine is free when it has not been touched for so long."""
_DOUBT_S = STALE_S / 2
"""An owner that could not touch it for so long looks whether it still has the lock."""
_CHECK_S = 10.0
"""How long a driver waits for others that are looking at the lock; they do so for milliseconds."""

_held: set[str] = set()
"""Tokens of the locks that this process has now."""


class LockLost(OutputError):
    """Another driver took the run over while this one did not run; nothing may be written any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A driver, as it wrote itself down in the lock file."""

    token: str
    """Different for every taking, also by the same process."""
    host: str
    boot: str
    """Of the machine, a new one each time it starts; empty where it cannot be known."""
    namespace: str
    """In which the process number means something."""
    pid: int
    started: int
    """When the process began, in clock ticks since the machine did: process numbers are used again."""
    since: str
    """UTC, when it took the lock."""
    run: str = ""
    """That it works on."""

    @classmethod
    def this_process(cls, run: str) -> Owner:
        """Describe the process that asks, and that works on a run."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_text_of("/proc/sys/kernel/random/boot_id"),
            namespace=_link_of("/proc/self/ns/pid"),
            pid=os.getpid(),
            started=_start_of(os.getpid()) or 0,
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            run=run,
        )

    def lives(self, silent_s: float) -> bool:
        """Return whether this driver may still be at work.

        Args:
            silent_s: seconds since it last touched the lock file.
        """
        if not self.boot or (self.boot, self.namespace) != (
            _text_of("/proc/sys/kernel/random/boot_id"),
            _link_of("/proc/self/ns/pid"),
        ):
            return silent_s < STALE_S
        if self.pid == os.getpid():
            return self.token in _held
        return self.started == _start_of(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class DriverLock(ABC):
    """The right of one driver to something, from `with` to its end; a thread keeps it fresh.

    Args:
        file: the lock file; its folder is there, and nothing else is called so.
        run: that the driver works on.
    """

    def __init__(self, file: Path, run: str) -> None:
        self.before: Owner | None = None
        """The driver that had the lock and is dead; None where none had it."""
        self._file = file
        self._owner = Owner.this_process(run)
        self._ended = threading.Event()
        self._lost: str | None = None
        self._touched = _now()
        self._thread = threading.Thread(
            target=self._keep_fresh, name="parallelrun-heartbeat", daemon=True
        )

    def __enter__(self) -> Self:
        """Take the lock, also from a driver that is dead.

        Raises:
            OutputError: another driver has it, or the file system has no locks.
            OSError: the lock file cannot be read or written.
        """
        with self._alone() as file:
            self.before, silent_s = _read(file), self._silent_s(file)
            if self.before is not None and self.before.lives(silent_s):
                raise self._taken(f"{self.before}, last heard of {silent_s:.0f} seconds ago")
            _write(file, json.dumps(asdict(self._owner)).encode())
            # Before another thread of this process can look at the file.
            _held.add(self._owner.token)
        self._touched = _now()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the lock; one that another driver has stays as it is."""
        _held.discard(self._owner.token)
        self._ended.set()
        self._thread.join(HEARTBEAT_S)
        with suppress(OSError, OutputError), self._alone() as file:
            if _read(file) == self._owner:
                self._let_go(file)

    def check(self) -> None:
        """Raise if the lock is lost; cheap, and to be called often.

        Raises:
            OutputError: another driver has taken it over.
        """
        if _now() - self._touched > _DOUBT_S:
            self._look()
        if self._lost is not None:
            raise self._succeeded(f"this driver did not run for a while, and {self._lost}")

    def confirm(self) -> None:
        """Raise if the lock is lost, by looking: before what cannot be taken back.

        Raises:
            OutputError: another driver has taken it over.
        """
        self._look()
        self.check()

    # -- of each kind ------------------------------------------------------------------------

    @abstractmethod
    def _taken(self, driver: str) -> OutputError:
        """Build the error for a lock that another driver has."""

    @abstractmethod
    def _succeeded(self, how: str) -> OutputError:
        """Build the error for a lock that another driver took over."""

    @abstractmethod
    def _let_go(self, file: int) -> None:
        """Leave the lock file to the next driver, while nobody else looks at it."""

    # -- inside ------------------------------------------------------------------------------

    def _keep_fresh(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._look()

    def _look(self) -> None:
        """See whether the lock is still ours, and say that we live."""
        try:
            with self._file.open("rb") as file:
                owner = _read(file.fileno())
                if owner == self._owner:
                    os.utime(file.fileno())
                    self._touched = _now()
                    return
        except FileNotFoundError:
            self._lost = "its lock file is gone"
            return
        except OSError:
            return  # a file system that hesitates; if it does so for long, others take over
        self._lost = f"another one took over ({owner or 'which has ended since'})"

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Open the lock file while no other driver reads or writes it."""
        while True:
            with ExitStack() as undo:
                file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                undo.callback(os.close, file)  # and unlocked by that
                self._exclude_others(file)
                if self._file.exists() and os.fstat(file).st_nlink:  # not removed meanwhile
                    yield file
                    return

    def _exclude_others(self, file: int) -> None:
        deadline = time.monotonic() + _CHECK_S
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        except OSError as error:
            raise OutputError(
                f"{self._file} cannot be locked, so that two drivers could work on the same at once: "
                f"{error}. Choose a run root on another file system "
                "(PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT)"
            ) from error

    def _silent_s(self, file: int) -> float:
        """Return the age of the last heartbeat by the clock of the file system, which may be a server's."""
        with tempfile.TemporaryFile(dir=self._file.parent) as touched:
            touched.write(b"\n")
            touched.flush()
            now = os.fstat(touched.fileno()).st_mtime
        return max(0.0, now - os.fstat(file).st_mtime)


class RunLock(DriverLock):
    """The right to work on a run folder.

    Args:
        paths: of the run; its folder is there.
    """

    def __init__(self, paths: RunPaths) -> None:
        super().__init__(paths.lock, paths.root.name)
        self._paths = paths

    def __enter__(self) -> Self:
        """Take the lock, also from a driver that is dead.

        Raises:
            OutputError: another driver has it, or the run folder cannot be written.
        """
        with explained(self._paths.journal):
            return super().__enter__()

    def _taken(self, driver: str) -> OutputError:
        return OutputError(
            f"run {self._paths.root.name} is being worked on by another driver: {driver}. Wait until it "
            "has ended and run the step again, or give the step allow_reuse=False for a run of its own, "
            f"and another output where it names one. (The run folder is {self._paths.root}.)"
        )

    def _succeeded(self, how: str) -> OutputError:
        return LockLost(f"{how}: it stops, and leaves the run folder {self._paths.root} as it is")

    def _let_go(self, file: int) -> None:
        _write(file, b"")  # the file stays: by it a run folder is known


def driver_of(paths: RunPaths) -> Owner | None:
    """Return the driver that may be at work on a run now; None where there is none.

    Writes nothing, so the run folder may be read-only; the age of a heartbeat of another machine is that
    of this machine's clock.
    """
    try:
        with paths.lock.open("rb") as file:
            with suppress(OSError):  # else half of what a driver is just writing
                fcntl.flock(file, fcntl.LOCK_SH)
            owner, silent_s = _read(file.fileno()), time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    return owner if owner is not None and owner.lives(max(0.0, silent_s)) else None


def _read(file: int) -> Owner | None:
    """Return who is written down; None where nobody is, or only half: whoever wrote that is dead."""
    try:
        return Owner(**json.loads(os.pread(file, 10_000, 0)))
    except (ValueError, TypeError):
        return None


def _write(file: int, content: bytes) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, content, 0)
    os.fsync(file)


def _now() -> float:
    """Return seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _start_of(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine did; None if it is no more."""
    # The name in brackets may hold anything, so the fields are counted from its end.
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if fields and fields[0] not in "ZX" else None


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _link_of(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
