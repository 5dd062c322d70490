"""One node, as the driver knows it, and what its tasks are called."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import distributed
from dask.utils import key_split


@dataclass(slots=True, kw_only=True)
class Node:
    """One incarnation of a node: the same Dask worker may be another one later, under another name."""

    name: str
    address: str
    agent_id: str
    bundles: dict[int, distributed.Future[bytes]] = field(default_factory=dict)
    joined: bool = False
    joining: asyncio.Task[None] | None = None
    lease: distributed.Future[None] | None = None
    """See `calls.hold_node`."""
    fetched_at: float = 0.0
    """When it told last that it gets on with its side inputs (seconds of the loop's clock)."""
    silent_s: float = 0.0
    """How long nothing was heard of it, as far as somebody could have heard it."""
    parting: asyncio.Task[None] | None = None
    """Ends it, since it was let go of."""
    lost: bool = False
    apart: bool = False
    """Whether it shares no file system with the driver; see `apart`."""
    unseen: frozenset[int] = frozenset()
    """Inputs whose files it cannot read in place."""
    homeward: asyncio.Task[None] | None = None
    """Takes home what it writes."""
    arrived: int = 0
    """See `Homeward.take`."""
    looks_begun: int = 0
    """How often it was looked what it has for home."""
    looks_ended: int = 0
    """The last of those of which all is home."""
    home_failed: bool = False
    """Whether something of it could not be written down."""
    home_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody waits for what is to come home."""
    homing: asyncio.Lock = field(default_factory=asyncio.Lock)


def task_name(step: str) -> str:
    """Return the name under which Dask shows the tasks of a step, for their keys to begin with.

    Dask takes for a task's name what comes before the first word of its key, between hyphens, that has a
    digit: of `score-v2-0000001` it would be `score`.
    """
    return step if key_split(f"{step}-0") == step else step.replace("-", "_")
