"""What goes out to a node and what comes back: records of the driver, and how they are named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun.driver.splitting import Part, Split
from prefect_parallelrun.models import AttemptRecord, MiniBatch
from prefect_parallelrun_runtime import channel


@dataclass(slots=True)
class Pending:
    """A mini-batch, or a part of one, that is not settled, and what its next attempt must know."""

    mini_batch: MiniBatch
    attempt: int = 1
    """Number of the attempt that runs, or is to run, from 1; of a part, those of what it was cut from
    count."""
    part: Part | None = None
    """The items that it has of the mini-batch; None: all."""
    split: Split | None = None
    """Of a part: what became of the mini-batch so far."""
    items: int | None = None
    """How many items it has, once that is known."""
    lost: int = 0
    """Nodes that were lost while it ran."""
    near_lost: int = 0
    """Nodes that were lost while it was in flight there, whether it ran or not."""
    alone: bool = False
    """Whether it is to run with no other bundle on its node (R211)."""
    spared: bool = False
    """Whether a death by a signal was forgiven it: only once."""
    avoid: list[tuple[str, str]] = field(default_factory=list)
    """(node, process) of earlier attempts."""

    @property
    def untouched(self) -> bool:
        """Whether it is as it came from the plan, so that nothing need be remembered of it."""
        return self.part is None and self.attempt == 1 and not self.near_lost

    @property
    def work(self) -> dict[str, Any]:
        """What the worker process loads; see `models.MiniBatch.work`."""
        whole = self.mini_batch.work
        if self.part is None:
            return whole
        first, stop = self.part
        if "files" in whole:
            return {**whole, "files": whole["files"][first:stop]}
        return {**whole, "part": [first, stop]}


@dataclass(slots=True, kw_only=True)
class Bundle:
    """Mini-batches that one Dask task carries to one process of `node`."""

    number: int
    """From 1, its name."""
    node: str
    members: list[Pending]
    alone: bool = False
    """Whether its node has no other bundle as long as this one is in flight."""
    started: bool = False
    """Whether a process has taken it up."""
    fetched_s: float = 0.0
    """Seconds that its node took to fetch its data; 0 for what is read in place."""

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
            [m.mini_batch.index, m.attempt, m.mini_batch.input_index, m.work] for m in self.members
        ]


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt that ended, for the journal; with its rows."""

    record: AttemptRecord
    data: bytes = b""
    columns: str | None = None


Ended = tuple[dict[str, Any], bytes]
"""One result of a bundle: `messages.Result` and the rows."""


def sample(mini_batch: MiniBatch, part: Part | None = None, most: int = 3) -> tuple[str, ...]:
    """Return the first items of a mini-batch as people name them: paths, or file and place in it.

    Values of partition keys come first.
    """
    work = mini_batch.work
    key = [f"{name}={value}" for name, value in work.get("key", {}).items()]
    if "files" in work:
        files = work["files"] if part is None else work["files"][slice(*part)]
        return (*key, *_first(files, most))
    if "paths" in work:
        rows = [] if part is None else [f"rows {part[0]}-{part[1] - 1} of these"]
        return (*key, *_first(work["paths"], most), *rows)
    if "rank" in work:
        return (f"rank {work['rank']}",)
    place = work["path"]
    if "start" in work:
        place += f" bytes {work['start']}-{work['end']}"
    elif "row_groups" in work:
        place += f" row groups {work['row_groups'][0]}-{work['row_groups'][-1]}"
    if part is not None:
        place += f", rows {part[0]}-{part[1] - 1} of these"
    return (place,)


def _first(paths: list[str], most: int) -> list[str]:
    more = len(paths) - most
    return [*paths[:most], *([f"… and {more:,} more"] if more > 0 else [])]


def results(frames: bytes) -> list[Ended]:
    """Return the results among a bundle's frames; the headers are decoded in one go, for speed."""
    found = [frame for frame in channel.frames(frames) if frame.kind == channel.RESULT]
    headers = json.loads(b"[" + b",".join([frame.header for frame in found]) + b"]")
    return list(zip(headers, [frame.payload for frame in found], strict=True))
