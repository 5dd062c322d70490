"""What the nodes' monitors sampled (R62, R64), as series of few points."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean

from prefect_parallelrun.models import NodeRecord
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.axis import Axis
from prefect_parallelrun.report.page_data import Series

_POINTS = 300
_PROCESSES = 12
"""So many that used most memory are shown, and so many that used most CPU."""
_WHOLE_BYTES = 1 << 20
"""Of a larger file some parts are read, evenly spaced."""
_PARTS, _PART_BYTES = 64, 16 << 10

_Samples = list[tuple[float, float, float]]
"""Seconds since the epoch, CPU in per cent, bytes of memory."""


def node_usage(paths: RunPaths, nodes: Iterable[NodeRecord], axis: Axis) -> list[Series]:
    """Return what was in use on each node's host; nodes that were never sampled are left out."""
    found: list[Series] = []
    for node in nodes:
        samples = [
            (moment, float(row["cpu_percent"]), float(row["memory_used_bytes"]))
            for moment, rows in _by_moment(paths.node_usage(node.node))
            for row in rows
        ]
        if samples:
            found.append(_series(node.node, samples, axis))
    return found


def process_usage(paths: RunPaths, nodes: Iterable[NodeRecord], axis: Axis) -> list[Series]:
    """Return what worker processes used, with all that they had started: those that used most."""
    all_of_them: dict[str, _Samples] = {}
    for node in nodes:
        for moment, rows in _by_moment(paths.process_usage(node.node)):
            of_one = itemgetter("process")
            for process, its in groupby(sorted(rows, key=of_one), of_one):
                used = [(float(row["cpu_percent"]), float(row["memory_bytes"])) for row in its]
                sample = (moment, sum(cpu for cpu, _ in used), sum(memory for _, memory in used))
                all_of_them.setdefault(f"{node.node} {process}", []).append(sample)
    by_memory = sorted(all_of_them, key=lambda name: -max(one[2] for one in all_of_them[name]))
    by_cpu = sorted(all_of_them, key=lambda name: -fmean(one[1] for one in all_of_them[name]))
    shown = {*by_memory[:_PROCESSES], *by_cpu[:_PROCESSES]}
    return [_series(name, all_of_them[name], axis) for name in all_of_them if name in shown]


def _series(name: str, samples: _Samples, axis: Axis) -> Series:
    """Return the samples as a series; where several are one point, of memory the most counts."""
    step = -(-len(samples) // _POINTS)
    groups = [samples[at : at + step] for at in range(0, len(samples), step)]
    return Series(
        name=name,
        times=[axis.at(fmean(one[0] for one in group)) for group in groups],
        cpu_percent=[fmean(one[1] for one in group) for group in groups],
        memory_bytes=[max(one[2] for one in group) for group in groups],
    )


def _by_moment(path: Path) -> Iterator[tuple[float, list[dict[str, str]]]]:
    """Yield each moment of a monitor's file and what was sampled then; nothing where there is no file."""
    if not path.exists():
        return
    for names, lines, whole in _parts(path):
        rows = csv.DictReader(lines, names, strict=False)
        # What a killed node was just writing, or a part cuts off, has too few values.
        complete = (row for row in rows if None not in row.values() and None not in row)
        moments = [(time, list(its)) for time, its in groupby(complete, itemgetter("time"))]
        for time, its in moments if whole else moments[1:-1]:
            yield datetime.fromisoformat(time).timestamp(), its


def _parts(path: Path) -> Iterator[tuple[Sequence[str], list[str], bool]]:
    """Yield the names of the columns, some lines, and whether they are all that there is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        names = file.readline().decode("utf-8", "replace").strip().split(",")
        if size <= _WHOLE_BYTES:
            yield names, file.read().decode("utf-8", "replace").splitlines(), True
            return
        first = file.tell()
        for part in range(_PARTS):
            file.seek(first + (size - first - _PART_BYTES) * part // (_PARTS - 1))
            if part:
                file.readline()
            yield names, file.read(_PART_BYTES).decode("utf-8", "replace").splitlines(), False
