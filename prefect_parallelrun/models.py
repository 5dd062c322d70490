"""Frozen records that pass between the rooms of the house; no logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How one attempt of a mini-batch ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The script raised, returned something unusable, or the mini-batch could not be loaded."""
    TIMED_OUT = "timed_out"
    PROCESS_DIED = "process_died"
    NODE_LOST = "node_lost"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """What one `run()` call gets: a description, never the data. Positional, since millions are made."""

    index: int
    """Place in the plan, from 0; its name everywhere."""
    input_index: int
    """Which of the step's inputs it is cut from; -1 for a mini-batch without input."""
    items: int | None
    """Number of items where that is known before loading (files); None for rows."""
    size: int
    """Bytes to read."""
    work: dict[str, Any]
    """What the worker process loads, JSON: `{"files": [path, …]}`, `{"path": p, "start": a, "end": b}`
    (bytes; `end` exclusive), `{"path": p, "row_groups": [i, …]}`, `{"path": p}` (the whole file),
    `{"path": p, "rows": n}` (its first n rows), or `{"rank": i}` (no input). With a path, beside the
    rest, `"part": [first, stop]` for some of its rows, from 0 (R203): `run()` gets those alone.

    `"key": {name: value}` tells the values of the partition keys, `"constants": {column: value}` those
    of columns that are in the path alone. `{"paths": [p, …]}` is several whole files of a table, and has
    a list of such `"constants"` then, and of numbers of `"rows"` where only the first are wanted. A path
    may be a URL; the node that fetches it adds `"local": path` (for `files` and `paths` a list), or
    `"unavailable": why` where it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why an attempt failed, as the worker process or its supervisor saw it."""

    category: str
    """`exception`, `bad_return`, `load`, `timeout`, `exit`, `signal`, `memory`, `node_lost`, or `missing_row`."""
    type: str
    """Class of the exception (`ValueError`), or a word of ours (`TimedOut`, `ProcessDied`)."""
    message: str
    """Its text, in one or more lines."""
    where: str = ""
    """Where it was raised in the user's code, `score.py:12 in run`; errors are grouped by this and the type."""
    traceback: str = ""
    """The stack trace, or the stacks of all threads at a time-out."""
    stage: str = "run"
    """`import`, `init`, `load`, `run`, `result` or `shutdown`."""


UNKNOWN_S = -1.0
"""Instead of seconds that nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt that ended: what the journal keeps and every report is made from."""

    mini_batch: int
    """Index of the mini-batch."""
    attempt: int
    """Number of the attempt, from 1; 0: another run made it, and this one took over what it did (R202)."""
    part: tuple[int, int] | None = None
    """Where the attempt had only some items of the mini-batch (R203): the first, and the one after the
    last, from 0; None: all of them. Items and rows below are then those of the part."""
    final: bool
    """Whether this attempt settled its items (succeeded, or failed for good)."""
    outcome: Outcome
    node: str
    """`node000`"""
    process: str
    """`process003`; empty where no process had it (node lost)."""
    items_total: int
    items_succeeded: int
    items_failed: int
    """Missing rows of a success; all items of a mini-batch that failed for good; else 0."""
    rows: int = 0
    """Rows that `run()` returned."""
    started_at: float = 0.0
    """Seconds since the epoch (UTC) when `run()`, or the loading, began."""
    elapsed_s: float = 0.0
    """Seconds from picking up to the encoded result."""
    cpu_s: float = 0.0
    """CPU seconds of the process meanwhile (may exceed elapsed); `UNKNOWN_S` where nobody knows."""
    load_s: float = 0.0
    """Seconds that the process waited for the data before `run()`; 0 where they were there already."""
    run_s: float = 0.0
    """Seconds inside `run()`."""
    error: AttemptError | None = None
    items_sample: tuple[str, ...] = ()
    """For a failure: the first items (paths, or file and byte range), for people to read."""
    log_file: str = ""
    """For a failure: the file that has the stack trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One node of a run, as far as is known; written again whenever more is."""

    node: str
    """`node000`"""
    host: str = ""
    address: str = ""
    """Of its Dask worker."""
    processes: int = 0
    """Worker processes that run at once."""
    gpus: int = 0
    joined_at: float = 0.0
    """Seconds since the epoch (UTC)."""
    left_at: float | None = None
    """None: it is there, or nobody saw its end."""
    reason: str = ""
    """Why it left: empty at the end of a sitting, else what the driver's log says of the loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One worker process of a run, as far as is known; written again whenever more is."""

    node: str
    process: str
    """`process003`"""
    pid: int = 0
    started_at: float = 0.0
    """Seconds since the epoch (UTC)."""
    ready_at: float | None = None
    """When `init()` had succeeded; None: it never did."""
    init_s: float = 0.0
    """Seconds that `init()` took, before `ready_at`."""
    ended_at: float | None = None
    """None: it lives, or nobody saw its end (its node was lost)."""
    reason: str = ""
    """See `messages.Event.reason`: `stopped`, `timeout`, `exit`, `signal`, `memory`, `cancelled`, …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Mini-batches or items of a run."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    reused: int = 0
    """Part of `succeeded` that an earlier run had done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier sittings of a run have done and this one need not; nothing, for a new run."""

    mini_batches: int = 0
    """That succeeded and do not run again."""
    items: int = 0
    """That succeeded: of those mini-batches, and of finished parts of others."""
    items_failed: int = 0
    """That failed and are not tried again: rows missing of what does not run again."""
    rows: int = 0
    """That all which does not run again returned."""
    parts: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    """By mini-batch: the parts (first item, and the one after the last) that are to run, ascending; of
    the others, or of those in `missing`, some items have succeeded."""
    missing: Mapping[tuple[int, tuple[int, int] | None], tuple[int, int]] = field(
        default_factory=dict
    )
    """By mini-batch and part (None: the whole) of which `run()` returned too few rows and that is tried
    again: items that succeeded and that failed. They hold until it succeeds with no fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """What a step takes over of its earlier runs, and why not more (R210)."""

    run_id: str | None = None
    """The run that is gone on with, or that stands for this one; None: a new run begins."""
    base: str | None = None
    """The run of which a new one takes mini-batches over (R202)."""
    whole: bool = False
    """Whether nothing has to run."""
    mini_batches: int = 0
    """How many of `run_id` or `base` are done and do not run again."""
    reasons: tuple[str, ...] = ()
    """For people, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorGroup:
    """One distinct error of the script: same type, raised at the same place.

    Where the place is not known, the messages have the same shape; see `error_shapes`.
    """

    type: str
    where: str
    message: str
    """The message of the first."""
    count: int
    """How many attempts ended in it."""
    first_mini_batch: int | None
    """None for an error of import, `init()` or `shutdown()`, which no mini-batch had to do with."""
    first_items: tuple[str, ...]
    node: str
    process: str
    log_file: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run came to; made from the journal."""

    mini_batches: Counts
    items: Counts
    attempts: int
    rows: int
    errors: tuple[ErrorGroup, ...] = ()
    """Distinct errors, most frequent first; of very many the rarest are left out."""
    distinct_errors: int = 0
    """How many there are."""
    errors_counted: int = 0
    """How often all of them together occurred."""
    missing_rows: int = 0
    """Part of the failed items that are rows `run()` did not return."""
    failed_mini_batches: tuple[int, ...] = field(default=())
    """The first 100 mini-batches that failed for good."""
