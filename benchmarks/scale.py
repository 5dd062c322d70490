"""How far one driver goes: a million mini-batches on hundreds of nodes, which are simulated.

`python benchmarks/scale.py`, some five minutes on quiet cores. The driver's thread, its books, the journal, the output
and the reports are those of any run; the nodes are coroutines in the place of the Dask cluster (see
`simulated.py`), and their time is not counted. What Dask itself takes for a task is measured beside it.
Rates are of CPU seconds, all threads added up as if on one core: what else the machine does changes them
little, and the threads of one interpreter cannot do much more.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import os
import pstats
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "scripts"
NODES = (500,)
PROCESSES = 8
MINI_BATCHES = 1_000_000
SECONDS = (1.0,)
FEW = 10
"""The memory is set against that of a run with so many times fewer mini-batches."""
FAIL_EVERY = 1_000
LOSE_EVERY_S = 5.0
MARKS = (10, 50, 100)
"""Percent of the mini-batches at which the memory is looked at."""
DASK_TASKS = 3_000
DASK_WINDOW = 200
"""Tasks in flight."""
SHOWN = 14
"""Lines of a profile."""


@dataclass(kw_only=True)
class Measured:
    """One run, as a process of its own saw it."""

    nodes: int
    seconds: float
    """That a mini-batch took, in the middle."""
    mini_batches: int
    bundles: int
    lost: int
    """Nodes."""
    failed: int
    """Attempts that raised, or were lost."""
    scheduling_s: float = 0.0
    """From the first node to the last result, without what the simulated nodes took."""
    driver_cpu_s: float = 0.0
    """Of the driver's thread meanwhile, without the nodes."""
    writer_cpu_s: float = 0.0
    """Of the thread that writes rows and journal."""
    nodes_s: float = 0.0
    """What the simulation of the nodes took."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Of the whole call, by what the overview calls them."""
    rss_mb: dict[str, float] = field(default_factory=dict)
    """Memory of the process, at each mark and at its peak."""
    journal_mb: float = 0.0
    sqlite_cpu_s: float = 0.0
    """For the same rows of the journal by bare sqlite3, in about as many transactions."""
    profile: str = ""

    @property
    def rate(self) -> float:
        """Mini-batches per second of one core."""
        return self.mini_batches / (self.driver_cpu_s + self.writer_cpu_s)


