"""Blocks that open a storage or a database: each keeps secrets, and gives fsspec's options."""

from __future__ import annotations

import base64
from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr

from prefect_parallelrun.blocks.loading import load
from prefect_parallelrun.blocks.look import AWS, AZURE, SQL, STRICT, WEB
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.foreign_blocks import storage_options_of_foreign

_AZURE_PAGE = HttpUrl("https://github.com/fsspec/adlfs")
_AWS_PAGE = HttpUrl("https://s3fs.readthedocs.io/en/latest/")
_SQL_PAGE = HttpUrl("https://docs.sqlalchemy.org/en/20/core/engines.html")
_WEB_PAGE = HttpUrl("https://filesystem-spec.readthedocs.io/en/latest/")


class ServicePrincipalCredentials(Block):
    """A service principal of Microsoft Entra ID that may read, or write, an Azure storage account.

    Example:
        Load the credentials, and open a storage with them:
        ```python
        from prefect_parallelrun.blocks import ServicePrincipalCredentials

        credentials = ServicePrincipalCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Service Principal Credentials"
    _logo_url = AZURE
    _documentation_url = _AZURE_PAGE
    _description = "A service principal that may read, or write, an Azure storage account."
    model_config = STRICT

    tenant_id: str = Field(description="Tenant (directory) that the service principal is in.")
    service_principal_id: str = Field(description="Client (application) id.")
    service_principal_password: SecretStr = Field(description="Client secret.")
    account_name: str | None = Field(
        default=None,
        description="Storage account; not needed where the URL names it, as in "
        "abfs://container@account.dfs.core.windows.net/folder.",
    )

    def storage_options(self) -> dict[str, Any]:
        """Return fsspec's `storage_options` for `abfs://`; there is a secret in them."""
        return _given(
            tenant_id=self.tenant_id,
            client_id=self.service_principal_id,
            client_secret=self.service_principal_password.get_secret_value(),
            account_name=self.account_name,
        )


class AzureAccountKeyCredentials(Block):
    """The key of an Azure storage account.

    Example:
        Load the credentials, and open a storage with them:
        ```python
        from prefect_parallelrun.blocks import AzureAccountKeyCredentials

        credentials = AzureAccountKeyCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Azure Account Key Credentials"
    _logo_url = AZURE
    _documentation_url = _AZURE_PAGE
    _description = "The key of an Azure storage account."
    model_config = STRICT

    account_name: str = Field(description="Storage account.")
    account_key: SecretStr = Field(description="One of its two keys.")
    endpoint: str | None = Field(
        default=None,
        description="URL of the blob service, where it is none of Azure's public cloud (Azurite, a "
        "private cloud).",
    )

    def storage_options(self) -> dict[str, Any]:
        """Return fsspec's `storage_options` for `abfs://`; there is a secret in them."""
        key = self.account_key.get_secret_value()
        if self.endpoint is None:
            return {"account_name": self.account_name, "account_key": key}
        parts = {"AccountName": self.account_name, "AccountKey": key}
        return _connected(self.endpoint, parts)


class AzureSasCredentials(Block):
    """A shared access signature (SAS) for an Azure storage account, or a container of it.

    Example:
        Load the credentials, and open a storage with them:
        ```python
        from prefect_parallelrun.blocks import AzureSasCredentials

        credentials = AzureSasCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Azure SAS Credentials"
    _logo_url = AZURE
    _documentation_url = _AZURE_PAGE
    _description = "A shared access signature for an Azure storage account, or a container of it."
    model_config = STRICT

    account_name: str = Field(description="Storage account.")
    sas_token: SecretStr = Field(description="The signature, with or without its question mark.")
    endpoint: str | None = Field(
        default=None,
        description="URL of the blob service, where it is none of Azure's public cloud (Azurite, a "
        "private cloud).",
    )

    def storage_options(self) -> dict[str, Any]:
        """Return fsspec's `storage_options` for `abfs://`; there is a secret in them."""
        token = self.sas_token.get_secret_value().removeprefix("?")
        if self.endpoint is None:
            return {"account_name": self.account_name, "sas_token": token}
        parts = {"AccountName": self.account_name, "SharedAccessSignature": token}
        return _connected(self.endpoint, parts)


