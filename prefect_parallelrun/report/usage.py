"""What the nodes' monitors sampled (R62, R64), as series of few points."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean

from prefect_parallelrun.models import NodeRecord
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.axis import Axis
from prefect_parallelrun.report.page_data import Series

_POINTS = 300
_PROCESSES = 12
"""So many that used most memory are shown, and so many that used most CPU."""
_ALL_BYTES, _FILE_BYTES = 16 << 20, 1 << 20
"""Read at most of the files of all nodes, and of one; of a larger one some parts, evenly spaced."""
_PART_BYTES = 16 << 10

_Moment = tuple[float, Mapping[str, tuple[float, float]]]
"""Seconds since the epoch, and what each used then: CPU in per cent, bytes of memory."""
_Samples = list[tuple[float, float, float]]
"""Seconds since the epoch, CPU in per cent, bytes of memory."""


def node_usage(paths: RunPaths, nodes: Iterable[NodeRecord], axis: Axis) -> list[Series]:
    """Return what was in use on each node's host; nodes of which nothing can be read are left out."""
    files = {node.node: paths.node_usage(node.node) for node in nodes}
    columns = ("cpu_percent", "memory_used_bytes")
    found: list[Series] = []
    for name, file in files.items():
        moments = _moments(file, columns, share=_share(files))
        samples = [(at, *used) for at, everybody in moments for used in everybody.values()]
        if samples:
            found.append(_series(name, samples, axis))
    return found


def process_usage(paths: RunPaths, nodes: Iterable[NodeRecord], axis: Axis) -> list[Series]:
    """Return what worker processes used, with all that they had started: those that used most.

    The files are read to find these, and those of their nodes once more: memory does not grow with them.
    """
    files = {node.node: paths.process_usage(node.node) for node in nodes}
    columns = ("cpu_percent", "memory_bytes", "process")
    memory: dict[tuple[str, str], float] = {}
    cpu: dict[tuple[str, str], float] = {}
    for node, file in files.items():
        samples: dict[str, _Samples] = {}
        for at, everybody in _moments(file, columns, share=_share(files)):
            for process, used in everybody.items():
                samples.setdefault(process, []).append((at, *used))
        for process, its in samples.items():
            memory[node, process] = max(one[2] for one in its)
            cpu[node, process] = fmean(one[1] for one in its)
    most = [sorted(used, key=used.__getitem__, reverse=True)[:_PROCESSES] for used in (memory, cpu)]
    shown: dict[tuple[str, str], _Samples] = {
        name: [] for name in memory if any(name in names for names in most)
    }
    for node in dict.fromkeys(node for node, _ in shown):
        for at, everybody in _moments(files[node], columns, share=_share(files)):
            for process, used in everybody.items():
                if (node, process) in shown:
                    shown[node, process].append((at, *used))
    return [
        _series(f"{node} {process}", samples, axis) for (node, process), samples in shown.items()
    ]


def _share(files: Collection[str]) -> int:
    """Return how many bytes are read of the file of each node."""
    return min(_FILE_BYTES, _ALL_BYTES // max(len(files), 1))


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


def _moments(path: Path, columns: Sequence[str], *, share: int) -> list[_Moment]:
    """Return what a monitor's file says of each moment; nothing where it cannot be read."""
    found: list[_Moment] = []
    try:
        for names, lines, whole in _parts(path, share):
            moments = list(_sampled(lines, names, columns))
            # Of the first and the last moment a part may have cut something off.
            found += moments if whole else moments[1:-1]
    except (OSError, ValueError, csv.Error):
        return []
    return found


def _sampled(
    lines: Iterable[str], names: Sequence[str], columns: Sequence[str]
) -> Iterator[_Moment]:
    """Yield each moment; what has the same name then is added up.

    A row is left out where something cannot be read: the monitor leaves empty what it does not know, and a
    node that is killed does not end its last line.
    """
    time, cpu, memory, *name = (names.index(column) for column in ("time", *columns))
    before, used = math.nan, dict[str, tuple[float, float]]()
    for row in csv.reader(lines):
        try:
            at = datetime.fromisoformat(row[time]).timestamp()
            cpu_percent, memory_bytes = float(row[cpu]), float(row[memory])
        except (ValueError, IndexError, OverflowError):
            continue
        if len(row) != len(names) or not math.isfinite(cpu_percent + memory_bytes):
            continue
        if at != before:
            if used:
                yield before, used
            before, used = at, {}
        who = row[name[0]] if name else ""
        so_far = used.get(who, (0.0, 0.0))
        used[who] = so_far[0] + cpu_percent, so_far[1] + memory_bytes
    if used:
        yield before, used


def _parts(path: Path, share: int) -> Iterator[tuple[Sequence[str], list[str], bool]]:
    """Yield the names of the columns, some lines, and whether they are all that there is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        names = file.readline().decode("utf-8", "replace").strip().split(",")
        if size <= share:
            yield names, file.read().decode("utf-8", "replace").splitlines(), True
            return
        first, parts = file.tell(), max(2, share // _PART_BYTES)
        width = min(_PART_BYTES, size - first)
        for part in range(parts):
            file.seek(first + (size - first - width) * part // (parts - 1))
            if part:
                file.readline()
            yield names, file.read(width).decode("utf-8", "replace").splitlines(), False
