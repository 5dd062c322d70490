"""What the driver hears of its cluster; the run does not know what carries its bundles."""

from __future__ import annotations

from dataclasses import dataclass

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.errors import ConfigError, DatasetError, OutputError, ParallelRunError
from prefect_parallelrun_runtime import messages


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJoined:
    """A Dask worker became a node."""

    node: str
    host: str
    address: str
    """Of the Dask worker."""
    processes: int
    gpus: int
    joined_at: float
    """Seconds since the epoch (UTC)."""

    def __str__(self) -> str:
        """Say what it is, for the log."""
        return f"{self.address} on {self.host}, {self.processes} processes, {self.gpus} GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """A node is gone, or never came to be; what it had is to run elsewhere."""

    node: str
    reason: str
    for_good: bool = False
    """Whether its Dask worker is not to be tried again."""
    expected: bool = False
    """Whether nothing that ran on it can have caused that: it was retired or preempted, never came to
    be, or the way to it broke. Then the loss is held against no mini-batch (R214)."""
    left: bool = False
    """Whether it was let go of, for it had nothing to do: its processes end as they should."""

    def __str__(self) -> str:
        """Say what became of it, for the log."""
        return f"{self.node} {'left' if self.left else 'is lost'}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoWorkerLeft:
    """Each Dask worker that is there was tried as a node, in vain."""

    reason: str
    """Why the last one cannot be a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLacks:
    """The first node to come cannot have what the run needs; others would try as long, in vain."""

    node: str
    lacking: str
    """`side inputs`, or `environment`."""
    reason: str

    @property
    def error(self) -> ParallelRunError:
        """What the run ends with."""
        if self.lacking == "environment":
            return ConfigError(f"{self.node} cannot have the Python environment: {self.reason}")
        return DatasetError(f"{self.node} has no side inputs: {self.reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotKept:
    """What a node has brought home cannot be written down, and results are to count for it."""

    error: OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNews:
    """What a node's supervisor says of its processes."""

    event: messages.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEnded:
    """A bundle came back; `frames` is empty where no process ever had it."""

    number: int
    frames: bytes


Event = NodeJoined | NodeLost | NodeLacks | NotKept | NoWorkerLeft | NodeNews | BundleEnded
