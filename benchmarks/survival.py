"""What is left when one of twenty items kills its process, hangs, or raises: this product and its peers.

`python benchmarks/survival.py`, about two minutes. Each is measured in a process of its own, two
workers each, and is ended after twenty seconds. A peer that has a time-out for one call gets the same
as ours; the items themselves note that they were begun, so re-runs are counted by nobody's books.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from survive import POISON, work  # noqa: E402  (worker processes of the peers find it there too)

ITEMS = 20
PROCESSES = 2
TIMEOUT_S = 2.0
"""For one call, where that can be set."""
LIMIT_S = 20.0
"""Whoever is not through by then hangs."""
TOGETHER = 10
"""Items of a mini-batch, where there are several."""
BY_TENS = f"ours, of {TOGETHER}, isolate_failures"
POISONS = ("exits", "hangs", "raises")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measurement."""

    who: str
    poison: str
    good: int
    """Good items of which the caller got the result."""
    seconds: float | None
    """From the call to its end, the start of the workers included; None: it had to be ended."""
    reruns: int
    """Of good items outside the poison's mini-batch."""
    halving: int
    """Of good items in the poison's mini-batch, where that holds more than one."""
    said: str
    """What the caller was told at the end."""


Deliver = Callable[[Iterable[Any]], None]
"""Notes results as the caller gets them."""


def main() -> None:
    """Measure all and print the table; or, as `--peer`, be one of those measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only those with this in their name")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--poison", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        be_measured(arguments.peer, arguments.poison, arguments.folder)
        return
    print(f"{ITEMS} items, one is poison; {PROCESSES} processes; time-out {TIMEOUT_S:g} s\n")
    print(
        "| who | poison | good results | seconds | re-runs of good items | what the caller is told |"
    )
    print("|---|---|---:|---:|---:|---|")
    for poison in POISONS:
        for who, (module, _) in PEERS.items():
            if arguments.only in who:
                show(measure(who, poison) if find_spec(module) else None, who, poison)


def show(line: Line | None, who: str, poison: str) -> None:
    """Print a row of the table."""
    if line is None:
        print(f"| {who} | {poison} | | | | not installed |")
        return
    seconds = f"> {LIMIT_S:g}" if line.seconds is None else f"{line.seconds:.1f}"
    good = f"{line.good} of {ITEMS - 1}"
    reruns = f"{line.reruns}" + (f" (and {line.halving} beside it)" if line.halving else "")
    print(f"| {who} | {poison} | {good} | {seconds} | {reruns} | {line.said} |", flush=True)


def measure(who: str, poison: str) -> Line:
    """Run one of them in a process of its own, and read what the items and the caller noted."""
    with tempfile.TemporaryDirectory(prefix="parallelrun-bench-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, "--peer", who, "--poison", poison, "--folder", name],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(SCRIPTS), "DO_NOT_TRACK": "1"},
            )
            deadline = time.time() + LIMIT_S + 10  # its imports take some seconds, too
            while not noted(folder / "took") and process.poll() is None:
                begun = noted(folder / "began")
                if time.time() > deadline or (begun and time.time() - float(begun[0]) > LIMIT_S):
                    break
                time.sleep(0.05)
            end(process)
        delivered = {int(item) for item in noted(folder / "delivered")}
        runs = Counter(int(item) for item in noted(folder / "runs"))
        took = noted(folder / "took")
        beside = range(TOGETHER) if who == BY_TENS else ()
        again = {item: count - 1 for item, count in runs.items() if item != POISON}
        return Line(
            who=who,
            poison=poison,
            good=len(delivered - {POISON}),
            seconds=float(took[0]) if took else None,
            reruns=sum(count for item, count in again.items() if item not in beside),
            halving=sum(count for item, count in again.items() if item in beside),
            said=" ".join(noted(folder / "said"))[:90] or ("" if took else "nothing: it hangs"),
        )


def be_measured(who: str, poison: str, folder: Path) -> None:
    """Do the work as `who` does it; note results as they come, and how it ended."""

    def deliver(items: Iterable[Any]) -> None:
        with (folder / "delivered").open("a", buffering=1) as file:
            for item in items:
                file.write(f"{item}\n")

    module, run = PEERS[who]
    __import__(module)
    (folder / "began").write_text(f"{time.time()}\n")
    began = time.monotonic()
    try:
        run(poison, str(folder), deliver)
    except Exception as error:
        (folder / "said").write_text(f"{type(error).__name__}: {error}".partition("\n")[0])
    (folder / "took").write_text(f"{time.monotonic() - began}\n")
    signal.pause()  # the end comes from outside: a peer's own exit handlers would wait for what hangs


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started; it lives, so that these are still its descendants."""
    import psutil

    family = [psutil.Process(process.pid)]
    with contextlib.suppress(psutil.Error):
        family += family[0].children(recursive=True)
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()


