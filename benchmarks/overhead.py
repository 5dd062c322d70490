"""What a mini-batch costs, as ratios against peers that are measured in the same run.

`python benchmarks/overhead.py`, about two minutes; nothing else should run meanwhile. Each figure is
the median of three.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Only the standard library up here: the processes of Dask's LocalCluster import this file again,
# and must not pay for what they do not need.
if TYPE_CHECKING:
    from prefect_parallelrun import ParallelRunConfig, ParallelRunResult

PROCESSES = 2
REPEATS = 3
DASK_TASKS = 1_500
MINI_BATCHES = 30_000
SLOW_MINI_BATCHES = 120
SLOW_S = 0.05
SCRIPTS = Path(__file__).resolve().parent / "scripts"

Run = Callable[[int, float], "ParallelRunResult"]
"""Runs so many mini-batches that sleep for so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of a step, seen from outside."""

    whole_rate: float
    """Mini-batches per second of the whole call, start-up and publishing included."""
    steady_rate: float
    """Mini-batches per second between the first and the last `run()`."""
    first_s: float
    """Seconds from the call to the first `run()`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison of the table."""

    what: str
    ours: str
    peer: str
    ratio: float
    goal: str


def main() -> None:
    """Measure everything and print the table."""
    with tempfile.TemporaryDirectory(prefix="parallelrun-bench-") as folder:
        # Read by Prefect when it is imported: an empty home, and nothing leaves this machine.
        os.environ["PREFECT_HOME"] = folder
        os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        os.environ["DO_NOT_TRACK"] = "1"
        os.environ.pop("PREFECT_API_URL", None)
        pool = pool_rate()  # first, since it forks
        show([*throughput(Path(folder), pool), start_up(Path(folder)), busy_flow(Path(folder))])


def throughput(folder: Path, pool: float | None) -> Iterator[Line]:
    """Compare empty mini-batches, with journal and output, with tasks and calls that do nothing."""
    raw = median(dask_rate)
    driver = [measure(by_driver(folder), MINI_BATCHES) for _ in range(REPEATS)]
    by_flow = measured_in_flow()
    step = [by_flow() for _ in range(REPEATS)]
    for how, runs in (("run_step", driver), ("ParallelRunStep in a flow", step)):
        for kind, rates in (
            ("whole call", [one.whole_rate for one in runs]),
            ("first to last run()", [one.steady_rate for one in runs]),
        ):
            rate = statistics.median(rates)
            peer = f"{raw:,.0f}/s raw Dask"
            what = f"empty mini-batches, {how}, {kind}"
            yield Line(what=what, ours=f"{rate:,.0f}/s", peer=peer, ratio=rate / raw, goal="≥ 15")
    if pool is not None:
        rate = statistics.median(one.steady_rate for one in driver)
        yield Line(
            what="the same, run_step, first to last run()",
            ours=f"{rate:,.0f}/s",
            peer=f"{pool:,.0f}/s pebble",
            ratio=rate / pool,
            goal="≥ 0.5",
        )


def start_up(folder: Path) -> Line:
    """Compare the time to the first `run()` with Dask's own start and that of one bare process."""
    ours = median(lambda: measure(by_driver(folder), 2 * PROCESSES).first_s)
    peer = median(local_cluster_s) + median(bare_process_s)
    return Line(
        what="call to first run(), run_step",
        ours=f"{ours:.2f} s",
        peer=f"{peer:.2f} s LocalCluster + process",
        ratio=ours / peer,
        goal="≤ 1.0",
    )


def busy_flow(folder: Path) -> Line:
    """Compare mini-batches of 50 ms while a thread of this process computes with the same alone."""

    def rate() -> float:
        return measure(by_driver(folder), SLOW_MINI_BATCHES, SLOW_S).steady_rate

    alone = median(rate)
    with computing():
        busy = median(rate)
    return Line(
        what=f"{1000 * SLOW_S:.0f} ms mini-batches, a thread of the flow computes",
        ours=f"{busy:.1f}/s",
        peer=f"{alone:.1f}/s without it",
        ratio=busy / alone,
        goal="≥ 0.9",
    )


