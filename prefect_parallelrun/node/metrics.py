"""What the Dask dashboard shows of a node, beside what Dask itself sees: its worker processes, at work.

Dask asks for these values at each heartbeat, on the event loop of the Dask worker. So they are counted
or measured elsewhere, and only told here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import distributed
import psutil

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.node.own_errors import note
from prefect_parallelrun.node.process_tree import ProcessTree
from prefect_parallelrun_runtime import channel, messages

RATE_S = 10.0
"""Over how long mini-batches per second are averaged."""
MEASURE_S = 2.0
"""How often memory is measured; less often where that takes more than a hundredth of the time."""
SHARE = 0.01

Metric = Callable[[distributed.Worker], float]


class Tally:
    """Counts what a supervisor tells; told by one thread, and read by others."""

    def __init__(self) -> None:
        self.processes: set[str] = set()
        """Names of the worker processes that there are."""
        self.bundles: set[int] = set()
        """Numbers of the bundles that are being run, each by one worker process."""
        self.results = 0
        """Attempts that have ended."""

    def heard(self, event: Mapping[str, Any]) -> None:
        """Take in an event; a script that writes into its channel may have made it up."""
        match event:
            case {"name": "process_started", "process": str(process)}:
                self.processes.add(process)
            case {"name": "process_ended", "process": str(process)}:
                self.processes.discard(process)
            case {"name": "bundle_started", "bundle": int(number)}:
                self.bundles.add(number)
            case {"name": "supervisor_ended"}:
                self.processes.clear()
                self.bundles.clear()

    def came(self, kind: int, number: int) -> None:
        """Take in a frame of a bundle."""
        if kind == channel.RESULT:
            self.results += 1
        elif kind == channel.BUNDLE_END:
            self.bundles.discard(number)


class Metrics:
    """The values of one node among the metrics of its Dask worker.

    Where several runs share a Dask worker, each has values of its own.

    Args:
        settings: of the node. The step's name is part of the values' names, and the run's id where
            another run of that step is on the Dask worker already.
        tally: of the node.
    """

    def __init__(self, settings: messages.Settings, tally: Tally) -> None:
        self._settings = settings
        self._tally = tally
        self._memory: MemoryWatch | None = None
        self._counts: deque[tuple[float, int]] = deque()
        self._shown: dict[str, Metric] = {}

    def show(self, worker: distributed.Worker) -> None:
        """Have the Dask worker tell the values from its next heartbeat on. On its event loop."""
        values: dict[str, Callable[[], float]] = {
            "busy processes": lambda: len(self._tally.bundles),
            "memory MiB": self._memory_mib,
            "mini-batches/s": self._rate,
            "processes": lambda: len(self._tally.processes),
        }
        label = self._settings["step"]
        if any(f"{name} ({label})" in worker.metrics for name in values):
            label += f", {self._settings['run_id']}"
        self._shown = {f"{name} ({label})": _metric(value) for name, value in values.items()}
        # A new dict: a heartbeat may be going through the old one, and wait for somebody else's value.
        worker.metrics = {**worker.metrics, **self._shown}

    def watch(self, tree: ProcessTree) -> None:
        """Measure the memory of the processes from now on."""
        self._memory = MemoryWatch(self._settings, tree)

    def end(self) -> None:
        """Measure no more."""
        if self._memory is not None:
            self._memory.end()

    def hide(self, worker: distributed.Worker) -> None:
        """Leave nothing on the Dask worker. On its event loop."""
        ours = self._shown
        worker.metrics = {k: v for k, v in worker.metrics.items() if ours.get(k) is not v}

    def _memory_mib(self) -> float:
        return 0 if self._memory is None else self._memory.bytes >> 20

    def _rate(self) -> float:
        now, counts = time.monotonic(), self._counts
        counts.append((now, self._tally.results))
        while len(counts) > 2 and now - counts[1][0] >= RATE_S:
            counts.popleft()
        (began, before), (_, results) = counts[0], counts[-1]
        return round((results - before) / (now - began), 2) if now > began else 0.0


def _metric(value: Callable[[], float]) -> Metric:
    return lambda _worker: value()


class MemoryWatch:
    """Measures what the processes of a node hold in memory, in a thread of its own.

    Pages that several of them share count for each.
    """

    def __init__(self, settings: messages.Settings, tree: ProcessTree) -> None:
        self.bytes = 0
        self._settings = settings
        self._tree = tree
        self._ending = threading.Event()
        # A daemon: nobody waits for its end.
        threading.Thread(target=self._run, name="parallelrun-memory", daemon=True).start()

    def end(self) -> None:
        """Measure no more."""
        self._ending.set()

    def _run(self) -> None:
        pause_s = 0.0
        try:
            while not self._ending.wait(pause_s):
                began = time.monotonic()
                self.bytes = self._measured()
                pause_s = max(MEASURE_S, (time.monotonic() - began) / SHARE)
        except Exception:
            self.bytes = 0
            note(self._settings, "measuring the memory of its processes")

    def _measured(self) -> int:
        total = 0
        for process in self._tree.look():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total
