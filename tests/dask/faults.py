"""What tests do to nodes, and how they wait for what comes of it."""

from __future__ import annotations

import os
import threading
import time

import psutil

RECORD = """
    import os, subprocess, time
    from pathlib import Path

    HERE = Path(os.environ["HERE"])

    def tell(what):
        with open(HERE / "told", "a") as told:
            told.write(f"{what} {os.getpid()}\\n")

    def run(mini_batch):
        name = Path(mini_batch[0]).stem
        tell(name)
        deadline = time.monotonic() + 60
        while (HERE / f"hold-{name}").exists() or (HERE / "hold").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.01)
        return [Path(p).name for p in mini_batch]
"""
"""A script that tells which mini-batch it begins and its pid; the files `hold` and `hold-<name>` stop it."""
EXPECTED = [f"{n:02d}.txt" for n in range(100)]


def until(condition, seconds=30):
    """Wait for a condition, and fail if it does not come; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come"
        threading.Event().wait(0.02)
    return value


def told(here):
    """The lines that the script has told: pairs of mini-batch and pid."""
    path = here / "told"
    if not path.exists():
        return []
    return [(name, int(pid)) for name, pid in map(str.split, path.read_text().splitlines())]


def marked():
    """Pids of all living processes that scripts of this test's runs started, however far removed."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if b"\0PARALLELRUN_PROCESS=" in b"\0" + file.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def living(pids):
    """Those of some pids that are not gone; one that nobody has asked for is."""
    alive = []
    for pid in set(pids):
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            continue
    return alive


def supervisor_of(pid):
    """Pid of the supervisor that a worker process belongs to."""
    return psutil.Process(pid).ppid()


def dask_worker_of(pid):
    """Pid of the Dask worker that a worker process belongs to."""
    return psutil.Process(supervisor_of(pid)).ppid()


class Meanwhile:
    """Does something beside a run, in a thread; then nothing holds the script in folder `here` any more.

    What it raises is raised at the end of the block.
    """

    def __init__(self, work, here):
        self._work = work
        self._here = here
        self._error = None
        self._thread = threading.Thread(target=self._do)

    def _do(self):
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            for hold in self._here.glob("hold*"):
                hold.unlink()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._thread.join()
        if self._error is not None:
            raise self._error
