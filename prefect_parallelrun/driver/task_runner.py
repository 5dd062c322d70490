"""The cluster of the flow's own task runner, on which the step itself may be a task."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import distributed

from prefect_parallelrun.driver.described import Described, beside
from prefect_parallelrun.errors import ConfigError

FLOW_CLUSTER = "prefect_parallelrun.flow_cluster"
"""Loaded by name: the driver knows of Prefect only that its flows may have such clusters."""
START_S = 900.0
"""How long the start of a cluster may take, where the step is the first that wants it."""


def find(watch: Callable[[], None] | None) -> Described:
    """Return the cluster of the flow's DaskTaskRunner, which stays when the run ends.

    Args:
        watch: called several times a second meanwhile; ends that by raising.

    Raises:
        ConfigError: there is none.
        ClusterError: it does not come to be.
        Exception: what `watch` raises.
    """
    try:
        worker = distributed.get_worker()
    except ValueError:  # not submitted, or not to Dask
        pass
    else:
        # The step has let go of its thread (`inside_dask`), so that its own nodes find one.
        return Described(place=worker.scheduler.address, security=worker.security)
    silent = "compute_target='task-runner': the cluster of the flow's task runner has not started"
    client = beside(import_module(FLOW_CLUSTER).client, START_S, watch, silent)
    if client is None:
        raise ConfigError(
            "compute_target='task-runner': the step is not called in a flow with a DaskTaskRunner: give "
            "@flow(task_runner=DaskTaskRunner(…)), or another compute_target"
        )
    return Described(place=client.cluster or client.scheduler.address, security=client.security)
