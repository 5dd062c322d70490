"""What the worker processes of a node are started with: interpreter, GPUs, number, environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed

from prefect_parallelrun.node import gpus, threads
from prefect_parallelrun.node.interpreters import Interpreters, activated, without_ours
from prefect_parallelrun_runtime import messages

SECRETS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
"""Left out of the environment of worker processes: scripts never speak with Prefect's API."""
INIT_FAILURES = 3
"""Times the node's number of processes: so many failed starts in a row end the trying there (R87)."""


def settle(
    settings: messages.Settings,
    worker: distributed.Worker,
    *,
    log: Path,
    stopping: Callable[[], bool],
    tell: Callable[[dict[str, Any]], None],
) -> list[str]:
    """Fill in what depends on the node; it may take long where an environment is built.

    Returns what is wrong with its GPUs, in words.

    Args:
        settings: of the node, changed in place.
        worker: its Dask worker.
        log: where the building of an environment is logged.
        stopping: whether the node ends meanwhile.
        tell: publishes news of the node.

    Raises:
        NoEnvironment: the Python environment cannot be had.
        Stopped: the node ends.
    """
    has_own_python = bool(settings["python"] or settings["requirements"])
    given = settings["environment"]
    inherited = {k: v for k, v in os.environ.items() if k not in SECRETS}
    if has_own_python:
        interpreters = Interpreters(
            log=log,
            inherited=inherited,
            given=given,
            stopping=stopping,
            tell=lambda doing: tell({"name": "fetching", "reason": doing}),
        )
        settings["python"] = _interpreter(settings, interpreters)
        inherited = activated(without_ours(inherited), settings["python"])
    else:
        settings["python"] = sys.executable
    found = gpus.find(
        worker.state.total_resources,
        given=given,
        wanted=settings["gpus_per_process"],
        is_of_dask_cuda=gpus.is_of_dask_cuda(worker),
    )
    settings["gpus"], settings["gpu_count"] = list(found.gpus), found.count
    uses_gpus = found.count and settings["gpus_per_process"] != 0
    settings["process_count"] = settings["process_count"] or (
        1 if uses_gpus else worker.state.nthreads
    )
    settings["init_failures_allowed"] = INIT_FAILURES * settings["process_count"]
    shared = threads.settings(
        given,
        cores=worker.state.nthreads,
        processes=settings["process_count"],
        has_nanny=worker.nanny is not None,
    )
    gpu_count = str(found.count)
    settings["environment"] = {
        **inherited,
        "AZ_BATCHAI_GPU_COUNT_FOUND": gpu_count,
        **given,
        **shared,
    }
    return [found.trouble] if found.trouble else []


def _interpreter(settings: messages.Settings, interpreters: Interpreters) -> str:
    modules = {"pandas", "pyarrow"} if any(settings["inputs"]) else set()
    modules |= {"pyarrow"} if settings["output_format"] == "parquet" else set()
    return interpreters.python(
        settings["python"],
        settings["requirements"],
        settings["environment_name"],
        sorted(modules),
    )
