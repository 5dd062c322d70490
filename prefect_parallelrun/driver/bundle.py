"""What goes out to a node and what comes back: records of the driver, and how they are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prefect_parallelrun.models import AttemptRecord, MiniBatch


@dataclass(slots=True)
class Pending:
    """A mini-batch that is not settled, and what its next attempt must know."""

    mini_batch: MiniBatch
    attempt: int = 1
    """Number of the attempt that runs, or is to run, from 1."""
    lost: int = 0
    """Nodes that were lost while it ran."""
    avoid: list[tuple[str, str]] = field(default_factory=list)
    """(node, process) of earlier attempts."""


@dataclass(slots=True, kw_only=True)
class Bundle:
    """Mini-batches that one Dask task carries to one process of `node`."""

    number: int
    """From 1, its name."""
    node: str
    members: list[Pending]
    started: bool = False
    """Whether a process has taken it up."""

    @property
    def avoid(self) -> list[str]:
        """Processes of its node that had an earlier attempt of a member."""
        return [
            process
            for member in self.members
            for node, process in member.avoid
            if node == self.node
        ]

    def tasks(self) -> list[list[Any]]:
        """Return what the worker process gets; see `messages.Task`."""
        return [
            [m.mini_batch.index, m.attempt, m.mini_batch.input_index, m.mini_batch.work]
            for m in self.members
        ]


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt that ended, for the journal; with its rows."""

    record: AttemptRecord
    data: bytes = b""
    columns: str | None = None


Ended = tuple[dict[str, Any], bytes]
"""One result of a bundle: `messages.Result` and the rows."""


def sample(mini_batch: MiniBatch, most: int = 3) -> tuple[str, ...]:
    """Return the first items of a mini-batch as people name them: paths, or file and place in it."""
    work = mini_batch.work
    if "files" in work:
        more = len(work["files"]) - most
        return (*work["files"][:most], *([f"… and {more:,} more"] if more > 0 else []))
    if "start" in work:
        return (f"{work['path']} bytes {work['start']}-{work['end']}",)
    if "row_groups" in work:
        return (f"{work['path']} row groups {work['row_groups'][0]}-{work['row_groups'][-1]}",)
    if "path" in work:
        return (work["path"],)
    return (f"rank {work['rank']}",)
