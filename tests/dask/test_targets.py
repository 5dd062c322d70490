"""A cluster that is not ours: Dask workers in processes of their own, other people's tasks on them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import distributed
import psutil
import pytest

from prefect_parallelrun.driver.cluster import Cluster
from prefect_parallelrun.errors import ClusterError
from tests.dask.conftest import lines

ECHO = """
    import os, time
    from pathlib import Path

    def run(mini_batch):
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(f"{Path(mini_batch[0]).name} {os.getpid()}\\n")
        time.sleep(0.02)
        return [Path(p).name for p in mini_batch]
"""
EXPECTED = [f"{n:02d}.txt" for n in range(100)]


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


def test_a_run_by_address_uses_its_workers_and_leaves_nothing_on_them(
    run, numbers, client, cluster, tmp_path
):
    """R230, R33: two nodes of an existing cluster; plugins, tasks and folders are gone afterwards."""
    before = set(client.run(lambda dask_worker: sorted(dask_worker.plugins)).popitem()[1])

    result = run(
        ECHO,
        numbers,
        mini_batch_size=1,
        node_count=2,
        process_count_per_node=1,
        compute_target=cluster.scheduler_address,
        environment_variables={"SEEN": str(tmp_path / "seen")},
    )

    assert lines(result) == EXPECTED
    pids = {line.split()[1] for line in (tmp_path / "seen").read_text().splitlines()}
    assert len(pids) == 2
    after = client.run(lambda dask_worker: sorted(dask_worker.plugins))
    assert all(set(plugins) == before for plugins in after.values())
    assert not any(client.run(lambda dask_worker: list(dask_worker.state.tasks)).values())
    logs = Path(result.logs_directory, "user", "stdout")
    assert sorted(p.name for p in logs.iterdir()) == ["node000", "node001"]


def test_other_peoples_tasks_go_on_while_a_run_waits(run, numbers, client, cluster, tmp_path):
    """A node's waiting bundles hold no thread of the Dask worker."""
    others = []

    def use_the_cluster():
        (tmp_path / "seen").touch()
        others.append(client.submit(sum, [1, 2, 3], pure=False).result(30))

    thread = threading.Thread(target=use_the_cluster)
    thread.start()
    result = run(
        ECHO,
        numbers,
        mini_batch_size=5,
        process_count_per_node=1,
        compute_target=cluster,
        error_threshold=-1,
        environment_variables={"SEEN": str(tmp_path / "seen")},
    )
    thread.join()

    assert others == [6]
    assert lines(result) == EXPECTED


def test_a_dask_worker_that_is_killed_changes_nothing_in_the_output(
    run, numbers, client, cluster, tmp_path
):
    """R86, R200: its mini-batches run elsewhere, at no cost in attempts; every row is there once."""
    seen = tmp_path / "seen"
    victim = next(iter(client.run(os.getpid).values()))

    def kill_once_it_works():
        while not seen.exists() or len(seen.read_text().splitlines()) < 10:
            threading.Event().wait(0.01)
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill_once_it_works)
    thread.start()
    result = run(
        ECHO,
        numbers,
        mini_batch_size=1,
        node_count=2,
        process_count_per_node=1,
        compute_target=cluster.scheduler_address,
        environment_variables={"SEEN": str(seen)},
    )
    thread.join()

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (100, 0)


def test_the_embedded_cluster_does_not_profile_the_flow():
    """R205: Dask's profiler can lock up a Python 3.11 for good, and it would be the flow's own."""
    cluster = Cluster(None, node_count=1, step="test-step", log=logging.getLogger("test"))
    try:
        [worker] = cluster._target._scalable.workers.values()
        assert "profile" not in worker.periodic_callbacks
    finally:
        cluster.close(gracefully=False)


