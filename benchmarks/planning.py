"""What planning costs, in time and memory, against looking at the same input with nothing of ours.

`python benchmarks/planning.py`, about a minute; `--quick` takes a tenth of the input. Every measurement
has a process of its own, and each figure is the median of three. All processes import the same packages
first: the seconds do not count that, the memory does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

REPEATS = 3
ROW = b"%d,%d,0.%05d,2024-03-%02d,true,some text of the row number %07d      \n"
HEADER = b"id,store,price,day,open,text\n"
SAMPLE = 16 << 20
BLOCK = 64 << 10


class Cost(NamedTuple):
    """What one process needed."""

    seconds: float
    peak_mb: float
    grown_mb: float
    """Of the peak, what came after the imports."""
    count: int
    """Mini-batches planned, or files, rows or row groups that the peer looked at."""


def main() -> None:
    """Measure everything and print the table; or, as a process of its own, measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the input")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(*options.measure)))
        return
    scale = 10 if options.quick else 1
    with tempfile.TemporaryDirectory(prefix="parallelrun-planning-") as folder:
        show(list(lines(Path(folder), scale)))


Line = tuple[str, Cost, str, Cost]
"""What is planned, ours, the peer, the peer's."""


def lines(folder: Path, scale: int) -> Iterator[Line]:
    """Make each input, and plan it and look at it in turn."""
    files = make_files(folder / "files", 100_000 // scale)
    yield f"{100_000 // scale:,} files", *pair(files, "plan_files", "list_files")
    table = make_csv(folder / "table.csv", 10_000_000_000 // scale)
    what = f"CSV of {10 // scale} GB, mini-batches of 1 MB" if scale == 1 else "CSV of 1 GB"
    yield what, *pair(table, "plan_csv", "type_sample")
    parquet = make_parquet(folder / "table.parquet", 10_000 // scale)
    yield f"Parquet, {10_000 // scale:,} row groups", *pair(parquet, "plan_parquet", "read_footer")


def pair(path: Path, ours: str, peer: str) -> tuple[Cost, str, Cost]:
    """Measure ours and the peer in turn, so that a busy machine is so for both."""
    found: dict[str, list[Cost]] = {ours: [], peer: []}
    for _ in range(REPEATS):
        for what, costs in found.items():
            costs.append(in_own_process(what, path))
    return median(found[ours]), PEERS[peer], median(found[peer])


def in_own_process(what: str, path: Path) -> Cost:
    """Measure one thing."""
    command = [sys.executable, __file__, "--measure", what, str(path)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Cost(*json.loads(printed))


def median(costs: list[Cost]) -> Cost:
    """Return the middle of each figure."""
    assert len({cost.count for cost in costs}) == 1
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def measured(what: str, path: str) -> Cost:
    """Do one thing in this process; what it needs is imported before the clock starts."""
    import pandas  # noqa: F401
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401

    from prefect_parallelrun.planning import make_plan  # noqa: F401

    before = peak_mb()
    began = time.perf_counter()
    count = DOING[what](path)
    seconds = time.perf_counter() - began
    return Cost(seconds, peak_mb(), peak_mb() - before, count)


def peak_mb() -> float:
    """Return the most memory that this process has had; what getrusage gives counts its parent's too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def plan_files(path: str) -> int:
    from prefect_parallelrun import FileDataset

    return planned(FileDataset.from_files(path), 10)


def plan_csv(path: str) -> int:
    from prefect_parallelrun import TabularDataset

    return planned(TabularDataset.from_delimited_files(path), "1MB")


def plan_parquet(path: str) -> int:
    from prefect_parallelrun import TabularDataset

    return planned(TabularDataset.from_parquet_files(path), "10KB")


def planned(dataset: object, size: int | str) -> int:
    """List, plan, and go over all mini-batches, as a run does."""
    from prefect_parallelrun.planning import make_plan

    with tempfile.TemporaryDirectory() as scratch:
        files = dataset.list_files()  # type: ignore[attr-defined]
        plan = make_plan([dataset], [files], mini_batch_size=size, scratch=Path(scratch))  # type: ignore[list-item]
        return sum(1 for _ in plan)


def list_files(path: str) -> int:
    """Walk, and keep path, size and time of each file, sorted."""
    found = []
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    status = entry.stat()
                    found.append((entry.path, status.st_size, status.st_mtime_ns))
    found.sort()
    return len(found)


def type_sample(path: str) -> int:
    """Read as many bytes in as many places as a sample has, and let Arrow find the types of the rows."""
    from pyarrow import csv, py_buffer

    size = Path(path).stat().st_size
    count = SAMPLE // BLOCK
    pieces = [HEADER]
    with Path(path).open("rb", buffering=0) as file:
        for place in range(count):
            file.seek(place * (size - BLOCK) // (count - 1))
            block = file.read(BLOCK)
            pieces.append(block[block.index(b"\n") + 1 : block.rindex(b"\n") + 1])
    rows = py_buffer(b"".join(pieces))
    table = csv.read_csv(rows, csv.ReadOptions(use_threads=False, block_size=len(rows)))
    return table.num_rows


def read_footer(path: str) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_row_groups


DOING: dict[str, Callable[[str], int]] = {
    function.__name__: function
    for function in (plan_files, plan_csv, plan_parquet, list_files, type_sample, read_footer)
}
PEERS = {
    "list_files": "os.scandir and stat, sorted",
    "type_sample": "the same bytes read and typed by Arrow",
    "read_footer": "pyarrow's read_metadata",
}


def make_files(folder: Path, count: int) -> Path:
    """Make files of a few bytes, a thousand to a folder."""
    for number in range(count):
        if number % 1000 == 0:
            inner = folder / f"{number // 1000:03d}"
            inner.mkdir(parents=True)
        with (inner / f"{number:06d}.txt").open("wb") as file:
            file.write(b"%d" % number)
    return folder


def make_csv(path: Path, size: int) -> Path:
    """Make a CSV of so many bytes: rows around each place that a sample is taken of, holes between."""
    count = SAMPLE // BLOCK
    rows = [
        ROW % (10**6 + n, 100 + n % 900, n % 99_991, n % 28 + 1, n) for n in range(3 * BLOCK // 72)
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    rows_text = b"".join(rows)
    with path.open("wb") as file:
        file.write(HEADER + rows_text)
        for place in range(1, count):
            start = place * (size - BLOCK) // (count - 1) - BLOCK
            file.seek(start)
            # The last one ends where the file does.
            file.write(b"\n" + rows_text[-(size - start - 1) :])
        file.truncate(size)
    return path


def make_parquet(path: Path, groups: int) -> Path:
    """Make a Parquet file of six columns, ten rows to a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = range(10 * groups)
    table = pa.table(
        {
            "id": pa.array(numbers),
            "store": pa.array([n % 50 for n in numbers]),
            "price": pa.array([n / 7 for n in numbers]),
            "day": pa.array([86_400_000_000 * (n % 1000) for n in numbers]).cast(
                pa.timestamp("us")
            ),
            "open": pa.array([n % 3 == 0 for n in numbers]),
            "text": pa.array([f"store {n % 97}" for n in numbers]),
        }
    )
    pq.write_table(table, path, row_group_size=10)
    return path


def show(found: list[Line]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Planning against looking; medians of {REPEATS}; goal: at most 2 times")
    for name in ("what", "ours", "peer"):
        table.add_column(name, overflow="fold")
    table.add_column("time", justify="right")
    table.add_column("peak memory", justify="right")
    for what, ours, peer_name, peer in found:
        table.add_row(
            what,
            f"{ours.seconds:.2f} s, {ours.peak_mb:.0f} MB (+{ours.grown_mb:.0f}), {ours.count:,} mini-batches",
            f"{peer.seconds:.2f} s, {peer.peak_mb:.0f} MB (+{peer.grown_mb:.0f}): {peer_name}",
            f"{ours.seconds / peer.seconds:.2f}",
            f"{ours.peak_mb / peer.peak_mb:.2f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