def noted(file: Path) -> list[str]:
    """Return the lines of a file, if it is there."""
    return file.read_text().splitlines() if file.exists() else []


# -- those who are measured ------------------------------------------------------------------


def ours(mini_batch_size: int, poison: str, folder: str, deliver: Deliver) -> None:
    """Run the items as files, one attempt each."""
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.datasets import FileDataset
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver.run import run_step

    data = Path(folder, "data")
    data.mkdir()
    for item in range(ITEMS):
        (data / f"{item:02d}").write_text("")
    definition = StepDefinition(
        name="survival",
        config=ParallelRunConfig(
            "survive.py",
            source_directory=str(SCRIPTS),
            mini_batch_size=mini_batch_size,
            process_count_per_node=PROCESSES,
            run_invocation_timeout=TIMEOUT_S,
            run_max_try=1,
            isolate_failures=mini_batch_size > 1,
            error_threshold=1,
        ),
        inputs=(FileDataset.from_files(str(data)),),
        arguments=("--poison", poison, "--folder", folder),
    )
    log = logging.getLogger("survival")
    result = run_step(definition, run_folder=Path(folder, "run"), run_id="run", log=log)
    assert result.append_row_file is not None
    deliver(Path(result.append_row_file).read_text().split())
    Path(folder, "said").write_text(result.state)


def ours_one_by_one(poison: str, folder: str, deliver: Deliver) -> None:
    """Run mini-batches of one item."""
    ours(1, poison, folder, deliver)


def ours_by_tens(poison: str, folder: str, deliver: Deliver) -> None:
    """Run mini-batches of ten items, of which the bad one is found by halving."""
    ours(TOGETHER, poison, folder, deliver)


def pebble(poison: str, folder: str, deliver: Deliver) -> None:
    """Schedule each item with a time-out."""
    from pebble import ProcessPool

    with ProcessPool(max_workers=PROCESSES) as pool:
        futures = [
            pool.schedule(work, [n, poison, folder], timeout=TIMEOUT_S) for n in range(ITEMS)
        ]
        for future in futures:
            deliver(_result(future.result, folder))


def executor(poison: str, folder: str, deliver: Deliver) -> None:
    """Submit each item; a call cannot be given a time-out."""
    from concurrent.futures import ProcessPoolExecutor, as_completed

    pool = ProcessPoolExecutor(PROCESSES)
    for future in as_completed([pool.submit(work, n, poison, folder) for n in range(ITEMS)]):
        deliver(_result(future.result, folder))


def joblib(poison: str, folder: str, deliver: Deliver) -> None:
    """Take the results as they come; the time-out of one call ends the whole."""
    from joblib import Parallel, delayed

    calls = (delayed(work)(n, poison, folder) for n in range(ITEMS))
    parallel = Parallel(
        PROCESSES, backend="loky", timeout=TIMEOUT_S, return_as="generator_unordered", batch_size=1
    )
    deliver(parallel(calls))


def dask_futures(poison: str, folder: str, deliver: Deliver) -> None:
    """Submit each item; a task cannot be given a time-out."""
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=PROCESSES,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        futures = client.map(work, range(ITEMS), poison=poison, folder=folder, pure=False)
        for future in distributed.as_completed(futures):
            deliver(_result(future.result, folder))


def ray_data(poison: str, folder: str, deliver: Deliver) -> None:
    """Map over the items, a block each; one block may fail."""
    import ray

    ray.init(num_cpus=PROCESSES, logging_level=logging.ERROR, include_dashboard=False)
    ray.data.DataContext.get_current().max_errored_blocks = 1
    items = ray.data.from_items(list(range(ITEMS)), override_num_blocks=ITEMS)
    rows = items.map(lambda row: {"item": work(row["item"], poison, folder)})
    deliver(row["item"] for row in rows.iter_rows())


def _result(get: Callable[[], Any], folder: str) -> Iterator[Any]:
    """Yield a call's result; note an error instead."""
    try:
        yield get()
    except Exception as error:
        Path(folder, "said").write_text(f"{type(error).__name__}: {error}".partition("\n")[0])


PEERS: dict[str, tuple[str, Callable[[str, str, Deliver], None]]] = {
    "ours, mini-batches of 1": ("prefect_parallelrun.driver.run", ours_one_by_one),
    BY_TENS: ("prefect_parallelrun.driver.run", ours_by_tens),
    "pebble": ("pebble", pebble),
    "concurrent.futures": ("concurrent.futures", executor),
    "joblib (loky)": ("joblib", joblib),
    "Dask futures": ("distributed", dask_futures),
    "Ray Data": ("ray", ray_data),
}
"""By name: the module that must be installed, and how the work is done."""

if __name__ == "__main__":
    main()
