"""The resource monitor of a node (R62-R66): what the host, its disks and the node's processes use."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect_parallelrun.node.own_errors import note
from prefect_parallelrun.node.process_list import process_list
from prefect_parallelrun.node.process_tree import ProcessTree
from prefect_parallelrun.node.readings import Disks, Machine, Processes, Row
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime import messages

FIRST_S = 0.2
"""After the supervisor was started: by then its worker processes are there, and CPU percent has something
to compare with."""
END_S = 1.0
"""How long the end of a node waits for the last sample, at most; measured: 2 to 30 ms."""


class Monitor:
    """Samples in a thread of its own, from the start of a node to its end; fails and delays nothing.

    There is a first sample soon after the start, and one at the end. Where a sample takes long, it is
    busy at most half of the time.

    Args:
        settings: of the node, complete.
        paths: of the run.
        tree: the node's processes.
        disks: folders of which the file systems matter.
        tell: takes what goes wrong, in words, each once.
    """

    def __init__(
        self,
        settings: messages.Settings,
        paths: RunPaths,
        tree: ProcessTree,
        *,
        disks: Iterable[Path],
        tell: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._interval_s = settings["monitor_interval_s"]
        self._node = settings["node"]
        self._paths = paths
        self._tree = tree
        self._folders = list(disks)
        self._tell = tell
        self._failed = False
        self._ending = threading.Event()
        # A daemon: it may hang in a file system that does not answer.
        self._thread = threading.Thread(
            target=self._run, name=f"parallelrun-monitor-{self._node}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample, while the processes are still there; return soon in any case."""
        if not self._ending.is_set():  # who comes second would wait a second time where it hangs
            self._ending.set()
            self._thread.join(END_S)

    # -- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._sample_on()
                return
            except Exception as error:
                self._note(error)
            if self._ending.is_set():
                return
            self._ending.wait(self._interval_s)

    def _note(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        if not isinstance(error, OSError):
            note(self._settings, "sampling resources")
        self._tell(f"{error!r}; it is tried again after each --resource_monitor_interval")

    def _sample_on(self) -> None:
        machine = Machine()
        try:
            disks, processes = Disks(self._folders), Processes(self._tree)
            self._ending.wait(FIRST_S)
            due = self._sample(machine, disks, processes, listed=True)
            ending = False
            while not ending:
                ending = self._ending.wait(max(0.0, due - time.monotonic()))
                due = self._sample(machine, disks, processes, listed=not ending)
        finally:
            machine.close()

    def _sample(
        self, machine: Machine, disks: Disks, processes: Processes, *, listed: bool
    ) -> float:
        """Take a sample, with the output of `ps` if `listed`; return when the next is due (monotonic)."""
        began, now = time.monotonic(), datetime.now(UTC)
        paths, node = self._paths, self._node
        # These first: the node may be about to end them.
        _append(paths.process_usage(node), now, processes.columns, processes.rows())
        _append(paths.node_usage(node), now, machine.columns, machine.rows())
        _append(paths.disk_usage(node), now, disks.columns, disks.rows())
        while disks.trouble:
            self._tell(disks.trouble.pop())
        if listed:
            self._list_all(now)
        ended = time.monotonic()
        return max(began + self._interval_s, ended + (ended - began))

    def _list_all(self, now: datetime) -> None:
        """Keep what `ps` says; once a minute, however short the interval."""
        path = self._paths.process_list(self._node, now)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(process_list(self._ending))


def _append(path: Path, now: datetime, columns: Sequence[str], rows: Iterable[Row]) -> None:
    stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(["time", *columns])
    writer.writerows([stamp, *row] for row in rows)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text.getvalue())
