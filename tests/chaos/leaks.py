"""What a run left behind: processes, temporary folders, plugins and tasks on Dask workers."""

from __future__ import annotations

import os
import time

from tests.chaos import processes
from tests.chaos.cluster import ChaosCluster

GONE_S = 10.0
"""How long the last of it may take to go; a Dask worker that was stopped goes on only now."""
OF_THE_CLUSTER = (
    "tests.chaos.cluster",
    "multiprocessing.spawn",
    "multiprocessing.resource_tracker",
)


def find(cluster: ChaosCluster, run_id: str) -> list[str]:
    """Return what is left of a run, in words; waits a little for it to go."""
    deadline = time.monotonic() + GONE_S
    while True:
        left = [*_processes(cluster, run_id), *_on_the_cluster(cluster)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def kill_processes(cluster: ChaosCluster, run_id: str) -> None:
    """End the processes of a round that went wrong, so that the next is not blamed for them."""
    processes.kill_all(pid for pid in _ours(cluster, run_id) if processes.environment(pid))


def _ours(cluster: ChaosCluster, run_id: str) -> list[int]:
    """All processes that descend from the cluster's, by what they inherited."""
    return [
        pid
        for pid in processes.marked(cluster.mark, f"PARALLELRUN_PROCESS={run_id}/")
        if not any(name in processes.command(pid) for name in OF_THE_CLUSTER)
    ]


def _processes(cluster: ChaosCluster, run_id: str) -> list[str]:
    found = [f"process {pid}: {processes.command(pid)}" for pid in _ours(cluster, run_id)]
    for name in filter(str.isdigit, os.listdir("/proc")):
        state = processes.state(int(name))
        # A process that ended, and that its Dask worker never asks for.
        if state and state[0] == "Z" and cluster.mark in processes.environment(state[1]):
            found.append(f"zombie {name} of process {state[1]}")
    return found


def _on_the_cluster(cluster: ChaosCluster) -> list[str]:
    found = [f"folder {path}" for path in cluster.temporary.glob("parallelrun-*")]
    for address, worker in cluster.state().items():
        found += [f"plugin {name} on {address}" for name in worker["plugins"]]
        found += [f"task {key} on {address}" for key in worker["tasks"]]
    return found
