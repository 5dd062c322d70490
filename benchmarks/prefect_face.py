"""What it costs that a step is a task of Prefect, and what it asks of Prefect's API.

`python benchmarks/prefect_face.py`, about two minutes; nothing else should run meanwhile. The step of
flows/digits.py runs in a flow, against a Prefect server of its own, and through the driver alone, in turns.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_parallelrun import ParallelRunStep

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5
MINI_BATCHES = (10, 100, 10_000)
SERVER_S = 120.0
"""How long the server may take to start."""


def main() -> None:
    """Measure both and print the tables."""
    with tempfile.TemporaryDirectory(prefix="parallelrun-bench-") as folder, server(Path(folder)):
        show_seconds(Path(folder))
        show_calls(Path(folder))


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """Start a Prefect server on loopback, which all that follows uses; Prefect is not imported yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    os.environ.update(
        DO_NOT_TRACK="1",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"{url}/api",
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="ERROR",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", url.rpartition(":")[2]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url, process)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + SERVER_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/health", timeout=2):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def show_seconds(folder: Path) -> None:
    """Compare the step of flows/digits.py in a flow with the same run through the driver alone."""
    from rich.console import Console
    from rich.table import Table

    by_driver, in_flow = digits(folder)
    by_driver(), in_flow()  # what is imported or asked once is no part of it
    driver, step = [], []
    for _ in range(REPEATS):
        driver.append(by_driver())
        step.append(in_flow())
    alone, face = statistics.median(driver), statistics.median(step)

    table = Table(title=f"the step of flows/digits.py, medians of {REPEATS} (from-to)")
    for name in ("in a flow", "the driver alone", "difference", "ratio"):
        table.add_column(name)
    table.add_row(
        f"{face:.2f} s ({min(step):.2f}-{max(step):.2f})",
        f"{alone:.2f} s ({min(driver):.2f}-{max(driver):.2f})",
        f"{face - alone:+.2f} s",
        f"{face / alone:.2f}",
    )
    Console(width=120).print(table)


def digits(folder: Path) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return two functions that score all digits anew and return the seconds it took."""
    sys.path.insert(0, str(ROOT / "flows"))
    import digits as example
    from prefect import flow

    from prefect_parallelrun import FileDataset, ParallelRunStep
    from prefect_parallelrun.driver.run import run_step

    log = logging.getLogger("prefect_face")
    log.setLevel(logging.ERROR)
    images = FileDataset.from_files(example.write_images.fn(folder / "images"))
    model = FileDataset.from_files(example.train_classifier.fn(folder / "model"))
    model = model.as_named_input("model").as_mount()
    step = ParallelRunStep(
        name="predict-digits",
        parallel_run_config=example.config,
        inputs=[images.as_named_input("images")],
        side_inputs=[model],
        arguments=["--model_dir", model],
        output=str(folder / "predictions"),
        allow_reuse=False,
    )
    numbers = itertools.count()

    def by_driver() -> float:
        run_id = f"run{next(numbers):03d}"
        began = time.perf_counter()
        run_step(step.definition(), run_folder=folder / "runs" / run_id, run_id=run_id, log=log)
        return time.perf_counter() - began

    @flow
    def in_flow() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    return by_driver, in_flow


def show_calls(folder: Path) -> None:
    """Count what flows of steps with more and more mini-batches ask of the API."""
    from rich.console import Console
    from rich.table import Table

    counted = dict(calls(folder))
    table = Table(title="requests to the API, and events, by one flow run with one step")
    table.add_column("kind", overflow="fold")
    for count, (_, seconds) in counted.items():
        table.add_column(f"{count:,} mini-batches, {seconds:.1f} s", justify="right")
    for kind in sorted(set().union(*(kinds for kinds, _ in counted.values()))):
        table.add_row(kind, *(str(kinds[kind] or "") for kinds, _ in counted.values()))
    table.add_section()
    table.add_row("together", *(str(kinds.total()) for kinds, _ in counted.values()))
    Console(width=120).print(table)


def calls(folder: Path) -> Iterator[tuple[int, tuple[Counter[str], float]]]:
    """Yield for each number of mini-batches what was asked, by kind, and the seconds."""
    from prefect import flow

    @flow
    def ask(count: int) -> None:
        without_input(folder, count)()

    with counting() as kinds:
        ask(1)
        for count in MINI_BATCHES:
            kinds.clear()
            began = time.perf_counter()
            ask(count)
            yield count, (Counter(kinds), time.perf_counter() - began)


def without_input(folder: Path, count: int) -> ParallelRunStep:
    """Return a step of so many mini-batches that do nothing."""
    from prefect_parallelrun import ParallelRunConfig, ParallelRunStep

    return ParallelRunStep(
        name="ask-prefect",
        parallel_run_config=ParallelRunConfig(
            source_directory=str(ROOT / "benchmarks" / "scripts"),
            entry_script="mark_start.py",
            process_count_per_node=2,
        ),
        inputs=[],
        arguments=["--rank_mini_batch_count", str(count), "--sleep", "0"],
        output=str(folder / "asked"),
        allow_reuse=False,
    )


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count what this process sends to the API from now on, below all of Prefect's clients."""
    import httpx
    from prefect.events.clients import PrefectEventsClient

    kinds: Counter[str] = Counter()
    sync, asynchronous = httpx.HTTPTransport, httpx.AsyncHTTPTransport
    send, send_async, emit = (
        sync.handle_request,
        asynchronous.handle_async_request,
        PrefectEventsClient._emit,
    )

    def count(request: httpx.Request) -> None:
        path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", request.url.path)
        kinds[f"{request.method} {path}"] += 1

    def counted(self, request):
        count(request)
        return send(self, request)

    async def counted_async(self, request):
        count(request)
        return await send_async(self, request)

    async def counted_event(self, event):
        kinds[f"event {event.event}"] += 1
        await emit(self, event)

    sync.handle_request = counted
    asynchronous.handle_async_request = counted_async
    PrefectEventsClient._emit = counted_event
    try:
        yield kinds
    finally:
        sync.handle_request = send
        asynchronous.handle_async_request = send_async
        PrefectEventsClient._emit = emit


if __name__ == "__main__":
    main()
