"""The processes of a node: its supervisor, the worker processes, and all that they started."""

from __future__ import annotations

import contextlib
import os

import psutil

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun_runtime import reaper

SUPERVISOR = "supervisor"
MARKER = "PARALLELRUN_PROCESS"
"""In the environment of a worker process: run, node and process, with slashes between."""


class ProcessTree:
    """Finds the processes below one supervisor, and says to which worker process each belongs.

    Args:
        supervisor: its process id.
        node: run and node, with a slash between.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """

    def __init__(self, supervisor: int, node: str) -> None:
        self._supervisor = psutil.Process(supervisor)
        self._marker = f"{node}/"
        self._names: dict[psutil.Process, str] = {}
        """Of those of the last look. What has lost its parent keeps the name it had."""

    def look(self) -> dict[psutil.Process, str]:
        """Return each process that lives, with `supervisor` or the name of the worker process it belongs to."""
        names: dict[psutil.Process, str] = {}
        if not self._supervisor.is_running():
            return names
        names[self._supervisor] = SUPERVISOR
        by_pid = {self._supervisor.pid: SUPERVISOR}
        for process in self._below():
            with contextlib.suppress(psutil.Error):
                name = self._name(process, by_pid)
                names[process] = by_pid[process.pid] = name
        self._names = names
        return names

    def _below(self) -> list[psutil.Process]:
        """Return all below the supervisor, parents before their children."""
        pid = self._supervisor.pid
        if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):  # noqa: PTH110
            # A kernel without CONFIG_PROC_CHILDREN: one look at the parents of all processes.
            with contextlib.suppress(psutil.Error):
                return list(self._supervisor.children(recursive=True))
            return []
        found = []
        for child in reaper.descendants(pid):
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(child))
        return found

    def _name(self, process: psutil.Process, by_pid: dict[int, str]) -> str:
        parent = process.ppid()
        # A descendant of a worker process is its, also where it has another environment, or other markers.
        if (name := by_pid.get(parent, SUPERVISOR)) != SUPERVISOR:
            return name
        if (known := self._names.get(process, SUPERVISOR)) != SUPERVISOR:
            return known
        marker = _environment(process).get(MARKER, "")
        if marker.startswith(self._marker):
            return marker.removeprefix(self._marker)
        # An orphan, which the supervisor inherits: each worker process leads a session.
        with contextlib.suppress(OSError):
            return by_pid.get(os.getsid(process.pid), SUPERVISOR)
        return SUPERVISOR


def _environment(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.AccessDenied):
        environment: dict[str, str] = process.environ()
        return environment
    return {}
