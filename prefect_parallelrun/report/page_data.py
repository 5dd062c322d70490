"""What the HTML report shows, as plain numbers: bounded in size, however long the run was.

Every time is a place on one axis: seconds since `ReportData.origin`, less those that `ReportData.gaps`
leave out before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefect_parallelrun.models import NodeRecord, RunSummary

Kind = Literal["start", "init", "load", "run", "idle", "killed"]
"""What a worker process was at; `killed` is a moment, and so ends where it starts. Where blocks are shares,
what is left of a row was idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A rectangle of the timeline: what one process was at for a while.

    Of a long run many attempts are one block; `bottom` and `top` then say which share of it they were.
    """

    lane: int
    """Index in `ReportData.lanes`."""
    kind: Kind
    start: float
    end: float
    bottom: float = 0.0
    """0 to 1, in the lane."""
    top: float = 1.0
    process: str = ""
    """`node000 process003`"""
    text: str = ""
    """What it was, for the tooltip: `mini-batch 17, attempt 2: failed, ValueError`, or `312 attempts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """One of the slowest attempts that settled a mini-batch."""

    mini_batch: int
    attempt: int
    node: str
    process: str
    elapsed_s: float
    run_s: float
    cpu_s: float | None
    """None where it is not known."""
    outcome: str
    part: tuple[int, int] | None = None
    """Of a mini-batch that was split: the first of its items that it had, and the one after the last."""
    items: tuple[str, ...] = ()
    """The first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How many attempts took so long, and so much CPU time."""

    elapsed_from: float
    elapsed_to: float
    cpu_from: float
    cpu_to: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure over time, as the monitor sampled it; thinned to at most some hundred points."""

    name: str
    """`node000`, or `node000 process003`."""
    times: Sequence[float]
    cpu_percent: Sequence[float]
    """Of a process in per cent of one core: 200 is two cores busy. Of a node 0 to 100, of all its cores."""
    memory_bytes: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that the report of one run shows."""

    step: str
    run_id: str
    state: str
    origin: float
    """Where the axis of time begins, seconds since the epoch (UTC): at the start of the run, or where a
    node's clock was behind."""
    duration_s: float
    """Length of the axis of time: what `gaps` leave out is no part of it."""
    started_at: float
    """When the run began, likewise."""
    closing_line: str
    output: str
    logs: str
    failure: str | None
    """The whole text, where the run failed."""
    summary: RunSummary
    settings: Sequence[tuple[str, str]]
    """Name and value of each setting in force, secrets hidden."""
    reuse: Sequence[str]
    """What was not run again, and why the rest was: one sentence each."""
    nodes: Sequence[NodeRecord]
    processes_started: int
    ends: Sequence[tuple[str, int]]
    """How worker processes ended, and how many: `("timeout", 3)`; those that were told to are left out."""
    lanes: Sequence[str]
    """Rows of the timeline, from the top: `node000 #0`. A replacement takes the row of its predecessor. Of
    very many, a row is a whole node: `node000 (8 processes)`."""
    blocks: Sequence[Block]
    blocks_are_shares: bool
    """Whether blocks stand for many attempts each, as shares of their time."""
    bin_s: float
    """Width of the bins of `succeeded`, `failed` and `items`."""
    succeeded: Sequence[int]
    """Mini-batches that succeeded, by bin of the time at which they ended; of one that was split, each part."""
    failed: Sequence[int]
    """Attempts that failed, likewise."""
    items: Sequence[int]
    """Items that were done, likewise."""
    duration_edges: Sequence[float]
    """Seconds; one more than `duration_counts`, growing by equal factors."""
    duration_counts: Sequence[int]
    duration_quantiles: Sequence[tuple[str, float]]
    """`("median", 0.4)`, `("95 %", 1.2)`, `("99 %", …)`, `("longest", …)`."""
    slowest: Sequence[Slow]
    cpu_cells: Sequence[Cell]
    cpu_total_s: float
    elapsed_total_s: float
    """Of the attempts of which the CPU time is known."""
    node_usage: Sequence[Series]
    process_usage: Sequence[Series]
    """Of the processes that used most, at most a few dozen."""
    gaps: Sequence[tuple[float, float]] = ()
    """Between sittings, where no node was there for long: the place on the axis, ascending, and how many
    seconds are left out there. The time of day at a place is `origin`, the place and all gaps up to it."""
    lanes_are_nodes: bool = False
    """Whether a row of the timeline is a whole node."""
    lanes_left_out: int = 0
    """Nodes that have no row in the timeline, as there are too many."""
    unmade: Mapping[str, str] = field(default_factory=dict)
    """Sections of the page that could not be made, by their name there, and why."""
