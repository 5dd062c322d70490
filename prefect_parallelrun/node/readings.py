"""What one look at a node tells: of the machine, its disks, its processes. What is not known is empty."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from prefect_parallelrun.cells import in_one_cell
from prefect_parallelrun.node.nvml import Devices
from prefect_parallelrun.node.process_tree import ProcessTree

Row = list[object]

UNKNOWN = ""


class Machine:
    """Processor, memory, network and GPUs of the host, whoever uses them."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first look; the next ones tell what was used since
        self._devices = Devices()
        self.columns = [
            *("cpu_percent", "load_1m", "memory_total_bytes", "memory_used_bytes"),
            *("memory_available_bytes", "swap_used_bytes"),
            *("network_sent_bytes", "network_received_bytes"),
            *(
                f"gpu{number}_{what}"
                for number in range(len(self._devices))
                for what in ("percent", "memory_used_bytes")
            ),
        ]

    def rows(self) -> Iterator[Row]:
        """Yield one row. Network: since the host was started. CPU: 0 to 100, of all cores."""
        memory = psutil.virtual_memory()
        swap = _allowed(psutil.swap_memory)
        network = _allowed(psutil.net_io_counters)
        yield [
            psutil.cpu_percent(),
            round(os.getloadavg()[0], 2),
            *(memory.total, memory.used, memory.available),
            swap.used if swap else UNKNOWN,
            *((network.bytes_sent, network.bytes_recv) if network else (UNKNOWN, UNKNOWN)),
            *(value for usage in self._devices.usage() for value in usage),
        ]

    def close(self) -> None:
        """Let go of the GPUs."""
        self._devices.close()


class Disks:
    """The file systems that some folders are on; each once, by the place it is mounted at.

    Args:
        folders: may be missing yet; the file system they would be on counts.
    """

    columns = ("path", "total_bytes", "used_bytes", "free_bytes", "read_bytes", "written_bytes")

    def __init__(self, folders: Iterable[Path]) -> None:
        self._devices = {place: _device(place) for place in map(_mount, folders)}
        self._refused: set[Path] = set()
        self.trouble: list[str] = []
        """What was wrong with disks, each once; whoever tells of it, empties this."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each. Read and written: by all, since the host was started."""
        traffic = _allowed(partial(psutil.disk_io_counters, perdisk=True)) or {}
        for place, device in self._devices.items():
            try:
                space = psutil.disk_usage(str(place))
            except OSError as error:
                if place not in self._refused:
                    self._refused.add(place)
                    self.trouble.append(f"the disk at {place} cannot be looked at: {error}")
                continue
            moved = traffic.get(device)
            yield [
                *(place, space.total, space.used, space.free),
                *((moved.read_bytes, moved.write_bytes) if moved else (UNKNOWN, UNKNOWN)),
            ]


class Processes:
    """Supervisor, worker processes, and all that they started, one by one."""

    columns = (
        *("process", "pid", "name", "cpu_percent", "cpu_seconds", "memory_bytes"),
        *("threads", "read_bytes", "written_bytes", "status"),
    )

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._before: dict[psutil.Process, tuple[float, float]] = {}
        """Of the last look, by process: when it was (monotonic), and the CPU seconds by then."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for each. CPU percent: since the last look, or its start; 100 is one core."""
        before, self._before = self._before, {}
        for process, name in self._tree.look().items():
            with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
                yield self._row(process, name, before.get(process))

    def _row(self, process: psutil.Process, name: str, before: tuple[float, float] | None) -> Row:
        times = process.cpu_times()
        now, cpu_s = time.monotonic(), times.user + times.system
        self._before[process] = now, cpu_s
        if before is None:
            took_s, used_s = time.time() - process.create_time(), cpu_s
        else:
            took_s, used_s = now - before[0], cpu_s - before[1]
        moved = _allowed(process.io_counters)
        return [
            *(name, process.pid, in_one_cell(process.name())),
            round(100 * used_s / took_s, 1) if took_s > 0 else UNKNOWN,
            round(cpu_s, 2),
            *(process.memory_info().rss, process.num_threads()),
            *((moved.read_bytes, moved.write_bytes) if moved else (UNKNOWN, UNKNOWN)),
            process.status(),
        ]


def _allowed(ask: Callable[[], Any]) -> Any:
    """Return what is asked for; None for what this kernel does not count, or shows only to others."""
    with contextlib.suppress(psutil.AccessDenied, NotImplementedError, OSError):
        return ask()
    return None


def _mount(folder: Path) -> Path:
    place = folder.resolve()
    while not place.is_mount():
        place = place.parent
    return place


def _device(place: Path) -> str:
    """Return the name by which the kernel counts the traffic of a file system; empty: it counts none."""
    number = place.stat().st_dev
    with contextlib.suppress(OSError):
        link = f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"
        return Path(link).readlink().name
    return ""