def main() -> None:
    """Measure each setting in a process of its own, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--processes", type=int, default=PROCESSES, help="of each node")
    parser.add_argument("--mini-batches", type=int, default=MINI_BATCHES)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=SECONDS, help="that a mini-batch takes"
    )
    parser.add_argument(
        "--profile", action="store_true", help="of the driver's thread; it slows it"
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the mini-batches")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(**json.loads(arguments.one)))))
        return
    count = arguments.mini_batches // (20 if arguments.quick else 1)
    print(f"{count:,} mini-batches, nodes of {arguments.processes} processes, {cores()} cores")
    dask = dask_rate()
    print(
        f"bare Dask: {dask:,.0f} tasks/s of one core, which client and scheduler share\n",
        flush=True,
    )
    for nodes, seconds in product(arguments.nodes, arguments.seconds):
        setting = {"nodes": nodes, "seconds": seconds, "processes": arguments.processes}
        few = measure_apart(**setting, count=max(1, count // FEW), profiled=False)
        many = measure_apart(**setting, count=count, profiled=arguments.profile)
        show(many, few, dask)


def show(one: Measured, few: Measured, dask: float) -> None:
    """Print what one run came to, and how far that reaches."""
    print(
        f"{one.nodes} nodes, mini-batches of {one.seconds:g} s: {one.mini_batches:,} in {one.bundles:,} "
        f"bundles, {one.failed:,} attempts failed, {one.lost} nodes lost"
    )
    print(
        f"  driver: {one.rate:,.0f} mini-batches/s of one core, journal included (CPU: its thread "
        f"{one.driver_cpu_s:.1f} s, its writer {one.writer_cpu_s:.1f} s; it took {one.scheduling_s:.1f} s; "
        f"the simulated nodes, not counted, {one.nodes_s:.1f} s)"
    )
    print(
        f"  its writer against bare sqlite3 with the same rows, {one.sqlite_cpu_s:.1f} s CPU: "
        f"{one.sqlite_cpu_s / one.writer_cpu_s:.2f}; the journal has {one.journal_mb:.0f} MB"
    )
    told = [f"{mb:.0f} MB {at}" for at, mb in one.rss_mb.items()]
    ratios = [f"{mb / few.rss_mb[at]:.2f} {at}" for at, mb in one.rss_mb.items()]
    print(f"  memory: {', '.join(told)}; of that with {few.mini_batches:,}: {', '.join(ratios)}")
    took = [f"{stage} {s:.1f} s" for stage, s in one.stages_s.items() if s >= 0.1]
    print(f"  stages: {', '.join(took)}")
    by_dask = dask * one.mini_batches / one.bundles
    print(
        f"  limit: {one.rate * one.seconds:,.0f} busy worker processes by the driver's own work, "
        f"{by_dask * one.seconds:,.0f} by Dask, of which a bundle is one task; ratio "
        f"{one.rate / by_dask:.1f}"
    )
    if one.profile:
        print(one.profile)
    print(flush=True)


def measure_apart(**setting: Any) -> Measured:
    """Measure in a process of its own: of memory, only the peak of a process is known."""
    answer = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(setting)], stdout=subprocess.PIPE, check=True
    )
    return Measured(**json.loads(answer.stdout.splitlines()[-1]))


# -- one run ---------------------------------------------------------------------------------


def measure(*, nodes: int, processes: int, seconds: float, count: int, profiled: bool) -> Measured:
    """Run a step on simulated nodes."""
    from simulated import Scene, SimulatedCluster

    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver import schedule
    from prefect_parallelrun.driver.run import run_step
    from prefect_parallelrun.report.observer import Observer

    class Stages(Observer):
        """Notes when each stage began."""

        def __init__(self) -> None:
            self.times: list[tuple[str, float]] = [("starting", time.perf_counter())]

        def progress(self, stage: str, standing: object) -> None:
            if stage != self.times[-1][0]:
                self.times.append((stage, time.perf_counter()))

        def took(self) -> dict[str, float]:
            ends = [began for _, began in self.times[1:]] + [time.perf_counter()]
            total: dict[str, float] = defaultdict(float)
            for (stage, began), end in zip(self.times, ends, strict=True):
                total[stage] += end - began
            return dict(total)

    stages, rss = Stages(), {}
    wall = cpu = 0.0

    def delivered(_bundles: int, mini_batches: int) -> None:
        for mark in MARKS:
            if f"at {mark} %" not in rss and 100 * mini_batches >= mark * count:
                rss[f"at {mark} %"] = rss_mb()

    cluster = SimulatedCluster(
        Scene(
            nodes=nodes,
            processes=processes,
            seconds=seconds,
            fail_every=FAIL_EVERY,
            lose_every_s=LOSE_EVERY_S,
        ),
        delivered,
    )
    loop = schedule.Schedule._loop
    profiler = cProfile.Profile() if profiled else None

    def timed_loop(self: schedule.Schedule) -> None:
        nonlocal wall, cpu
        began, cpu_began = time.perf_counter(), time.thread_time()
        if profiler is not None:
            profiler.runcall(loop, self)
        else:
            loop(self)
        self._writer.flush()  # what is not in the journal is not done
        wall, cpu = time.perf_counter() - began, time.thread_time() - cpu_began

    vars(schedule)["Cluster"] = cluster  # its seam; see `driver.cluster`
    schedule.Schedule._loop = timed_loop  # type: ignore[method-assign]
    log = logging.getLogger("scale")
    log.setLevel(logging.ERROR)
    with temporary_folder() as folder:
        definition = StepDefinition(
            name="scale",
            config=ParallelRunConfig(
                source_directory=str(SCRIPTS),
                entry_script="mark_start.py",
                node_count=nodes,
                process_count_per_node=processes,
                error_threshold=-1,
            ),
            inputs=(),
            arguments=("--rank_mini_batch_count", str(count)),
        )
        result = run_step(
            definition, run_folder=folder / "run", run_id="run", log=log, observers=[stages]
        )
        took = stages.took()
        assert result.mini_batches.succeeded == result.mini_batches.total == count
        assert result.append_row_file is not None
        with Path(result.append_row_file).open("rb") as rows:
            assert sum(1 for _ in rows) == count
        (journal,) = (folder / "run").rglob("*.sqlite*")
        rss["at its peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Measured(
            nodes=nodes,
            seconds=seconds,
            mini_batches=count,
            bundles=cluster.bundles,
            lost=cluster.lost,
            failed=result.attempts - count,
            scheduling_s=wall - cluster.wall_s,
            driver_cpu_s=cpu - cluster.cpu_s,
            writer_cpu_s=cluster.writer_cpu_s,
            nodes_s=cluster.wall_s,
            stages_s=took,
            rss_mb=rss,
            journal_mb=journal.stat().st_size / 2**20,
            sqlite_cpu_s=sqlite_cpu_s(journal, folder / "peer", round(wall / 0.2)),
            profile="" if profiler is None else by_function(profiler),
        )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is on a disk where the machine's temporary one is."""
    with tempfile.TemporaryDirectory(prefix="parallelrun-bench-") as name:
        yield Path(name)


