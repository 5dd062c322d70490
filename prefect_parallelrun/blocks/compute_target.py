"""A Dask cluster as a block: which one it is, or how one is started."""

from __future__ import annotations

from typing import Any, Self

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import Field, HttpUrl, SecretStr, model_validator

from prefect_parallelrun.blocks.loading import load
from prefect_parallelrun.blocks.look import DASK, STRICT, no_secrets
from prefect_parallelrun.compute_target import DaskComputeTarget
from prefect_parallelrun.errors import ConfigError


class DaskComputeTargetBlock(Block):
    """A Dask cluster that parallel-run steps run on: one that is there, or one started for each run.

    Example:
        Load the block, and run a step there:
        ```python
        from prefect_parallelrun import ParallelRunConfig
        from prefect_parallelrun.blocks import DaskComputeTargetBlock

        cluster = DaskComputeTargetBlock.load("BLOCK_NAME")
        config = ParallelRunConfig("score.py", compute_target=cluster, node_count=4)
        ```
    """

    _block_type_name = "Dask Compute Target"
    _logo_url = DASK
    _documentation_url = HttpUrl("https://docs.prefect.io/integrations/prefect-dask")
    _description = "A Dask cluster for parallel-run steps, by address or by how it is started."
    model_config = STRICT

    address: str | None = Field(
        default=None,
        description="Address of the scheduler of a cluster that is there, such as "
        "tcp://10.0.0.4:8786, or tls://… where it is encrypted.",
    )
    tls_ca: str | None = Field(
        default=None,
        title="TLS authority",
        description="Certificate of the authority that an encrypted cluster trusts: the path of a PEM "
        "file on the machine of the flow, or its content.",
    )
    tls_certificate: str | None = Field(
        default=None,
        title="TLS certificate",
        description="Certificate of the client, given like the authority's.",
    )
    tls_key: SecretStr | None = Field(
        default=None, title="TLS key", description="Key of that certificate, given like it."
    )
    cluster_class: str | None = Field(
        default=None,
        description="Instead of an address: what starts a cluster for each run, by its import path, "
        "such as dask_kubernetes.operator.KubeCluster.",
    )
    cluster_kwargs: dict[str, Any] = Field(
        default_factory=dict, description='Arguments of that class, such as {"n_workers": 4}.'
    )
    cluster_secrets: SecretDict = Field(
        default_factory=no_secrets,
        description="Further arguments of that class, which nobody is to see.",
    )
    adapt_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Limits within which that cluster grows and shrinks, such as "
        '{"minimum": 1, "maximum": 8}.',
    )
    client_kwargs: dict[str, Any] = Field(
        default_factory=dict, description='Arguments of our Dask client, such as {"timeout": 60}.'
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_target()
        return self

    def to_target(self) -> DaskComputeTarget:
        """Return what the driver runs on; there may be secrets in it.

        Raises:
            ConfigError: the fields do not go together.
        """
        return DaskComputeTarget(
            address=self.address,
            tls_ca=self.tls_ca,
            tls_certificate=self.tls_certificate,
            tls_key=self.tls_key.get_secret_value() if self.tls_key is not None else None,
            cluster_class=self.cluster_class,
            cluster_kwargs=self.cluster_kwargs,
            cluster_secrets=self.cluster_secrets.get_secret_value(),
            adapt_kwargs=self.adapt_kwargs,
            client_kwargs=self.client_kwargs,
        )


def compute_target_of(name: str) -> DaskComputeTarget:
    """Return the cluster that a saved block describes.

    Args:
        name: `dask-compute-target/<name of the block>`.

    Raises:
        ConfigError: there is no such block, it cannot be read, or Prefect's API does not answer.
    """
    block = load(name, f"compute_target={name!r}")
    if not isinstance(block, DaskComputeTargetBlock):
        raise ConfigError(
            f"compute_target={name!r}: it is a {type(block).__name__}, and no DaskComputeTargetBlock"
        )
    return block.to_target()
