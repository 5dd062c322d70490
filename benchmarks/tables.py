"""Scoring a large CSV with a scikit-learn model, against other ways to do it on the same machine.

`python benchmarks/tables.py [--quick] [--ray-python PYTHON]`, a few minutes; nothing else should run
meanwhile. Each way is a process of its own, timed from its start to its end, two processes at work in
each; rates are relative to a bare pool of two processes, once as they are and once without what a
thousand rows take, which is start-up. `--ray-python` names the Python of an
environment with ray[data], dask.dataframe and scikit-learn; without it these two are left out.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# Only the standard library up here: each way pays for its own imports, and for no other's.
if TYPE_CHECKING:
    import pandas as pd

    from prefect_parallelrun.result import ParallelRunResult

PROCESSES = 2
REPEATS = 3
ROWS = 2_000_000
FEATURES = 8
RANGE = 1 << 20
OVERLAP_BYTES = 8 << 20
SCRIPTS = Path(__file__).resolve().parent / "scripts"
QUIET = {
    # One thread to a process, in every way alike.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
}


def main() -> None:
    """Measure everything and print the table; or, as a process of its own, score in one way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once each")
    parser.add_argument("--ray-python", help="Python with ray[data], dask.dataframe, scikit-learn")
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        WAYS[options.way](options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="parallelrun-tables-") as name:
        folder = Path(name)
        os.environ.update(QUIET, PREFECT_HOME=name)
        rows = ROWS // 10 if options.quick else ROWS
        make(folder, rows, options.ray_python or sys.executable)
        repeats = 1 if options.quick else REPEATS
        show(rows, repeats, [*scoring(folder, rows, repeats, options.ray_python)])
        overlap(folder, repeats)