def by_function(profiler: cProfile.Profile) -> str:
    """Return where the driver's thread was, by function."""
    import io

    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(SHOWN)
    return text.getvalue()


def rss_mb() -> float:
    """Return the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# -- peers -----------------------------------------------------------------------------------


def sqlite_cpu_s(journal: Path, copy: Path, transactions: int) -> float:
    """Return what bare sqlite3 takes to write the journal's rows, which it finds in memory, to a new file."""
    source = sqlite3.connect(journal)
    schema = [sql for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
    target = sqlite3.connect(copy, isolation_level=None)
    target.execute("PRAGMA journal_mode=WAL")
    target.execute("PRAGMA synchronous=FULL")
    for sql in schema:
        if "sqlite_" not in sql:
            target.execute(sql)
    rows = source.execute("SELECT * FROM attempts ORDER BY id")
    marks = ", ".join("?" * len(rows.description))
    (count,) = source.execute("SELECT count(*) FROM attempts").fetchone()
    took = 0.0
    while some := rows.fetchmany(max(1, count // max(transactions, 1))):
        began = time.thread_time()
        target.execute("BEGIN IMMEDIATE")
        target.executemany(f"INSERT INTO attempts VALUES ({marks})", some)
        target.execute("COMMIT")
        took += time.thread_time() - began
    source.close()
    target.close()
    return took


def dask_rate() -> float:
    """Return tasks per CPU second of Dask, as the driver uses it: submitted one by one, some in flight.

    The worker is another process, and does not count; client and scheduler are in this one, as they are
    in an embedded cluster.
    """
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=True,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        (worker,) = client.scheduler_info()["workers"]

        def submit(number: int) -> Any:
            return client.submit(nothing, number, pure=False, workers=[worker])

        client.gather([submit(number) for number in range(100)])
        began = time.process_time()
        numbers = iter(range(DASK_TASKS))
        flow = distributed.as_completed(
            [submit(next(numbers)) for _ in range(DASK_WINDOW)], loop=client.loop
        )
        for _ in flow:
            if (number := next(numbers, None)) is not None:
                flow.add(submit(number))
        return DASK_TASKS / (time.process_time() - began)


def nothing(number: int) -> int:
    """Return what came."""
    return number


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
