"""Score millions of files or table rows in parallel: Azure ML's ParallelRunStep for Prefect and Dask.

Names are resolved when they are first used, so that importing this package imports neither Prefect
nor Dask: worker processes and command lines would pay for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefect_parallelrun.version import __version__ as __version__

if TYPE_CHECKING:
    from prefect_parallelrun.blocks import (
        AzureAccountKeyCredentials,
        AzureSasCredentials,
        DaskComputeTargetBlock,
        HttpCredentials,
        ParallelRunConfigBlock,
        RegisteredDataset,
        S3Credentials,
        ServicePrincipalCredentials,
        SqlConnection,
    )
    from prefect_parallelrun.cache_policy import ReusePolicy
    from prefect_parallelrun.compute_target import DaskComputeTarget
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig, TabularDataset
    from prefect_parallelrun.environment import Environment
    from prefect_parallelrun.errors import (
        ClusterError,
        ConfigError,
        DatasetError,
        EntryScriptError,
        ErrorThresholdExceeded,
        InitFailed,
        NoProgress,
        OutputError,
        ParallelRunError,
        RunCancelled,
    )
    from prefect_parallelrun.pipeline_parameter import PipelineParameter
    from prefect_parallelrun.result import ParallelRunResult
    from prefect_parallelrun.step import ParallelRunStep
    from prefect_parallelrun_runtime.entry_script import EntryScript

_MODULES = {
    "ParallelRunStep": "prefect_parallelrun.step",
    "ParallelRunConfig": "prefect_parallelrun.config",
    "ParallelRunResult": "prefect_parallelrun.result",
    "DaskComputeTarget": "prefect_parallelrun.compute_target",
    "Environment": "prefect_parallelrun.environment",
    "PipelineParameter": "prefect_parallelrun.pipeline_parameter",
    "ReusePolicy": "prefect_parallelrun.cache_policy",
    "FileDataset": "prefect_parallelrun.datasets",
    "TabularDataset": "prefect_parallelrun.datasets",
    "OutputFileDatasetConfig": "prefect_parallelrun.datasets",
    "EntryScript": "prefect_parallelrun_runtime.entry_script",
    "AzureAccountKeyCredentials": "prefect_parallelrun.blocks",
    "AzureSasCredentials": "prefect_parallelrun.blocks",
    "DaskComputeTargetBlock": "prefect_parallelrun.blocks",
    "HttpCredentials": "prefect_parallelrun.blocks",
    "ParallelRunConfigBlock": "prefect_parallelrun.blocks",
    "RegisteredDataset": "prefect_parallelrun.blocks",
    "S3Credentials": "prefect_parallelrun.blocks",
    "ServicePrincipalCredentials": "prefect_parallelrun.blocks",
    "SqlConnection": "prefect_parallelrun.blocks",
    "ParallelRunError": "prefect_parallelrun.errors",
    "ConfigError": "prefect_parallelrun.errors",
    "DatasetError": "prefect_parallelrun.errors",
    "EntryScriptError": "prefect_parallelrun.errors",
    "InitFailed": "prefect_parallelrun.errors",
    "ErrorThresholdExceeded": "prefect_parallelrun.errors",
    "NoProgress": "prefect_parallelrun.errors",
    "ClusterError": "prefect_parallelrun.errors",
    "OutputError": "prefect_parallelrun.errors",
    "RunCancelled": "prefect_parallelrun.errors",
}

__all__ = [
    "AzureAccountKeyCredentials",
    "AzureSasCredentials",
    "ClusterError",
    "ConfigError",
    "DaskComputeTarget",
    "DaskComputeTargetBlock",
    "DatasetError",
    "EntryScript",
    "EntryScriptError",
    "Environment",
    "ErrorThresholdExceeded",
    "FileDataset",
    "HttpCredentials",
    "InitFailed",
    "NoProgress",
    "OutputError",
    "OutputFileDatasetConfig",
    "ParallelRunConfig",
    "ParallelRunConfigBlock",
    "ParallelRunError",
    "ParallelRunResult",
    "ParallelRunStep",
    "PipelineParameter",
    "RegisteredDataset",
    "ReusePolicy",
    "RunCancelled",
    "S3Credentials",
    "ServicePrincipalCredentials",
    "SqlConnection",
    "TabularDataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Puts the runtime's folder on the path: scripts import from it under these same names.
    importlib.import_module("prefect_parallelrun.runtime_folder")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
