"""Where a schedule stands: how much, how fast, for how long yet, and what each node is at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_parallelrun.driver.pace import Pace
from prefect_parallelrun.driver.starts import Starts
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.driver.waits import Waits, shown
from prefect_parallelrun.report.progress import Standing

AGAIN_S = (5.0, 600.0)
"""What a node that has not joined yet is at is logged at its beginning, after the first of these, then each
time that it has taken twice as long, and at least each time after the second."""
WAITING = "waiting for a Dask worker: none is there that can be a node of this run"


@dataclass(slots=True)
class _Beginning:
    """What a node that has not joined yet is at."""

    told: str
    since: float
    """When it began with that."""
    again_at: float
    """When it is to be logged again."""

    @property
    def what(self) -> str:
        """What it is at, without how far it is."""
        return self.told.partition(": ")[0]


class Outlook:
    """Puts together what tracker, starts and waits know; every time is of a monotonic clock, in seconds.

    Args:
        tracker: of the schedule, as the next two.
        starts: of worker processes.
        waits: on nodes and bundles.
        began: when the sitting began to schedule.
    """

    def __init__(self, tracker: Tracker, starts: Starts, waits: Waits, *, began: float) -> None:
        self._tracker = tracker
        self._starts = starts
        self._waits = waits
        self._began = began
        self._pace = Pace()
        self._settled_before = self._settled
        self._beginning: dict[str, _Beginning] = {}
        """By node that has not joined yet."""

    def bundle_started(self, now: float) -> bool:
        """Note that a mini-batch runs; return whether it is the first of the sitting."""
        return self._pace.begin(now, self._settled_before)

    def node_fetches(self, node: str, told: str, now: float) -> bool:
        """Note how a node that has not joined yet gets on with its side inputs, or with its Python environment.

        Args:
            node: its name.
            told: what it is at, and after a colon how far it is.
            now: the time.

        Returns:
            Whether it is to be logged: a build of an hour must not fill the log of the run.
        """
        first, most = AGAIN_S
        new = _Beginning(told, since=now, again_at=now + first)
        before = self._beginning.setdefault(node, new)
        if before.what != new.what:
            self._beginning[node] = before = new
        before.told = told
        if before is new:
            return True
        if now < before.again_at:
            return False
        before.again_at = now + min(now - before.since, most)
        return True

    def node_known(self, node: str) -> None:
        """Note that a node has joined, or never will."""
        self._beginning.pop(node, None)

    def standing(self, now: float, *, planned: int | None, joining: Sequence[str]) -> Standing:
        """Return where the run stands.

        Args:
            now: the time.
            planned: mini-batches in all, where that is known.
            joining: nodes that are being started.
        """
        tracker, settled = self._tracker, self._settled
        self._pace.note(now, settled, processes=self._starts.processes)
        rate = self._pace.rate(now, settled)
        left_s = None
        if planned is not None and (rate or settled == planned):
            left_s = (planned - settled) / rate if rate else 0.0
        return Standing(
            planned=planned,
            created=tracker.planned,
            succeeded=tracker.mini_batches_succeeded,
            failed=tracker.mini_batches_failed,
            retried=tracker.retries,
            running=self._running(),
            items_succeeded=tracker.items_succeeded,
            items_failed=tracker.items_failed,
            rows=tracker.rows,
            rate=rate,
            left_s=left_s,
            elapsed_s=now - self._began,
            doing=self._doing(now, joining),
        )

    def _running(self) -> int:
        """Return how many mini-batches run: one of each bundle that is begun, and of each process."""
        begun = self._waits.begun_by_node()
        return sum(min(many, self._starts.at(node)[1]) for node, many in begun.items())

    @property
    def _settled(self) -> int:
        return self._tracker.mini_batches_succeeded + self._tracker.mini_batches_failed

    def _doing(self, now: float, joining: Sequence[str]) -> tuple[str, ...]:
        """Return what each node is at, in words; for many nodes only the first of them."""
        nodes = sorted(self._starts.nodes)
        if not nodes and not joining:
            return (WAITING,)
        said = shown(nodes, lambda node: self._describe(node, now))
        said += shown(list(joining), self._describe_joining)
        return tuple(said)

    def _describe_joining(self, node: str) -> str:
        at = self._beginning.get(node)
        return f"{node}: {'is being started' if at is None else at.told}"

    def _describe(self, node: str, now: float) -> str:
        starting, ready, since = self._starts.at(node)
        running, oldest = self._waits.at(node, now)
        parts = []
        if starting:
            clock = datetime.now(UTC) - timedelta(seconds=now - since)
            many = "1 process" if starting == 1 else f"{starting} processes"
            parts.append(
                f"{many} in import or init() for {now - since:.0f} s (since {clock:%H:%M:%S} UTC)"
            )
        # A process may have taken up its next bundle a moment before the end of the last one is heard.
        running = min(running, ready)
        if ready - running or not (starting or running):
            parts.append(f"{ready - running} ready")
        if running:
            parts.append(f"{running} running {oldest}")
        return f"{node}: {', '.join(parts)}"