def measure(run: Run, count: int, sleep_s: float = 0.0) -> Measured:
    """Run a step and read from its output when each `run()` began."""
    called = time.time()
    result = run(count, sleep_s)
    ended = time.time()
    assert result.append_row_file is not None
    began = sorted(map(float, Path(result.append_row_file).read_text().splitlines()))
    assert len(began) == count, f"{len(began)} rows of {count}"
    return Measured(
        whole_rate=count / (ended - called),
        steady_rate=(count - 1) / max(began[-1] - began[0], 1e-6),
        first_s=began[0] - called,
    )


def by_driver(folder: Path) -> Run:
    """Return how to run a step through the driver alone, without Prefect."""
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver.run import run_step

    log = logging.getLogger("overhead")
    log.setLevel(logging.ERROR)

    def run(count: int, sleep_s: float) -> ParallelRunResult:
        run_id = f"run{next(_numbers):03d}"
        definition = StepDefinition(
            name="overhead", config=config(), inputs=(), arguments=arguments(count, sleep_s)
        )
        return run_step(definition, run_folder=folder / "runs" / run_id, run_id=run_id, log=log)

    return run


def by_step(count: int, sleep_s: float) -> ParallelRunResult:
    """Run a step as a user does."""
    from prefect_parallelrun import ParallelRunStep

    step = ParallelRunStep(
        name="overhead",
        parallel_run_config=config(),
        inputs=[],
        arguments=arguments(count, sleep_s),
        allow_reuse=False,
    )
    return step()


def measured_in_flow() -> Callable[[], Measured]:
    """Return how to measure a step as a user runs it, in a flow; Prefect's server is up by then."""
    from prefect import flow

    @flow
    def overhead(count: int) -> Measured:
        # Here, since a flow run takes a second of its own to begin and end.
        return measure(by_step, count)

    overhead(1)
    return lambda: overhead(MINI_BATCHES)


def config() -> ParallelRunConfig:
    """Return the settings that all runs share."""
    from prefect_parallelrun import ParallelRunConfig

    return ParallelRunConfig(
        source_directory=str(SCRIPTS),
        entry_script="mark_start.py",
        process_count_per_node=PROCESSES,
        error_threshold=0,
    )


def arguments(count: int, sleep_s: float) -> tuple[str, ...]:
    """Ask for so many mini-batches without input."""
    return ("--rank_mini_batch_count", str(count), "--sleep", str(sleep_s))


def dask_rate() -> float:
    """Return tasks per second of Client.map and as_completed, on a cluster of the embedded kind."""
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=PROCESSES,
            processes=False,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.gather(client.map(_nothing, range(100), pure=False))
        began = time.perf_counter()
        futures = client.map(_nothing, range(DASK_TASKS), pure=False)
        for _ in distributed.as_completed(futures, loop=client.loop):
            pass
        return DASK_TASKS / (time.perf_counter() - began)


def pool_rate() -> float | None:
    """Return calls per second of pebble's pool with a time-out each; None where it is not installed."""
    try:
        from pebble import ProcessPool
    except ImportError:
        return None

    with ProcessPool(max_workers=PROCESSES) as pool:

        def rate() -> float:
            began = time.perf_counter()
            for _ in pool.map(_nothing, range(MINI_BATCHES // 2), timeout=60).result():
                pass
            return MINI_BATCHES // 2 / (time.perf_counter() - began)

        return median(rate)


def local_cluster_s() -> float:
    """Return how long Dask's own local cluster takes until a client has its one worker."""
    import distributed

    began = time.perf_counter()
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=PROCESSES,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(1)
        return time.perf_counter() - began


def bare_process_s() -> float:
    """Return how long an interpreter takes that does nothing."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


@contextmanager
def computing() -> Iterator[None]:
    """Keep a thread of this process busy in pure Python meanwhile."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(number * number for number in range(10_000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def median(measurement: Callable[[], float]) -> float:
    """Measure a few times; return the middle."""
    return statistics.median(measurement() for _ in range(REPEATS))


def show(lines: list[Line]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{PROCESSES} processes, {os.cpu_count()} cores, medians of {REPEATS}")
    for name in ("what", "ours", "peer"):
        table.add_column(name, overflow="fold")
    table.add_column("ratio", justify="right")
    table.add_column("goal", justify="right")
    for line in lines:
        table.add_row(line.what, line.ours, line.peer, f"{line.ratio:.2f}", line.goal)
    Console(width=120).print(table)


def _nothing(number: int) -> int:
    return number


_numbers = itertools.count()

if __name__ == "__main__":
    main()
