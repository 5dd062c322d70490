"""Every Prefect block of this package: credentials, settings, clusters, and registered datasets.

The entry point of the collection. What knows no Prefect (datasets, the driver) loads this module by its
name when it needs a block, and gets plain values by the functions here.
"""

from __future__ import annotations

from prefect_parallelrun.blocks.compute_target import DaskComputeTargetBlock, compute_target_of
from prefect_parallelrun.blocks.credentials import (
    AzureAccountKeyCredentials,
    AzureSasCredentials,
    HttpCredentials,
    S3Credentials,
    ServicePrincipalCredentials,
    SqlConnection,
    storage_options_of,
)
from prefect_parallelrun.blocks.registered import (
    RegisteredDataset,
    keep_version,
    registered_versions,
)
from prefect_parallelrun.blocks.settings import ParallelRunConfigBlock

__all__ = [
    "AzureAccountKeyCredentials",
    "AzureSasCredentials",
    "DaskComputeTargetBlock",
    "HttpCredentials",
    "ParallelRunConfigBlock",
    "RegisteredDataset",
    "S3Credentials",
    "ServicePrincipalCredentials",
    "SqlConnection",
    "compute_target_of",
    "keep_version",
    "registered_versions",
    "storage_options_of",
]
