"""The axis of time of a report: seconds since the run began, without the hours between its sittings."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from prefect_parallelrun.models import NodeRecord
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.report.attempt_arrays import Numbers

_CUT_SHARE = 0.05
"""A time without any node is left out where it is more than this share of the time with nodes."""
_SEEN = """
SELECT node, min(started_at), max(started_at + elapsed_s) FROM attempts
WHERE started_at > 0 GROUP BY node
UNION ALL
SELECT node, min(started_at), max(max(started_at, coalesce(ready_at, 0), coalesce(ended_at, 0)))
FROM processes WHERE started_at > 0 GROUP BY node
"""
_BEFORE = """
SELECT started_at + elapsed_s FROM attempts JOIN meta ON key = 'resumed_after' AND value = id
"""


class Axis:
    """Maps moments, in seconds since the epoch, to places on the axis.

    Args:
        origin: where it begins at the latest; it begins no later than a node was there.
        present: when nodes were there, from and to; in any order, and they may overlap.
        end: where it ends at the earliest; it goes on as long as a node was there.
    """

    def __init__(
        self, origin: float, present: Iterable[tuple[float, float]], end: float = 0.0
    ) -> None:
        spans = _merged(present)
        self.origin = origin = min([origin, *(start for start, _ in spans)])
        self.end = max([origin, end, *(stop for _, stop in spans)])
        least = _CUT_SHARE * sum(stop - start for start, stop in spans)
        holes = [(before[1], after[0]) for before, after in pairwise(spans)]
        cut = [(start, stop) for start, stop in holes if stop - start > least and start > origin]
        self._moments, self._places = [origin], [0.0]
        for start, stop in [*cut, (self.end, self.end)]:
            place = self._places[-1] + start - self._moments[-1]
            self._moments += [start, stop]
            self._places += [place, place]
        self.gaps = [(self.at(start), stop - start) for start, stop in cut]
        """Where time is left out, and how many seconds."""
        self.length = self._places[-1]
        """Seconds from end to end."""

    def of(self, moments: Numbers) -> Numbers:
        """Return the place of each moment; what is beyond an end is at that end."""
        return np.interp(moments, self._moments, self._places)

    def at(self, moment: float) -> float:
        """Return the place of one moment, without what numpy costs for one."""
        after = bisect_right(self._moments, moment)
        if after == 0:
            return 0.0
        if after == len(self._moments):
            return self.length
        place = self._places[after - 1] + moment - self._moments[after - 1]
        return min(place, self._places[after])


def presence(
    journal: Journal, nodes: Sequence[NodeRecord], now: float | None
) -> dict[str, tuple[float, float]]:
    """Return from when to when each node was there, as far as the journal knows.

    The driver tells when it joined and left, the node itself when its processes did something: by another
    clock, so that may have been before, or after.

    Args:
        journal: of the run.
        nodes: all of them.
        now: where the run still goes on; else None.
    """
    moments = {node.node: [node.joined_at, node.left_at or 0.0] for node in nodes}
    for name, first, last in journal.select(_SEEN):
        if name in moments:
            moments[name] += first, last
    # Nobody saw the nodes of a driver that was killed leave either: they joined before its last
    # attempt ended.
    began = max((moment for (moment,) in journal.select(_BEFORE)), default=0.0)
    if now is not None:
        for node in nodes:
            if node.left_at is None and node.joined_at > began:
                moments[node.node].append(now)
    known = {name: [one for one in its if one > 0] for name, its in moments.items()}
    return {name: (min(its), max(its)) for name, its in known.items() if its}


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, max(start, stop)))
    return merged
