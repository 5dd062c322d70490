"""Every Prefect block of this package: credentials of storages, and datasets that were registered.

The entry point of the collection. Datasets load this module by its name when they need a block, since
they do not know Prefect; so what stands at the end takes and gives plain values.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.foreign_blocks import storage_options_of_foreign

_IMAGES = "https://cdn.sanity.io/images/3ugk85nk/production"
_AZURE = HttpUrl(f"{_IMAGES}/54e3fa7e00197a4fbd1d82ed62494cb58d08c96a-250x250.png")
_AWS = HttpUrl(f"{_IMAGES}/d74b16fe84ce626345adf235a47008fea2869a60-225x225.png")
_SQL = HttpUrl(f"{_IMAGES}/3c7dff04f70aaf4528e184a3b028f9e40b98d68c-250x250.png")
_WEB = HttpUrl(f"{_IMAGES}/c7247cb359eb6cf276734d4b1fbf00fb8930e89e-250x250.png")

_STRICT = ConfigDict(extra="forbid")
"""A field that a block does not have is a typing error, and not kept beside the others."""
_PAGE = 200
"""Block documents that the API gives out at once."""


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
    _logo_url = _AZURE
    _description = "A service principal that may read, or write, an Azure storage account."
    model_config = _STRICT

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
    _logo_url = _AZURE
    _description = "The key of an Azure storage account."
    model_config = _STRICT

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
    _logo_url = _AZURE
    _description = "A shared access signature for an Azure storage account, or a container of it."
    model_config = _STRICT

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
    _logo_url = _AWS
    _description = "Keys for S3, or for a storage that speaks as it does."
    model_config = _STRICT

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
    _logo_url = _WEB
    _description = "A bearer token, or a user and a password, for files on a web server."
    model_config = _STRICT

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
    _logo_url = _SQL
    _description = "The URL of a database, password included, as SQLAlchemy has it."
    model_config = _STRICT

    url: SecretStr = Field(
        description="dialect+driver://user:password@host:port/database, such as "
        "postgresql+psycopg://scorer:…@db.example.org/sales."
    )

    def storage_options(self) -> dict[str, Any]:
        """Return `{"url": …}`; there may be a password in it."""
        return {"url": self.url.get_secret_value()}


class RegisteredDataset(Block):
    """One version of a dataset that was registered; use `FileDataset.get_by_name` to have it.

    Example:
        Load what is known of version 3 of a dataset:
        ```python
        from prefect_parallelrun.blocks import RegisteredDataset

        registered = RegisteredDataset.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Registered Dataset"
    _logo_url = _WEB
    _description = "One version of a dataset of parallel-run steps; it holds no secret."
    model_config = _STRICT

    description: str | None = Field(default=None, description="For people.")
    definition: dict[str, Any] = Field(
        description="All of the dataset: paths, format, credentials."
    )


# -- for datasets, which know no Prefect --------------------------------------------------------


def storage_options_of(name: str) -> dict[str, Any]:
    """Return the fsspec `storage_options` that a block gives.

    Args:
        name: `<slug of the block's type>/<name of the block>`.

    Raises:
        ConfigError: there is no such block, it opens no storage, or Prefect's API does not answer.
    """
    with _api(f"credentials {name!r}"):
        try:
            # Without this, an async flow would be given a coroutine.
            block = Block.load(name, _sync=True)  # type: ignore[call-arg]
        except ValueError as error:
            if not isinstance(error.__cause__, ObjectNotFound):
                # Never its text: it may quote what the block holds.
                raise ConfigError(
                    f"credentials {name!r} cannot be read: the block does not fit its type, or the "
                    f"collection with that type is not installed ({type(error).__name__})"
                ) from None
            raise ConfigError(
                f"credentials {name!r}: there is no such block in Prefect; make it with "
                f"block.save({name.partition('/')[2]!r}), or on the Blocks page"
            ) from None
    give = getattr(block, "storage_options", None)
    options = give() if callable(give) else storage_options_of_foreign(block)
    if options is None:
        raise ConfigError(
            f"credentials {name!r}: a block of this type opens no storage; use one of those in "
            "prefect_parallelrun.blocks, or one with a method storage_options()"
        )
    return dict(options)


def registered_versions(name: str) -> dict[int, dict[str, Any]]:
    """Return the definition of each version of a registered dataset; empty where there is none.

    Raises:
        ConfigError: Prefect's API does not answer.
    """
    version = re.compile(re.escape(name) + r"-v([1-9][0-9]*)")
    with _api(f"dataset {name!r}"):
        documents = _documents(f"{name}-v")
        named = [(version.fullmatch(one["name"] or ""), one["data"]) for one in documents]
    return {int(match[1]): data["definition"] for match, data in named if match}


def keep_version(
    name: str, version: int, definition: dict[str, Any], description: str | None
) -> bool:
    """Keep one version of a dataset, unless there is one by now; return whether it was kept.

    Raises:
        ConfigError: Prefect's API does not answer, or refuses it.
    """
    block = RegisteredDataset(definition=definition, description=description)
    with _api(f"dataset {name!r}"):
        try:
            block.save(f"{name}-v{version}", _sync=True)  # type: ignore[call-arg]
        except ValueError as error:
            if isinstance(error.__cause__, ObjectAlreadyExists):
                return False
            raise
    return True


def _documents(beginning: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of registered datasets whose names hold a text."""
    slug = RegisteredDataset.get_block_type_slug()
    with get_client(sync_client=True) as client:
        try:
            block_type = client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            return  # nothing was ever registered
        wanted = {"block_type_id": {"any_": [str(block_type.id)]}, "name": {"like_": beginning}}
        offset = 0
        while True:
            page = client.request(
                "POST",
                "/block_documents/filter",
                json={"block_documents": wanted, "limit": _PAGE, "offset": offset},
            ).json()
            yield from page
            offset += _PAGE
            if len(page) < _PAGE:
                return


@contextmanager
def _api(what: str) -> Iterator[None]:
    """Say of whatever goes wrong with Prefect's API what it was needed for.

    Raises:
        ConfigError: something did.
    """
    try:
        yield
    except ConfigError:
        raise
    except (httpx.HTTPError, PrefectException, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what}: Prefect's API, which keeps it, gave no answer that helps "
            f"({type(error).__name__}); set PREFECT_API_URL to a server that runs"
        ) from None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _connected(endpoint: str, parts: dict[str, str]) -> dict[str, Any]:
    """Return a connection string: adlfs takes the address of another cloud only in one."""
    parts = {"DefaultEndpointsProtocol": endpoint.partition(":")[0], **parts}
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    return {"connection_string": f"{text};BlobEndpoint={endpoint};"}
