"""What runs next, and where: the plan ahead, the queues of what runs again, the window of each node."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import Bundle, Pending
from prefect_parallelrun.driver.splitting import Split
from prefect_parallelrun.driver.waiting import Waiting
from prefect_parallelrun.models import Earlier, MiniBatch


@dataclass(slots=True)
class _Node:
    name: str
    place: int
    """In the order in which nodes joined."""
    processes: int
    bundles: int = 0
    """In flight."""
    drains_for: Pending | None = None
    """What runs alone here once the bundles in flight are back; until its end nothing else goes out."""
    alone: bool = False
    """Whether the one in flight is such."""

    @property
    def load(self) -> float:
        """Bundles in flight per process."""
        return self.bundles / self.processes

    @property
    def fed(self) -> bool:
        """Whether it gets what comes next."""
        return self.drains_for is None and not self.alone


class Dispatch:
    """Holds what is in flight and what waits; knows nothing of how attempts end.

    What a bundle costs here must not grow with the nodes: it would with hundreds of them be most of the
    driver's time.
    """

    def __init__(self, plan: Iterable[MiniBatch], earlier: Earlier) -> None:
        """Begin with the mini-batches that are to run, those in `earlier.parts` included."""
        self._plan: Iterator[MiniBatch] = iter(plan)
        self._parts = earlier.parts
        self._ahead: deque[MiniBatch] = deque()
        self._again = Waiting()
        self._alone = Waiting()
        self._bundles: dict[int, Bundle] = {}
        self._nodes: dict[str, _Node] = {}
        self._joined = 0
        self._room: dict[str, _Node] = {}
        """Nodes that may have room in their windows; the others are full, or get nothing now."""
        self._window = 0
        self._draining = 0
        """Nodes of which `drains_for` is set."""
        self._number = 0
        self._mean_s: float | None = None
        self._mean_bytes = 0.0
        self._grown = 1
        self.planned_all = False
        """Whether the plan has given all it has."""
        self.planned = 0
        """Mini-batches taken from the plan so far."""
        self.processes = 0
        """Of all nodes."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to run, nor in flight."""
        return not self._bundles and not self.work_waits

    @property
    def work_waits(self) -> bool:
        """Whether something is left that is not in flight."""
        if self._again or self._alone or self._ahead or self._draining:
            return True
        return self._look_ahead(1) != 0 or bool(self._again)

    @property
    def scheduled_all(self) -> bool:
        """Whether every mini-batch of the plan has been sent out once."""
        return self.planned_all and not self._ahead

    # -- nodes and bundles -------------------------------------------------------------------

    def node_joined(self, node: str, processes: int) -> None:
        """Count a node with so many worker processes in."""
        self._joined += 1
        self._nodes[node] = self._room[node] = _Node(node, self._joined, processes)
        self.processes += processes

    def node_left(self, node: str) -> list[Bundle]:
        """Take a node out; return what was in flight there and is not any more."""
        if (gone := self._nodes.pop(node, None)) is None:
            return []
        self._room.pop(node, None)
        self.processes -= gone.processes
        if gone.drains_for is not None:
            self._draining -= 1
            self._alone.put_first(gone.drains_for)
        bundles = [bundle for bundle in self._bundles.values() if bundle.node == node]
        for bundle in bundles:
            del self._bundles[bundle.number]
        return bundles

    def started(self, number: int) -> None:
        """Note that a process has taken a bundle up, if it is in flight."""
        if bundle := self._bundles.get(number):
            bundle.started = True

    def fetched(self, number: int, seconds: float) -> None:
        """Note how long the data of a bundle took to be fetched, if it is in flight."""
        if bundle := self._bundles.get(number):
            bundle.fetched_s = seconds

    def back(self, number: int) -> Bundle | None:
        """Return a bundle that is not in flight any more; None where it was not."""
        bundle = self._bundles.pop(number, None)
        if bundle is not None:
            node = self._nodes[bundle.node]
            node.bundles -= 1
            node.alone = False
            self._room[node.name] = node
        return bundle

    def learn(self, seconds: float, volume: float, size: int) -> None:
        """Learn from a bundle of so many mini-batches what one takes: seconds to run, or to fetch its
        data where that is longer, and bytes of rows."""
        self._grown = max(self._grown, size)
        if self._mean_s is None:
            self._mean_s, self._mean_bytes = seconds, volume
        else:
            self._mean_s += 0.25 * (seconds - self._mean_s)
            self._mean_bytes += 0.25 * (volume - self._mean_bytes)

    # -- what waits --------------------------------------------------------------------------

    def put(self, member: Pending) -> None:
        """Queue what runs again: one to a bundle, and before what comes next in the plan."""
        self._queue(member).put(member)

    def put_back(self, members: list[Pending]) -> None:
        """Put to the front what no process began."""
        for member in reversed(members):
            if member.untouched:
                self._ahead.appendleft(member.mini_batch)
            else:
                self._queue(member).put_first(member)

    def _queue(self, member: Pending) -> Waiting:
        return self._alone if member.alone else self._again

    def _look_ahead(self, processes: int) -> int | None:
        """Look ahead in the plan; return how many are left once its end is in sight."""
        most = 2 * processes * policy.BUNDLE_MOST if self._mean_s else 0
        wanted = max(2 * processes, min(most, policy.AHEAD_MOST))
        short = wanted - len(self._ahead)
        if not self.planned_all and short > 0:
            fresh = list(islice(self._plan, short))
            self.planned += len(fresh)
            self.planned_all = len(fresh) < short
            if self._parts:
                fresh = [mini_batch for mini_batch in fresh if not self._resumed(mini_batch)]
            self._ahead.extend(fresh)
        return len(self._ahead) if self.planned_all else None

    def _resumed(self, mini_batch: MiniBatch) -> bool:
        """Queue what is left of a mini-batch if it is one of which other parts have succeeded."""
        parts = self._parts.get(mini_batch.index, ())
        split = Split(open=len(parts), succeeded=True)
        for part in parts:
            size = part[1] - part[0]
            self._again.put(Pending(mini_batch, part=part, split=split, items=size))
        return bool(parts)

    # -- what goes out -----------------------------------------------------------------------

    def next_bundles(self) -> list[Bundle]:
        """Return what is to be submitted now, so that every node's window is full."""
        bundles = self._alone_bundles()
        window = policy.window(self._mean_s)
        if window > self._window:
            self._room = self._nodes.copy()
        self._window = window
        # The one with the most room gets the next bundle; of several, the one that joined first.
        hungry = [
            (node.load, node.place, node)
            for node in self._room.values()
            if node.fed and node.load < window
        ]
        heapq.heapify(hungry)
        self._room = {}
        while hungry:
            _, place, node = hungry[0]
            if members := self._take(node.name):
                bundles.append(self._bundle(node.name, members))
                if node.load < window:
                    heapq.heapreplace(hungry, (node.load, place, node))
                    continue
            elif self._again:  # there may be something for another
                self._room[node.name] = node
            else:
                self._room.update((node.name, node) for _, _, node in hungry)
                break
            heapq.heappop(hungry)
        return bundles

    def _bundle(self, node: str, members: list[Pending], *, alone: bool = False) -> Bundle:
        self._number += 1
        bundle = Bundle(number=self._number, node=node, members=members, alone=alone)
        self._bundles[bundle.number] = bundle
        self._nodes[node].bundles += 1
        return bundle

    def _alone_bundles(self) -> list[Bundle]:
        """Choose nodes for what runs alone; each gets it as soon as it has drained."""
        if self._alone:
            fed = [node for node in self._nodes.values() if node.fed]
            for node in sorted(fed, key=lambda node: node.load):
                node.drains_for = self._alone.take(node.name, self._nodes.keys())
                self._draining += node.drains_for is not None
        bundles: list[Bundle] = []
        if self._draining:
            for node in self._nodes.values():
                if node.drains_for is not None and not node.bundles:
                    bundles.append(self._bundle(node.name, [node.drains_for], alone=True))
                    node.drains_for, node.alone = None, True
                    self._draining -= 1
        return bundles

    def _take(self, node: str) -> list[Pending]:
        """Take the next bundle's mini-batches for `node`; those that run again go one by one, first."""
        processes = self.processes
        left = self._look_ahead(processes)
        again = self._again.take(node, self._nodes.keys())
        if again is not None:
            return [again]
        wanted = policy.bundle_size(self._mean_s, self._mean_bytes, self._grown, left, processes)
        members: list[Pending] = []
        items = 0
        while self._ahead and len(members) < wanted and items < policy.BUNDLE_ITEMS:
            mini_batch = self._ahead.popleft()
            items += mini_batch.items or 0
            members.append(Pending(mini_batch, items=mini_batch.items))
        return members
