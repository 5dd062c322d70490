"""compute_target="task-runner": the Dask cluster of the flow's own DaskTaskRunner (R230)."""

from __future__ import annotations

from pathlib import Path

import distributed
import pytest
from prefect import flow, task
from prefect_dask import DaskTaskRunner, get_dask_client

from prefect_parallelrun import ConfigError
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths

ON_THE_FLOWS_CLUSTER = {"compute_target": "task-runner", "mini_batch_size": 1}


@pytest.fixture(scope="module")
def cluster():
    """One Dask worker with one thread: a step that held it would wait for its own nodes for ever."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def runner(cluster):
    """The task runner of a flow, with that cluster."""
    return DaskTaskRunner(address=cluster.scheduler_address)


def nodes_of(result):
    """The addresses of the Dask workers that were nodes of a run."""
    with Journal(RunPaths(Path(result.run_directory)).journal) as journal:
        return {node.address for node in journal.nodes()}


def left_behind(client):
    """What a run has left on the Dask workers: plugins and tasks of ours."""
    plugins = client.run(lambda dask_worker: list(dask_worker.plugins))
    ours = [name for names in plugins.values() for name in names if name.startswith("parallelrun")]
    return ours


@pytest.mark.timeout(150)
def test_two_steps_submitted_to_one_thread(files, read_rows, runner, cluster):
    """R230: each is a task on the one Dask worker, lets go of its thread, and has that worker as its node."""
    one, two = (files.step(f"step-{n}", config=ON_THE_FLOWS_CLUSTER) for n in ("one", "two"))

    @flow(task_runner=runner)
    def score():
        return [future.result() for future in (one.submit(), two.submit())]

    results = score()

    assert [read_rows(result) for result in results] == [files.rows(), files.rows()]
    with distributed.Client(cluster, set_as_default=False) as client:
        [worker] = client.scheduler_info(n_workers=-1)["workers"]
        assert left_behind(client) == []
    assert [nodes_of(result) for result in results] == [{worker}, {worker}]


def test_a_step_in_a_task_of_the_flow(files, read_rows, runner):
    """R230: the task that calls it is itself on the one thread."""
    step = files.step(config=ON_THE_FLOWS_CLUSTER)

    @task
    def outer():
        return read_rows(step())

    @flow(task_runner=runner)
    def score():
        return outer.submit().result()

    assert score() == files.rows()


def test_a_step_called_in_the_flow(files, read_rows):
    """R230: the task runner starts its cluster for it, has it for later tasks, and ends it with the flow."""
    step = files.step(config=ON_THE_FLOWS_CLUSTER)
    runner = DaskTaskRunner(
        cluster_kwargs={
            "n_workers": 1,
            "threads_per_worker": 1,
            "processes": False,
            "dashboard_address": "127.0.0.1:0",
        }
    )

    @task
    def workers():
        with get_dask_client() as client:
            return list(client.scheduler_info(n_workers=-1)["workers"])

    @flow(task_runner=runner)
    def score():
        result = step()
        return result, workers.submit().result()

    result, addresses = score()

    assert read_rows(result) == files.rows()
    assert nodes_of(result) == set(addresses)


@pytest.mark.parametrize("where", ["flow", "script"])
def test_without_a_dask_task_runner(files, where):
    """R230: it is said what is missing, and how it is given."""
    step = files.step(config=ON_THE_FLOWS_CLUSTER)
    call = flow(lambda: step(), name="score") if where == "flow" else step

    with pytest.raises(ConfigError, match=r"'task-runner'.*@flow\(task_runner=DaskTaskRunner"):
        call()
