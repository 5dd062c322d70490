"""Recipes of `docs/how-to/clusters.md` that can run on one machine: as jobs, and over SSH."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from prefect_parallelrun import DaskComputeTarget
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.paths import RunPaths
from tests.cluster_page import arguments, config
from tests.dask.conftest import lines
from tests.dask.drivers import driver

HERE = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
SCORE = """
    import os
    from pathlib import Path

    def run(mini_batch):
        gpu, threads = os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]
        return [f"{Path(path).name},{gpu},{threads}" for path in mini_batch]
"""


def nodes_of(folder):
    """The nodes of a run, from its journal."""
    with Journal(RunPaths(folder).journal) as journal:
        return list(journal.nodes())


def names_of(rows):
    return [row.split(",")[0] for row in rows]


EXPECTED = [f"{n:02d}.txt" for n in range(100)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_jobs_of_dask_jobqueue(numbers, tmp_path):
    """R230: the Slurm recipe, its jobs as processes of this machine, encrypted by temporary certificates.

    In a process of its own: that class is for tests of its own package, and lets go of pipes and processes
    without a word; and its import would take Ctrl-C from the tests.
    """
    if find_spec("dask_jobqueue") is None:
        pytest.skip("dask-jobqueue is not installed")
    with_slurm_alone = ("queue", "walltime", "job_extra_directives", "job_script_prologue")
    kwargs = arguments(
        "Slurm",
        n_workers=2,
        cores=2,
        memory="1GB",
        python=sys.executable,
        log_directory=str(tmp_path / "logs"),
        scheduler_options=HERE,
        security=True,
        shared_temp_directory=str(tmp_path),
    )

    with driver(
        tmp_path / "flow",
        SCORE,
        numbers,
        compute_target={
            "cluster_class": "dask_jobqueue.local.LocalCluster",
            "cluster_kwargs": {k: v for k, v in kwargs.items() if k not in with_slurm_alone},
        },
        node_count=2,
        process_count_per_node=1,
        mini_batch_size=1,
    ) as flow:
        rows = flow.communicate()[0].splitlines()

    assert flow.returncode == 0
    assert names_of(rows) == EXPECTED
    nodes = nodes_of(tmp_path / "flow" / "run")
    assert [node.address.partition(":")[0] for node in nodes] == ["tls", "tls"]
    assert {row.split(",")[1] for row in rows} <= {"0", "1"}  # two on this host, leased
    assert {row.split(",")[2] for row in rows} == {"2"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_hosts_by_ssh(run, numbers, tmp_path):
    """R230: the recipe for SSH as it is in the docs, but for the hosts."""
    pytest.importorskip("asyncssh")
    from tests.dask.ssh_server import SshServer

    with SshServer(tmp_path) as server:
        kwargs = arguments("SSH")
        target = DaskComputeTarget(
            cluster_class=config("SSH").compute_target.cluster_class,
            cluster_kwargs={
                **kwargs,
                "hosts": ["127.0.0.1"] * len(kwargs["hosts"]),
                "connect_options": {**kwargs["connect_options"], **server.connect_options},
                "remote_python": sys.executable,
                "scheduler_options": {**kwargs["scheduler_options"], **HERE},
            },
        )

        result = run(
            SCORE,
            numbers,
            compute_target=target,
            node_count=config("SSH").node_count,
            process_count_per_node=config("SSH").process_count_per_node,
            mini_batch_size=1,
        )

    assert names_of(lines(result)) == EXPECTED
    assert sum("distributed.cli.dask_spec" in command for command in server.commands) == 3
    assert {line.split(",")[2] for line in lines(result)} == {"8"}  # 16 threads, two processes
