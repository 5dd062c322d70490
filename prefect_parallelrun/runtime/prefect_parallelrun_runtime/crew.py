"""The worker processes of a node: how many there are, their names, and when to stop trying."""

from __future__ import annotations

from collections.abc import Iterator

from prefect_parallelrun_runtime import processes
from prefect_parallelrun_runtime.messages import Settings

_REST_S = 0.5
"""After a start for which the system lacked something."""


class Crew:
    """As many processes as the settings say; one that ends leaves its slot to a new one.

    A start for which the system lacks something (descriptors, processes, room on a disk) is tried again
    after a moment.

    After `init_failures_allowed` failed starts in a row without one success, nothing is started any
    more (rule R87).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._grounds = processes.prepare(settings)
        self._free = list(range(settings["process_count"] - 1, -1, -1))
        self._names = 0
        self._failures_in_row = 0
        self._tired = False
        self._gpus_told = False
        self._start_at = 0.0
        self._by_name: dict[str, processes.WorkerProcess] = {}

    def __iter__(self) -> Iterator[processes.WorkerProcess]:
        """Iterate over the living; they may end meanwhile."""
        return iter(tuple(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> processes.WorkerProcess:
        return self._by_name[name]

    def pids(self) -> set[int]:
        """Return the process ids of the living."""
        return {process.pid for process in self}

    @property
    def is_lost(self) -> bool:
        """Whether nobody is left, and nobody will come."""
        return self._tired and not self._by_name

    @property
    def start_at(self) -> float | None:
        """When one is to be started (monotonic seconds; it may be over); None: nobody is missing."""
        return self._start_at if self._free and not self._tired else None

    def fill(self, now: float) -> Iterator[processes.WorkerProcess]:
        """Start a process in each free slot; the number of a name is never used again.

        Raises:
            processes.StartError: one could not be started, which counts as a failed start.
        """
        while self._free and not self._tired and now >= self._start_at:
            name = f"process{self._names:03d}"
            self._names += 1
            try:
                process = processes.WorkerProcess(self._free[-1], name, self._grounds)
            except processes.StartError:
                self._start_at = now + _REST_S
                self.failed()
                raise
            self._free.pop()
            self._by_name[name] = process
            yield process

    def lacking_gpus(self) -> str:
        """Say once, when all have been started, which of them have no GPU though the node has some, or is to."""
        wanted, gpus = self._settings["gpus_per_process"], self._settings["gpu_count"]
        wanted = bool(gpus) if wanted is None else wanted
        if self._gpus_told or self._free or not wanted:
            return ""
        self._gpus_told = True
        without = [process.name for process in self if not process.lease.gpus]
        if not without:
            return ""
        return (
            f"{', '.join(without)} of its {len(self)} processes run without a GPU: with "
            f"gpus_per_process={wanted:g}, the {gpus} of the node (of its host, if nodes share it) are "
            "not enough"
        )

    def succeeded(self) -> None:
        """Count a start that led to a process which has worked."""
        self._failures_in_row = 0

    def failed(self) -> None:
        """Count a start that did not."""
        self._failures_in_row += 1
        self._tired |= self._failures_in_row >= self._settings["init_failures_allowed"]

    def remove(self, process: processes.WorkerProcess) -> None:
        """Take out one that has ended."""
        del self._by_name[process.name]
        self._free.append(process.slot)
