"""The worker processes of a node: how many there are, their names, and when to stop trying."""

from __future__ import annotations

from collections.abc import Iterator

from prefect_parallelrun_runtime import leases, processes
from prefect_parallelrun_runtime.messages import Settings

_REST_S = 0.5
"""After a start for which the system lacked something."""
_RELEASE_S = 2.0
"""So long a process waits for GPUs that others have: of a process that was killed, one that it has started may
live on for a moment, and a node that has just ended may be about to let go of its own."""
_LOOK_S = 0.05
"""Between two looks whether they are free."""
_NAMED = 20
"""Processes that a message names at most."""


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
        self._leases = leases.Leases(settings)
        self._gpus_by: float | None = None
        """How long GPUs that others have are waited for (monotonic seconds)."""
        self._lacking = 0
        """So many were told of that have no GPU."""
        self._leases_told = False
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
            lease = self._leases.take()
            if self._leases.are_elsewhere and self._is_worth_waiting(now):
                self._start_at = now + _LOOK_S
                return
            if lease.gpus:  # the next one waits for as long, if it must
                self._gpus_by = None
            name = f"process{self._names:03d}"
            self._names += 1
            try:
                process = processes.WorkerProcess(self._free[-1], name, self._grounds, lease)
            except processes.StartError:
                self._start_at = now + _REST_S
                self.failed()
                raise
            self._free.pop()
            self._by_name[name] = process
            yield process

    def gpu_troubles(self) -> Iterator[str]:
        """Say, once all have been started, what is not as it should be with their GPUs; each thing once."""
        if self._leases.trouble and not self._leases_told:
            self._leases_told = True
            yield self._leases.trouble
        wanted, gpus = self._settings["gpus_per_process"], self._settings["gpu_count"]
        wanted = bool(gpus) if wanted is None else wanted
        without = [process.name for process in self if not process.lease.gpus]
        if self._free or not wanted or len(without) <= self._lacking:
            return
        self._lacking = len(without)
        names = without if len(without) <= _NAMED else [*without[:_NAMED], f"{len(without)} in all"]
        has = f"has {gpus}" if gpus else "has none"
        if self._leases.are_elsewhere:
            has += ", of which other nodes of its host use some"
        yield (
            f"{', '.join(names)} run without a GPU: each of its {len(self)} processes is to have "
            f"{wanted:g}, and it {has}"
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
        if process.lease.gpus:
            self._gpus_by = None

    def _is_worth_waiting(self, now: float) -> bool:
        """Whether others may let go of GPUs in a moment; where they did not, nobody waits again."""
        if self._gpus_by is None:
            self._gpus_by = now + _RELEASE_S
        return now < self._gpus_by
