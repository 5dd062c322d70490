"""Clusters that grow and shrink while a run goes on, and Dask workers that come late or not at all."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import dask
import distributed
import psutil
import pytest

from prefect_parallelrun import ClusterError, DaskComputeTarget
from prefect_parallelrun.driver import tending, versions
from prefect_parallelrun.driver.demand import Demand, further
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from tests.dask.conftest import lines
from tests.dask.faults import until

LOCAL = {
    "n_workers": 0,
    "threads_per_worker": 2,
    "dashboard_address": "127.0.0.1:0",
    "memory_limit": 0,
}
SCRIPT = """
    import json, os, time
    from pathlib import Path

    def until(name):
        while not Path(os.environ["FOLDER"], name).exists():
            time.sleep(0.05)

    def run(mini_batch):
        name = Path(mini_batch[0]).name
        until("shrunk" if name == "99.txt" else "grown")
        return [name]

    def shutdown():
        Path(os.environ["FOLDER"], f"shutdown-{os.getpid()}").touch()
"""
EXPECTED = [f"{n:02d}.txt" for n in range(100)]


class Sizes:
    """Watches how many Dask workers a cluster has, and lets a script know when all are nodes, and when it shrank."""

    def __init__(self, cluster, folder, told, most):
        self.cluster = cluster
        self.told = told
        self.folder = folder
        self.most = most
        self.seen = []

    def __call__(self):
        there = len(self.cluster.scheduler_info["workers"])
        if [there] != self.seen[-1:]:
            self.seen.append(there)
        if sum(" joined: " in text for text in self.told()) == self.most:
            (self.folder / "grown").touch()
        if (self.folder / "grown").exists() and there < self.most:
            (self.folder / "shrunk").touch()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_an_adaptive_cluster_grows_and_shrinks_during_a_run(
    run, numbers, tmp_path, monkeypatch, caplog
):
    """R230, R214: from no Dask worker to one for each node that is wanted, and to fewer when one has nothing to do.

    Its `maximum` is not reached: more nodes were not wanted.
    """
    caplog.set_level(logging.INFO, "test")
    monkeypatch.setattr(tending, "LET_GO_S", 1.0)

    def told():
        return [record.getMessage() for record in caplog.records]

    with distributed.LocalCluster(**LOCAL) as cluster:
        cluster.adapt(minimum=0, maximum=5, interval="500ms")
        sizes = Sizes(cluster, tmp_path, told, most=3)

        result = run(
            SCRIPT,
            numbers,
            mini_batch_size=1,
            node_count=3,
            process_count_per_node=2,
            compute_target=cluster.scheduler_address,
            environment_variables={"FOLDER": str(tmp_path)},
            watch=sizes,
        )

        with distributed.Client(cluster, set_as_default=False) as client:
            left = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))

    assert left == []
    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (100, 0)
    assert max(sizes.seen) == 3
    assert len([*tmp_path.glob("shutdown-*")]) == 6
    [let_go] = [text for text in told() if tending.NOTHING_TO_DO in text]
    assert " left: " in let_go
    with Journal(RunPaths(Path(result.run_directory)).journal) as journal:
        reasons = [node.reason for node in journal.nodes()]
        assert reasons.count(tending.NOTHING_TO_DO) == 1
        assert all(process.ended_at for process in journal.processes())


def test_an_adaptive_cluster_is_asked_for_more_in_place_of_what_cannot_be_a_node(
    run, numbers, tmp_path, monkeypatch, caplog
):
    """R230: a Dask worker of another version is no node that is still to come."""
    caplog.set_level(logging.INFO, "test")
    monkeypatch.setattr(tending, "TEND_S", 0.2)
    real = versions.trouble
    unfit = []

    def trouble(there):
        if not unfit:
            unfit.append("there is another version")
            return unfit[0]
        return real(there)

    monkeypatch.setattr(versions, "trouble", trouble)
    with distributed.LocalCluster(**{**LOCAL, "n_workers": 2, "processes": False}) as cluster:
        cluster.adapt(minimum=2, maximum=5, interval="200ms")

        def watch():
            if any("node001 joined" in record.getMessage() for record in caplog.records):
                for name in ("grown", "shrunk"):
                    (tmp_path / name).touch()

        result = run(
            SCRIPT,
            numbers,
            mini_batch_size=1,
            node_count=2,
            process_count_per_node=1,
            compute_target=cluster.scheduler_address,
            environment_variables={"FOLDER": str(tmp_path)},
            watch=watch,
        )

    assert result.items.succeeded == 100
    [told] = [r.getMessage() for r in caplog.records if unfit[0] in r.getMessage()]
    assert told.startswith("Some Dask workers cannot be nodes, and the run goes on without: ")


def test_a_cluster_does_not_grow_without_end_where_nothing_that_comes_can_be_a_node():
    """R230: an image with another version of this package, and no `maximum`."""
    nodes, useless, node_count = 1, 2, 3
    grown = [nodes + useless]
    while more := further(node_count - nodes, 0, useless, node_count):
        useless += more
        grown.append(nodes + useless)

    assert grown == [3, 5, 6]


def test_an_adaptive_cluster_is_asked_as_long_as_nodes_are_wanted():
    """R230: where the scheduler fails tasks that wait for long, it is asked again."""
    limit = {"distributed.scheduler.no-workers-timeout": "500ms"}
    with (
        dask.config.set(limit),
        distributed.LocalCluster(**{**LOCAL, "n_workers": 1, "processes": False}) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        demand = Demand(client, name="test-wanted", target_s=None, log=logging.getLogger("test"))

        def want(workers):
            asked = asyncio.run_coroutine_threadsafe(
                demand.want(workers, (2,)), client.loop.asyncio_loop
            )
            asked.result(10)

        def is_asked_for(workers):
            return cluster.scheduler.adaptive_target() == workers

        want(3)
        until(lambda: is_asked_for(3))
        until(lambda: not is_asked_for(3))
        for _ in range(3):
            want(3)
        until(lambda: is_asked_for(3))
        want(0)
        until(lambda: not cluster.scheduler.tasks)


@pytest.mark.slow
def test_a_cluster_of_a_class_lives_as_long_as_its_run(run, numbers, tmp_path):
    """R230: a class given as a string, with its limits: started for the run, and no process of it is left."""
    target = DaskComputeTarget(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs=LOCAL,
        adapt_kwargs={"minimum": 0, "maximum": 2, "interval": "500ms"},
    )
    before = {child.pid for child in psutil.Process().children(recursive=True)}

    result = run(
        """
        import os
        from pathlib import Path

        def run(mini_batch):
            Path(os.environ["FOLDER"], f"parent-{os.getppid()}").touch()
            return [Path(path).name for path in mini_batch]
        """,
        numbers,
        mini_batch_size=10,
        node_count=1,
        compute_target=target,
        environment_variables={"FOLDER": str(tmp_path)},
    )

    assert lines(result) == EXPECTED
    assert len([*tmp_path.glob("parent-*")]) == 1
    after = psutil.Process().children(recursive=True)
    left = [child for child in after if child.pid not in before and not is_dasks_own(child)]
    assert left == []


def is_dasks_own(process):
    """Whether it is one that Python's multiprocessing keeps for this process, cluster or not."""
    return any("resource_tracker" in word or "forkserver" in word for word in process.cmdline())


