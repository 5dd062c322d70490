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
    """See `agent.hold_node`."""
    fetched_at: float = 0.0
    """When it told last that it gets on with its side inputs (seconds of the loop's clock)."""
    silent_s: float = 0.0
    """How long nothing was heard of it, as far as somebody could have heard it."""


def task_name(step: str) -> str:
    """Return the name under which Dask shows the tasks of a step, for their keys to begin with.

    Dask takes for a task's name what comes before the first word of its key, between hyphens, that has a
    digit: of `score-v2-0000001` it would be `score`.
    """
    return step if key_split(f"{step}-0") == step else step.replace("-", "_")
