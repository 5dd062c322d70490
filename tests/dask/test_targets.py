"""A cluster that is not ours: Dask workers in processes of their own, other people's tasks on them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import dask
import distributed
import pytest

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


@pytest.fixture(scope="module")
def cluster():
    """Two Dask workers with one thread each, under nannies, as `dask worker` starts them."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


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


def test_an_address_where_nobody_answers_is_a_clear_error(run, numbers):
    """R205: no scheduler there: an error that names compute_target, within Dask's connect time-out."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"compute_target='tcp://127.0.0.1:9'"),
    ):
        run(ECHO, numbers, compute_target="tcp://127.0.0.1:9")