class S3Credentials(Block):
    """Keys for S3, or for a storage that speaks as it does (MinIO, Ceph).

    Example:
        Load the credentials, and open a storage with them:
        ```python
        from prefect_parallelrun.blocks import S3Credentials

        credentials = S3Credentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "S3 Credentials"
    _logo_url = AWS
    _documentation_url = _AWS_PAGE
    _description = "Keys for S3, or for a storage that speaks as it does."
    model_config = STRICT

    access_key_id: str = Field(description="Access key.")
    secret_access_key: SecretStr = Field(description="Secret key.")
    session_token: SecretStr | None = Field(
        default=None, description="Goes with keys that hold for a time only."
    )
    endpoint_url: str | None = Field(
        default=None, description="Where the storage is, if it is none of Amazon's."
    )
    region_name: str | None = Field(default=None, description="Region of the buckets.")

    def storage_options(self) -> dict[str, Any]:
        """Return fsspec's `storage_options` for `s3://`; there are secrets in them."""
        return _given(
            key=self.access_key_id,
            secret=self.secret_access_key.get_secret_value(),
            token=self.session_token and self.session_token.get_secret_value(),
            endpoint_url=self.endpoint_url,
            client_kwargs=self.region_name and {"region_name": self.region_name},
        )


class HttpCredentials(Block):
    """What a web server wants to know before it gives out files: a token, or a user and a password.

    Example:
        Load the credentials, and open a storage with them:
        ```python
        from prefect_parallelrun.blocks import HttpCredentials

        credentials = HttpCredentials.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "HTTP Credentials"
    _logo_url = WEB
    _documentation_url = _WEB_PAGE
    _description = "A bearer token, or a user and a password, for files on a web server."
    model_config = STRICT

    token: SecretStr | None = Field(default=None, description="Bearer token.")
    user: str | None = Field(default=None, description="User, where there is no token.")
    password: SecretStr | None = Field(default=None, description="Password of the user.")

    def storage_options(self) -> dict[str, Any]:
        """Return fsspec's `storage_options` for `https://`; there is a secret in them.

        Raises:
            ConfigError: the block has neither a token nor a user.
        """
        if self.token is not None:
            authorization = f"Bearer {self.token.get_secret_value()}"
        elif self.user is not None:
            password = self.password.get_secret_value() if self.password is not None else ""
            pair = base64.b64encode(f"{self.user}:{password}".encode())
            authorization = f"Basic {pair.decode()}"
        else:
            raise ConfigError("an HttpCredentials block needs a token, or a user and a password")
        return {"headers": {"Authorization": authorization}}


class SqlConnection(Block):
    """The URL of a database, password included, as SQLAlchemy has it.

    Example:
        Load the connection, and read a table with it:
        ```python
        from prefect_parallelrun.blocks import SqlConnection

        connection = SqlConnection.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "SQL Connection"
    _logo_url = SQL
    _documentation_url = _SQL_PAGE
    _description = "The URL of a database, password included, as SQLAlchemy has it."
    model_config = STRICT

    url: SecretStr = Field(
        description="dialect+driver://user:password@host:port/database, such as "
        "postgresql+psycopg://scorer:…@db.example.org/sales."
    )

    def storage_options(self) -> dict[str, Any]:
        """Return `{"url": …}`; there may be a password in it."""
        return {"url": self.url.get_secret_value()}


def storage_options_of(name: str) -> dict[str, Any]:
    """Return the fsspec `storage_options` that a block gives.

    Args:
        name: `<slug of the block's type>/<name of the block>`.

    Raises:
        ConfigError: there is no such block, it opens no storage, or Prefect's API does not answer.
    """
    block = load(name, f"credentials {name!r}")
    give = getattr(block, "storage_options", None)
    options = give() if callable(give) else storage_options_of_foreign(block)
    if options is None:
        raise ConfigError(
            f"credentials {name!r}: a block of this type opens no storage; use one of those in "
            "prefect_parallelrun.blocks, or one with a method storage_options()"
        )
    return dict(options)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _connected(endpoint: str, parts: dict[str, str]) -> dict[str, Any]:
    """Return a connection string: adlfs takes the address of another cloud only in one."""
    parts = {"DefaultEndpointsProtocol": endpoint.partition(":")[0], **parts}
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    return {"connection_string": f"{text};BlobEndpoint={endpoint};"}