def test_a_dask_worker_that_comes_late_is_used(run, numbers, tmp_path, monkeypatch, caplog):
    """R230: a run begins with fewer nodes than wanted, says so, and takes in the one that comes."""
    caplog.set_level(logging.INFO, "test")
    monkeypatch.setattr(tending, "TELL_S", (0.2, 600))
    with distributed.LocalCluster(**{**LOCAL, "n_workers": 1, "processes": False}) as cluster:
        told = []

        def add_one():
            waiting = [r.getMessage() for r in caplog.records if "waiting for" in r.getMessage()]
            if waiting and not told:
                told.extend(waiting)
                cluster.scale(2)
            if any("node001 joined" in record.getMessage() for record in caplog.records):
                for name in ("grown", "shrunk"):
                    (tmp_path / name).touch()

        result = run(
            SCRIPT,
            numbers,
            mini_batch_size=1,
            node_count=2,
            process_count_per_node=1,
            compute_target=cluster.scheduler_address,
            environment_variables={"FOLDER": str(tmp_path)},
            watch=add_one,
        )

    assert lines(result) == EXPECTED
    assert told[0].startswith("waiting for 1 of 2 nodes for ")
    assert "the cluster has 1 Dask worker;" in told[0]
    stdout = Path(result.logs_directory, "user", "stdout")
    assert sorted(folder.name for folder in stdout.iterdir()) == ["node000", "node001"]


def test_a_cluster_to_which_no_dask_worker_comes(run, numbers):
    """R230, R205: the error names compute_target, the limit, and what to do."""
    with (
        distributed.LocalCluster(**LOCAL) as empty,
        pytest.raises(ClusterError) as caught,
    ):
        run(
            SCRIPT,
            numbers,
            compute_target=empty.scheduler_address,
            arguments=("--first_task_creation_timeout", 1),
            environment_variables={"FOLDER": os.devnull},
        )

    text = str(caught.value)
    assert f"compute_target={empty.scheduler_address!r}: there was no node" in text
    assert "--first_task_creation_timeout 1)" in text
    assert "Start Dask workers" in text
