"""Several steps of one flow at once, on a Dask cluster that they share."""

from __future__ import annotations

import time

import distributed
import pytest
from prefect import flow

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep

HOLDING = """
import os, time
from pathlib import Path

HERE = Path(os.environ["HERE"])

def run(mini_batch):
    deadline = time.monotonic() + 60
    while not (HERE / "go").exists():
        (HERE / f"holds-{os.getpid()}").touch()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [f"row {path.name} {path.read_text()}" for path in map(Path, mini_batch)]
"""


@pytest.fixture(scope="module")
def address():
    """Address of a Dask cluster with one worker, which has one thread."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster.scheduler_address


def test_a_step_ends_while_another_holds_every_process(files, read_rows, address, tmp_path):
    """R230, R240: submitted beside a long step, on the one thread of the cluster, a short one has its share."""
    holding = files.script.with_name("holding.py")
    holding.write_text(HOLDING)
    on_cluster = {"compute_target": address, "mini_batch_size": 1, "process_count_per_node": 1}
    here = {"HERE": str(tmp_path)}
    long = ParallelRunStep(
        "long-step",
        ParallelRunConfig(str(holding), environment_variables=here, **on_cluster),
        [FileDataset.from_files(str(files.data))],
    )
    short = files.step("short-step", config=on_cluster)

    @flow
    def both():
        first = long.submit()
        deadline = time.monotonic() + 40
        while not list(tmp_path.glob("holds-*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        second = short.submit().result()
        held = first.state.is_final()
        (tmp_path / "go").touch()
        return held, second, first.result()

    held, second, first = both()

    assert not held
    assert read_rows(second) == files.rows()
    assert read_rows(first) == files.rows()
