"""The rows of the timeline: one for each place that a node has for a worker process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefect_parallelrun.models import NodeRecord
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.report.attempt_arrays import PROCESSES

_MOST = 150
"""With more places than this, a row is a whole node."""
# In one step of SQLite: see recorder._ROWS_PER_STATEMENT.
_PROCESSES = """
SELECT json_group_array(json_array(
    node, process, started_at, ready_at, init_s, ended_at, reason))
FROM processes WHERE started_at > 0 AND process GLOB 'process[0-9]*'
"""


@dataclass(slots=True)
class Stay:
    """One worker process, and the row that it is in."""

    node: str
    process: str
    started_at: float
    ready_at: float | None
    init_s: float
    ended_at: float
    """At the latest, where nobody saw its end."""
    reason: str
    lane: int = 0

    @property
    def code(self) -> int:
        """Its number in `attempt_arrays`."""
        return int(self.node[4:]) * PROCESSES + int(self.process[7:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """The rows, and which worker process is in which."""

    names: Sequence[str]
    capacities: Sequence[int]
    """Worker processes that are in a row at once."""
    left_out: int
    """Nodes for which there is no row."""
    wide: bool
    """Whether a row is a whole node."""
    stays: Sequence[Stay]
    _codes: npt.NDArray[np.int64]
    _lanes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, journal: Journal, nodes: Sequence[NodeRecord], seen: Mapping[str, float]) -> Lanes:
        """Give each worker process a row: a replacement that of its predecessor.

        Args:
            journal: of the run.
            nodes: all of them.
            seen: see `axis.presence`, without the beginnings.
        """
        stays = sorted(_stays(journal, seen), key=lambda stay: (stay.started_at, stay.code))
        names: list[str] = []
        for node, its in _by_node(nodes, stays):
            used = _fill(its, node.processes, len(names))
            names += [f"{node.node} #{number}" for number in range(used)]
        capacities, left_out = [1] * len(names), 0
        if wide := len(names) > _MOST:
            shown = sorted(nodes, key=lambda one: one.joined_at - seen.get(one.node, 0.0))[:_MOST]
            rows = {node: row for row, node in enumerate(n.node for n in nodes if n in shown)}
            stays = [stay for stay in stays if stay.node in rows]
            for stay in stays:
                stay.lane = rows[stay.node]
            kept = [node for node in nodes if node.node in rows]
            names = [f"{node.node} ({node.processes} processes)" for node in kept]
            capacities, left_out = [max(node.processes, 1) for node in kept], len(nodes) - len(kept)
        order = sorted(stays, key=lambda stay: stay.code)
        return cls(
            names=names,
            capacities=capacities,
            left_out=left_out,
            wide=wide,
            stays=stays,
            _codes=np.array([stay.code for stay in order], np.int64),
            _lanes=np.array([stay.lane for stay in order], np.int64),
        )

    def of_processes(self, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each worker process; -1 where there is none."""
        if not len(self._codes):
            return np.full(len(codes), -1)
        at = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[at] == codes, self._lanes[at], -1)


def _stays(journal: Journal, seen: Mapping[str, float]) -> Iterator[Stay]:
    ((found,),) = journal.select(_PROCESSES)
    for node, process, started_at, ready_at, init_s, ended_at, reason in json.loads(found):
        if node in seen:
            end = seen[node] if ended_at is None else ended_at
            yield Stay(node, process, started_at, ready_at, init_s, max(started_at, end), reason)


def _by_node(
    nodes: Sequence[NodeRecord], stays: Sequence[Stay]
) -> Iterator[tuple[NodeRecord, list[Stay]]]:
    by_name: dict[str, list[Stay]] = {}
    for stay in stays:
        by_name.setdefault(stay.node, []).append(stay)
    for node in nodes:
        yield node, by_name.get(node.node, [])


def _fill(stays: Sequence[Stay], places: int, first: int) -> int:
    """Give the processes of one node, by their starts, rows from `first` on; return how many."""
    last: list[Stay] = []
    for stay in stays:
        free = [row for row, one in enumerate(last) if one.ended_at <= stay.started_at]
        if free:
            row = max(free, key=lambda row: last[row].ended_at)
        elif len(last) < max(places, 1):
            row = len(last)
            last.append(stay)
        else:
            # It was started before the end of its predecessor was told.
            row = min(range(len(last)), key=lambda row: last[row].ended_at)
            last[row].ended_at = stay.started_at
        last[row] = stay
        stay.lane = first + row
    return len(last)
