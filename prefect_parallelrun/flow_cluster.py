"""The Dask cluster of the flow that a step is called in: that of its DaskTaskRunner."""

from __future__ import annotations

from typing import Any

from prefect.context import FlowRunContext
from prefect_dask.task_runners import DaskTaskRunner


def client() -> Any:
    """Return the Dask client of the flow's task runner, which starts the cluster if it must; None without one."""
    flow_run = FlowRunContext.get()
    runner = flow_run.task_runner if flow_run is not None else None
    return runner.client if isinstance(runner, DaskTaskRunner) else None