def test_an_address_where_nobody_answers_is_a_clear_error(run, numbers):
    """R205: no scheduler there: an error that names compute_target, within Dask's connect time-out."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"compute_target='tcp://127.0.0.1:9'"),
    ):
        run(ECHO, numbers, compute_target="tcp://127.0.0.1:9")


def plugins_of_ours(client):
    """Names of this product's plugins on all Dask workers."""
    found = client.run(lambda dask_worker: sorted(dask_worker.plugins))
    return [name for names in found.values() for name in names if name.startswith("parallelrun")]


def until(condition, seconds=30):
    """Wait for a condition, and fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come"
        threading.Event().wait(0.05)


def test_a_node_that_is_still_joining_when_the_run_ends_is_ended_too(run, numbers, client, cluster):
    """Nothing of ours is left on a Dask worker that was too busy to become a node in time."""
    busy = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    blocked = client.submit(hold_the_interpreter, 3, workers=[busy], pure=False)
    until(lambda: client.processing()[busy])

    result = run(
        "def run(mini_batch): return mini_batch",
        numbers,
        node_count=2,
        process_count_per_node=1,
        compute_target=cluster.scheduler_address,
    )

    assert result.items.succeeded == 100
    assert plugins_of_ours(client) == []
    blocked.result(30)


def hold_the_interpreter(seconds):
    """Sleep in C code that does not let go of the interpreter's lock."""
    import ctypes

    ctypes.PyDLL(None).sleep(seconds)


DRIVER = """
import logging, sys
from pathlib import Path
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step

folder = Path(sys.argv[1])
definition = StepDefinition(
    name="killed-step",
    config=ParallelRunConfig(
        "score.py", source_directory=str(folder), compute_target=sys.argv[2],
        node_count=2, process_count_per_node=1, run_invocation_timeout=300,
    ),
    inputs=(FileDataset.from_files(sys.argv[3]),),
)
run_step(definition, run_folder=folder / "run", run_id="killed", log=logging.getLogger())
"""


def test_when_the_driver_is_killed_its_nodes_end(numbers, client, cluster, tmp_path):
    """R205: kill -9 of the driver: agents, supervisors and worker processes are gone in moments."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "score.py").write_text(
        "import os, time\n"
        "def run(mini_batch):\n"
        f"    open('{tmp_path}/pids', 'a').write(f'{{os.getpid()}}\\n')\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "driver.py").write_text(DRIVER)
    pids = tmp_path / "pids"
    command = [sys.executable, tmp_path / "driver.py", source, cluster.scheduler_address, numbers]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as driver:
        try:
            until(lambda: pids.exists() and len(pids.read_text().split()) >= 2)
        finally:
            driver.kill()

    until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()), 10)
    until(lambda: plugins_of_ours(client) == [], 10)


def test_a_cluster_without_workers_is_waited_for_and_then_given_up(run, numbers):
    """R105, R205: --first_task_creation_timeout: no Dask worker comes: an error that says so."""
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        pytest.raises(ClusterError, match="first_task_creation_timeout 1"),
    ):
        run(
            ECHO,
            numbers,
            compute_target=empty.scheduler_address,
            arguments=("--first_task_creation_timeout", 1),
        )


def test_a_scheduler_that_dies_ends_the_run_with_a_clear_error(run, numbers, tmp_path):
    """R205: no scheduler any more: an error that says so, instead of waiting for progress."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as doomed,
        # So long a client calls a scheduler that is gone; to meet one that is there may take a while.
        dask.config.set(
            {"distributed.comm.timeouts.connect": "3s", "distributed.client.heartbeat": "200ms"}
        ),
    ):
        thread = threading.Thread(
            target=lambda: (until(lambda: (tmp_path / "seen").exists()), doomed.close())
        )
        thread.start()
        with pytest.raises(ClusterError, match="is lost for good"):
            run(
                ECHO,
                numbers,
                mini_batch_size=1,
                process_count_per_node=1,
                compute_target=doomed.scheduler_address,
                environment_variables={"SEEN": str(tmp_path / "seen")},
            )
        thread.join()