def make(folder: Path, rows: int, python: str) -> None:
    """Make the table, and a model trained on its first rows; by seed, the same each time."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from pyarrow import csv

    random = np.random.default_rng(7)
    features = {f"f{n}": random.normal(size=rows).round(4) for n in range(FEATURES)}
    frame = pd.DataFrame({"id": np.arange(rows), **features})
    csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), folder / "table.csv")
    # By the oldest interpreter that reads it, since scikit-learn refuses no pickle of an older one.
    subprocess.run([python, __file__, "--way", "train", "--folder", folder], check=True)


def train(folder: Path) -> None:
    """Train a small network: to apply it takes about as long as to read the rows that it is for."""
    import pandas as pd
    from sklearn.neural_network import MLPClassifier

    head = pd.read_csv(folder / "table.csv", nrows=4_000)
    features = head.drop(columns="id").to_numpy()
    model = MLPClassifier((60,), max_iter=30, random_state=7, tol=0.1)
    model.fit(features, features[:, :3].sum(axis=1) > features[:, 3])
    (folder / "model.pickle").write_bytes(pickle.dumps(model))


Way = tuple[str, float, float]
"""What it is called, and the seconds of its process: for the table, and for its first thousand rows."""


def scoring(folder: Path, rows: int, repeats: int, ray_python: str | None) -> Iterator[Way]:
    """Score the table in each way in turn, and that several times; all have to give the same rows."""
    ways = {"pool": sys.executable, "ours": sys.executable}
    if ray_python:
        ways |= {"dask": ray_python, "ray": ray_python}
    small = folder / "small"
    small.mkdir()
    with (folder / "table.csv").open("rb") as table:
        (small / "table.csv").write_bytes(b"".join(itertools.islice(table, 1_001)))
    (small / "model.pickle").write_bytes((folder / "model.pickle").read_bytes())
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, python in ways.items():
            whole, start_up = (scored_in(place, way, python) for place in (folder, small))
            seconds[way].append((whole, start_up))
            check(folder, way, rows)
    for way, some in seconds.items():
        whole, start_up = (statistics.median(column) for column in zip(*some, strict=True))
        yield NAMES[way], whole, start_up


def scored_in(folder: Path, way: str, python: str) -> float:
    """Return the seconds of a process that scores the table of a folder."""
    began = time.perf_counter()
    command = [python, __file__, "--way", way, "--folder", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def check(folder: Path, way: str, rows: int) -> None:
    """Refuse a result that is not that of the pool: rows in the order of the input, but for Ray."""
    found = (folder / f"{way}.txt").read_bytes()
    expected = (folder / "pool.txt").read_bytes()
    if way == "ray":
        found, expected = (b"\n".join(sorted(text.splitlines())) for text in (found, expected))
    assert expected.count(b"\n") >= rows - 1
    assert found == expected, f"{way}: {len(found):,} bytes, and the pool wrote {len(expected):,}"


def overlap(folder: Path, repeats: int) -> None:
    """Print how well loading hides behind a `run()` that takes as long: against `run()` alone."""
    from prefect_parallelrun.datasets import TabularDataset
    from prefect_parallelrun.planning import make_plan
    from prefect_parallelrun_runtime.load import load

    dataset = TabularDataset.from_delimited_files(folder / "table.csv")
    plan = make_plan(
        [dataset], [dataset.list_files()], mini_batch_size=OVERLAP_BYTES, scratch=folder
    )
    seconds = []
    for mini_batch in plan:
        began = time.perf_counter()
        load(mini_batch.work, plan.readers[0])
        seconds.append(time.perf_counter() - began)
    wait = statistics.median(seconds)
    ratios = []
    for _ in range(repeats):
        result = run_ours(
            folder, ["--wait", str(wait)], 1, OVERLAP_BYTES, output_action="summary_only"
        )
        text = "".join(file.read_text() for file in Path(result.output).iterdir())
        spans = [tuple(map(float, row.split())) for row in text.splitlines()]
        alone = sum(ended - began for began, ended in spans)
        ratios.append(alone / (max(spans)[1] - min(spans)[0]))
    print(
        f"loading overlapped with run(), {1000 * wait:.0f} ms each, one process: "
        f"{statistics.median(ratios):.2f} of run() alone (goal ≥ 0.9)"
    )


def by_ours(folder: Path) -> None:
    """Score with this package."""
    result = run_ours(folder, ["--model", str(folder / "model.pickle")], PROCESSES, RANGE)
    assert result.append_row_file is not None
    Path(result.append_row_file).replace(folder / "ours.txt")


def run_ours(
    folder: Path,
    arguments: list[str],
    processes: int,
    size: int,
    output_action: Literal["append_row", "summary_only"] = "append_row",
) -> ParallelRunResult:
    """Run a step through the driver."""
    from prefect_parallelrun import ParallelRunConfig, TabularDataset
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver.run import run_step

    log = logging.getLogger("tables")
    log.setLevel(logging.ERROR)
    run_id = f"run{time.time_ns()}"
    definition = StepDefinition(
        name="tables",
        config=ParallelRunConfig(
            source_directory=str(SCRIPTS),
            entry_script="score_table.py",
            process_count_per_node=processes,
            mini_batch_size=str(size),
            error_threshold=0,
            output_action=output_action,
        ),
        inputs=(TabularDataset.from_delimited_files(folder / "table.csv"),),
        arguments=tuple(arguments),
    )
    return run_step(definition, run_folder=folder / "runs" / run_id, run_id=run_id, log=log)


def by_pool(folder: Path) -> None:
    """Score with a pool of processes, each of which reads byte ranges with Arrow."""
    import multiprocessing

    path = folder / "table.csv"
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.readline()
    names = header.decode().replace('"', "").strip().split(",")
    starts = range(0, size, RANGE)
    work = [(str(path), max(start, len(header)), start + RANGE, names) for start in starts]
    model = (folder / "model.pickle").read_bytes()
    with (
        multiprocessing.Pool(PROCESSES, _prepare, (model,)) as pool,
        (folder / "pool.txt").open("wb") as output,
    ):
        for text in pool.imap(_score_range, work):
            output.write(text)


_model: Any = None


def _prepare(model: bytes) -> None:
    global _model
    _model = pickle.loads(model)


def _score_range(work: tuple[str, int, int, list[str]]) -> bytes:
    import pyarrow as pa
    from pyarrow import csv

    path, start, end, names = work
    with Path(path).open("rb", buffering=0) as file:
        file.seek(start - 1)
        rows = file.read(end - start + 1)
        rows = rows[rows.index(b"\n") + 1 :]
        while rows and not rows.endswith(b"\n"):
            more = file.read(4096)
            if not more:
                break
            rows += more[: more.find(b"\n") + 1 or None]
    options = csv.ReadOptions(use_threads=False, column_names=names, block_size=len(rows) + 1)
    frame = csv.read_csv(pa.py_buffer(rows), options).to_pandas(use_threads=False)
    return _scored(frame, _model).to_csv(sep=" ", header=False, index=False).encode()


def _scored(frame: pd.DataFrame, model: Any) -> pd.DataFrame:
    import pandas as pd

    labels = model.predict(frame.drop(columns="id").to_numpy())
    return pd.DataFrame({"id": frame["id"], "label": labels})


def by_dask(folder: Path) -> None:
    """Score with dask.dataframe, in processes, and write one file."""
    import dask.dataframe as dd

    model = pickle.loads((folder / "model.pickle").read_bytes())
    # Partitions of 16 MB: faster here than its default of 64 MB, and than 1 MB.
    table = dd.read_csv(str(folder / "table.csv"), blocksize=16 << 20)
    meta = {"id": "int64", "label": "bool"}
    scored = table.map_partitions(_scored, model, meta=meta)
    scored.to_csv(
        str(folder / "dask.txt"),
        single_file=True,
        sep=" ",
        header=False,
        index=False,
        compute_kwargs={"scheduler": "processes", "num_workers": PROCESSES},
    )


class _Scorer:
    def __init__(self, model: bytes) -> None:
        self.model = pickle.loads(model)

    def __call__(self, frame: pd.DataFrame) -> pd.DataFrame:
        return _scored(frame, self.model)


def by_ray(folder: Path) -> None:
    """Score with Ray Data: two actors with the model, and the rows written as they come."""
    import ray
    import ray.data

    ray.init(num_cpus=PROCESSES, include_dashboard=False, logging_level="ERROR")
    model = (folder / "model.pickle").read_bytes()
    table = ray.data.read_csv(str(folder / "table.csv"))
    scored = table.map_batches(
        _Scorer,
        fn_constructor_args=(model,),
        batch_format="pandas",
        batch_size=16_384,
        # Half a core each leaves the other half for the tasks that read.
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=PROCESSES),
    )
    with (folder / "ray.txt").open("wb") as output:
        for frame in scored.iter_batches(batch_format="pandas", batch_size=None):
            output.write(frame.to_csv(sep=" ", header=False, index=False).encode())
    ray.shutdown()


WAYS: dict[str, Callable[[Path], None]] = {
    "train": train,
    "pool": by_pool,
    "ours": by_ours,
    "dask": by_dask,
    "ray": by_ray,
}
NAMES = {
    "pool": "bare pool of processes over byte ranges",
    "ours": "prefect-parallelrun",
    "dask": "dask.dataframe, map_partitions",
    "ray": "Ray Data, map_batches",
}


def show(rows: int, repeats: int, ways: list[Way]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    what = f"{rows:,} rows, {PROCESSES} processes, {os.cpu_count()} cores, whole process"
    table = Table(title=f"{what}, medians of {repeats}")
    table.add_column("way")
    names = ("seconds", "start-up", "rows per second", "of the pool", "goal", "without start-up")
    for name in names:
        table.add_column(name, justify="right")
    _, pool, pool_start = next(way for way in ways if way[0] == NAMES["pool"])
    for name, seconds, start_up in ways:
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{start_up:.2f}",
            f"{rows / seconds:,.0f}",
            f"{pool / seconds:.2f}",
            "≥ 0.95" if name == NAMES["ours"] else "",
            # Differences of less than a second are noise.
            f"{(pool - pool_start) / (seconds - start_up):.2f}" if seconds > start_up + 1 else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
