"""The limits of a run as a whole: no node for too long, no mini-batch done for too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prefect_parallelrun.driver.bundle import Bundle, sample
from prefect_parallelrun.errors import ClusterError, NoProgress, ParallelRunError
from prefect_parallelrun.options import RunOptions
from prefect_parallelrun_runtime import messages

NODES_SHOWN = 5
"""Nodes of which it is said what they are doing."""
REST_S = 60.0
"""What the longest mini-batch may take beside the time-outs of its attempts: bundles, killing, news."""


@dataclass(slots=True)
class _Flight:
    bundle: Bundle
    since: float
    """When it went out, or was begun."""
    begun: bool = False


class Waits:
    """Keeps the clocks of a run; every time is an argument, in seconds of a monotonic clock.

    Args:
        options: the limits that the step's arguments set.
        settings: of the supervisors; the time-outs of one attempt are in it.
        max_attempts: of a mini-batch.
        now: the start of the run.
    """

    def __init__(
        self, options: RunOptions, settings: messages.Settings, *, max_attempts: int, now: float
    ) -> None:
        self._options = options
        self._progress_s = options.progress_update_timeout
        s = settings
        # Fetching by the node, loading, and encoding.
        attempt_s = 3 * s["load_timeout_s"] + s["run_timeout_s"] + s["kill_grace_s"]
        # A process that died is replaced before the next attempt.
        self._longest_s = max_attempts * (attempt_s + s["init_timeout_s"]) + REST_S
        self.place: object = None
        """The `compute_target` that the user gave, for what is told."""
        self._nodes: set[str] = set()
        self._flights: dict[int, _Flight] = {}
        self._last_node = self._last_done = now

    @property
    def nodes(self) -> int:
        """How many nodes have joined and are there."""
        return len(self._nodes)

    def node_joined(self, node: str, now: float) -> None:
        """Note that there is a node to work with."""
        if not self._nodes and self._progress_s is None:
            self._last_done = now  # until now there was another limit
        self._nodes.add(node)

    def node_left(self, node: str, now: float) -> None:
        """Note that a node is there no more, nor what was in flight on it."""
        if self._nodes == {node}:
            self._last_node = now
        self._nodes.discard(node)
        self._flights = {n: f for n, f in self._flights.items() if f.bundle.node != node}

    def node_fetches(self, now: float) -> None:
        """Note that a node which has not joined yet gets on with its side inputs: it is waited for."""
        if not self._nodes:
            self._last_node = now

    def submitted(self, bundle: Bundle, now: float) -> None:
        """Note that a bundle is in flight."""
        self._flights[bundle.number] = _Flight(bundle, now)

    def begun(self, number: int, now: float) -> None:
        """Note that a process is at a bundle."""
        if flight := self._flights.get(number):
            flight.begun, flight.since = True, now

    def ended(self, number: int) -> None:
        """Note that a bundle is back."""
        self._flights.pop(number, None)

    def done(self, now: float) -> None:
        """Note that a mini-batch, or a part of one, is settled."""
        self._last_done = now

    def verdict(self, now: float) -> ParallelRunError | None:
        """Return why the run has waited long enough, or None (R105, R205)."""
        options = self._options
        without = now - self._last_node
        if not self._nodes and without > options.first_task_creation_timeout:
            return ClusterError(
                f"compute_target={self.place!r}: there was no node to work on for {without:.0f} seconds "
                f"(--first_task_creation_timeout {options.first_task_creation_timeout:g}): no Dask worker "
                "is there, or none became a node. Start Dask workers, see why they do not come, or give "
                "that limit more seconds in the step's arguments"
            )
        limit = self._progress_s
        if limit is None and self._nodes:
            limit = self._longest_s
        waited = now - self._last_done
        if limit is None or waited <= limit:
            return None
        asked = "" if self._progress_s is None else f" (--progress_update_timeout {limit:g})"
        return NoProgress(
            f"No progress update in {waited:.0f} seconds{asked}: no mini-batch was done. "
            f"{self._describe(now)}. If they need that long, give --progress_update_timeout more seconds, "
            "or make mini-batches smaller"
        )

    def _describe(self, now: float) -> str:
        """Return what each node is at, in words."""
        if not self._nodes:
            return "No node was there"
        said = shown(sorted(self._nodes), lambda node: self._describe_node(node, now))
        return "; ".join(said)

    def begun_by_node(self) -> Mapping[str, int]:
        """Return how many bundles are begun and not back, by node."""
        return Counter(f.bundle.node for f in self._flights.values() if f.begun)

    def at(self, node: str, now: float) -> tuple[int, str]:
        """Return how many bundles a node is at, and of which mini-batch it has been for longest, in words."""
        begun = [f for f in self._flights.values() if f.begun and f.bundle.node == node]
        if not begun:
            return 0, ""
        oldest = min(begun, key=lambda f: f.since)
        members = oldest.bundle.members
        first, more = members[0].mini_batch.index, len(members) - 1
        what = f"mini-batch {first}" + (f" and {more:,} more" if more else "")
        return len(begun), f"{what} for {now - oldest.since:.0f} s"

    def _describe_node(self, node: str, now: float) -> str:
        flights = [f for f in self._flights.values() if f.bundle.node == node]
        waiting = sum(len(f.bundle.members) for f in flights)
        begun = [f for f in flights if f.begun]
        if not begun:
            return f"{node} had begun none of {waiting} mini-batches that it had"
        oldest = min(begun, key=lambda f: f.since)
        first = oldest.bundle.members[0].mini_batch
        return (
            f"{node} had {waiting} mini-batches and was at mini-batch {first.index} "
            f"({', '.join(sample(first))}) for {now - oldest.since:.0f} seconds"
        )


def shown(nodes: Sequence[str], describe: Callable[[str], str]) -> list[str]:
    """Describe the first of some nodes, and say how many more there are."""
    said = [describe(node) for node in nodes[:NODES_SHOWN]]
    if (more := len(nodes) - NODES_SHOWN) > 0:
        said.append(f"and {more} nodes more")
    return said
