"""Blocks with credentials: what they keep, and what they give to fsspec (R78)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import uuid
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from pydantic import SecretStr, ValidationError

from prefect_parallelrun import ConfigError, FileDataset, foreign_blocks
from prefect_parallelrun.blocks import (
    AzureAccountKeyCredentials,
    AzureSasCredentials,
    HttpCredentials,
    S3Credentials,
    ServicePrincipalCredentials,
    SqlConnection,
    storage_options_of,
)

KEY = "c2VjcmV0LW9mLXRoZS1hY2NvdW50"
ENDPOINT = "http://127.0.0.1:10000/dev"

BLOCKS = {
    "service-principal-credentials": (
        ServicePrincipalCredentials(
            tenant_id="the-tenant", service_principal_id="app", service_principal_password="wqTs81"
        ),
        {"tenant_id": "the-tenant", "client_id": "app", "client_secret": "wqTs81"},
    ),
    "azure-account-key-credentials": (
        AzureAccountKeyCredentials(account_name="dev", account_key=KEY),
        {"account_name": "dev", "account_key": KEY},
    ),
    "azure-sas-credentials": (
        AzureSasCredentials(account_name="dev", sas_token="?sv=2024&sig=wqTs81"),
        {"account_name": "dev", "sas_token": "sv=2024&sig=wqTs81"},
    ),
    "s3-credentials": (
        S3Credentials(
            access_key_id="me",
            secret_access_key="wqTs81",
            session_token="passing",
            endpoint_url="http://127.0.0.1:9000",
            region_name="eu-west-1",
        ),
        {
            "key": "me",
            "secret": "wqTs81",
            "token": "passing",
            "endpoint_url": "http://127.0.0.1:9000",
            "client_kwargs": {"region_name": "eu-west-1"},
        },
    ),
    "http-credentials": (
        HttpCredentials(user="me", password="pass"),
        {"headers": {"Authorization": "Basic bWU6cGFzcw=="}},
    ),
    "sql-connection": (
        SqlConnection(url="postgresql://me:wqTs81@localhost/sales"),
        {"url": "postgresql://me:wqTs81@localhost/sales"},
    ),
}


@pytest.mark.parametrize("slug", BLOCKS)
def test_a_saved_block_gives_its_options(slug):
    """Each block is saved, loaded by slug and name, and gives what fsspec or SQLAlchemy takes (R78)."""
    block, options = BLOCKS[slug]
    name = f"x-{uuid.uuid4().hex[:8]}"
    block.save(name)

    assert storage_options_of(f"{slug}/{name}") == options


@pytest.mark.parametrize("slug", BLOCKS)
def test_a_block_shows_no_secret(slug):
    """Neither repr nor text of a block shows its secret (R78)."""
    block, _ = BLOCKS[slug]
    for secret in ("wqTs81", KEY, "pass'", "passing"):
        assert secret not in f"{block!r} {block}"


@pytest.mark.parametrize("slug", BLOCKS)
def test_a_block_is_described(slug):
    """Every field has a sentence for Prefect's page, and every block a logo and a description."""
    kind = type(BLOCKS[slug][0])
    assert kind.get_block_type_slug() == slug
    assert str(kind._logo_url).startswith("https://")
    assert kind._description.endswith(".")
    assert kind.get_code_example()
    for field in kind.model_fields.values():
        assert field.description.endswith(".")


def test_a_field_that_does_not_exist():
    """A misspelt field is refused, instead of being kept beside the others."""
    with pytest.raises(ValidationError):
        S3Credentials(access_key_id="me", secret_access_key="x", secret_key="y")


def test_options_in_another_place():
    """An endpoint that is not Azure's own goes into a connection string, as adlfs wants it."""
    key = AzureAccountKeyCredentials(account_name="dev", account_key=KEY, endpoint=ENDPOINT)
    sas = AzureSasCredentials(account_name="dev", sas_token="sv=1&sig=2", endpoint=ENDPOINT)

    assert key.storage_options()["connection_string"] == (
        f"DefaultEndpointsProtocol=http;AccountName=dev;AccountKey={KEY};BlobEndpoint={ENDPOINT};"
    )
    assert "SharedAccessSignature=sv=1&sig=2;" in sas.storage_options()["connection_string"]


def test_http_needs_something():
    """A bearer token goes before user and password; neither of them is an error."""
    token = HttpCredentials(token="abc", user="me")
    assert token.storage_options() == {"headers": {"Authorization": "Bearer abc"}}
    with pytest.raises(ConfigError, match="token, or a user"):
        HttpCredentials().storage_options()


def test_a_service_principal_reaches_adlfs(monkeypatch):
    """adlfs makes its credential of tenant, client and secret; nobody is asked for that (R78)."""
    pytest.importorskip("adlfs")
    aio = pytest.importorskip("azure.identity.aio")
    made = []

    class Recording(aio.ClientSecretCredential):
        def __init__(self, tenant_id, client_id, client_secret, **settings):
            made.append((tenant_id, client_id, client_secret))
            super().__init__(tenant_id, client_id, client_secret, **settings)

    monkeypatch.setattr(aio, "ClientSecretCredential", Recording)
    name = f"sp-{uuid.uuid4().hex[:8]}"
    ServicePrincipalCredentials(
        tenant_id="the-tenant",
        service_principal_id="app",
        service_principal_password="wqTs81",
        account_name="account",
    ).save(name)
    dataset = FileDataset.from_files(
        "abfs://container/in", credentials=f"service-principal-credentials/{name}"
    )

    files = dataset.storage.filesystem(dataset.paths[0])

    assert made == [("the-tenant", "app", "wqTs81")]
    assert isinstance(files.credential, Recording)
    assert files.account_name == "account"
    assert "wqTs81" not in f"{dataset!r} {dataset.storage!r}"


def test_a_block_object_is_as_good_as_its_name():
    """credentials takes a saved block, and keeps its name; one that was not saved is refused (R78)."""
    block = S3Credentials(access_key_id="me", secret_access_key="wqTs81")
    with pytest.raises(ConfigError, match=r"block\.save\('name'\)") as caught:
        FileDataset.from_files("s3://bucket/a", credentials=block)
    assert "wqTs81" not in str(caught.value)
    name = f"x-{uuid.uuid4().hex[:8]}"
    block.save(name)

    dataset = FileDataset.from_files("s3://bucket/a", credentials=block)

    assert dataset.storage.credentials == f"s3-credentials/{name}"
    assert not dataset.storage.options


def test_everywhere_in_prefect():
    """Options are given in a flow, an async flow, and a thread of either (R78)."""
    name = f"x-{uuid.uuid4().hex[:8]}"
    HttpCredentials(token="abc").save(name)
    reference = f"http-credentials/{name}"
    wanted = {"headers": {"Authorization": "Bearer abc"}}

    @flow
    def sync():
        got = []
        thread = threading.Thread(target=lambda: got.append(storage_options_of(reference)))
        thread.start()
        thread.join(30)
        return [storage_options_of(reference), *got]

    @flow
    async def asynchronous():
        there = await asyncio.to_thread(storage_options_of, reference)
        return [storage_options_of(reference), there]

    assert sync() == [wanted, wanted]
    assert asyncio.run(asynchronous()) == [wanted, wanted]


def test_blocks_that_are_no_good():
    """A block that is not there, is of an unknown type or opens no storage is named, with what to do."""
    with pytest.raises(ConfigError, match=r"'s3-credentials/nope': there is no such block"):
        storage_options_of("s3-credentials/nope")
    with pytest.raises(ConfigError, match=r"'what-is-this/nope'"):
        storage_options_of("what-is-this/nope")

    class Plain(Block):
        """Opens nothing."""

        word: str = "x"

    name = f"x-{uuid.uuid4().hex[:8]}"
    Plain().save(name)
    with pytest.raises(ConfigError, match="opens no storage"):
        storage_options_of(f"plain/{name}")


def test_a_block_of_ones_own():
    """Any block with a method storage_options() will do (R78)."""

    class Own(Block):
        """Opens something."""

        secret: SecretStr

        def storage_options(self):
            return {"secret": self.secret.get_secret_value()}

    name = f"x-{uuid.uuid4().hex[:8]}"
    Own(secret="wqTs81").save(name)
    assert storage_options_of(f"own/{name}") == {"secret": "wqTs81"}


def test_no_server():
    """Without an API the error says what it was needed for, and how to have one."""
    nowhere = {
        PREFECT_API_URL: "http://127.0.0.1:9/api",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
    }
    with temporary_settings(nowhere):
        with pytest.raises(ConfigError, match=r"'s3-credentials/x'.*PREFECT_API_URL"):
            storage_options_of("s3-credentials/x")
        with pytest.raises(ConfigError, match=r"'sales'.*PREFECT_API_URL"):
            FileDataset.get_by_name("sales")


class AwsCredentials(SimpleNamespace):
    """As prefect-aws has it."""


class MinIOCredentials(SimpleNamespace):
    """As prefect-aws has it."""


class AzureBlobStorageCredentials(SimpleNamespace):
    """As prefect-azure has it."""


def test_blocks_of_other_collections():
    """Blocks of prefect-aws and prefect-azure open the same storages (R78)."""
    parameters = SimpleNamespace(endpoint_url="http://127.0.0.1:9000")
    aws = AwsCredentials(
        aws_access_key_id="me",
        aws_secret_access_key=SecretStr("wqTs81"),
        aws_session_token=None,
        region_name=None,
        aws_client_parameters=parameters,
    )
    minio = MinIOCredentials(
        minio_root_user="me",
        minio_root_password=SecretStr("wqTs81"),
        region_name=None,
        aws_client_parameters=parameters,
    )
    keys = {"key": "me", "secret": "wqTs81", "endpoint_url": "http://127.0.0.1:9000"}
    principal = {"tenant_id": "t", "client_id": "c", "client_secret": SecretStr("wqTs81")}
    azure = AzureBlobStorageCredentials(
        connection_string=None, account_url="https://account.blob.core.windows.net", **principal
    )
    opened = AzureBlobStorageCredentials(connection_string=SecretStr("AccountName=dev"))

    assert foreign_blocks.storage_options_of_foreign(aws) == keys
    assert foreign_blocks.storage_options_of_foreign(minio) == keys
    assert foreign_blocks.storage_options_of_foreign(azure) == {
        "account_name": "account",
        "account_host": "account.blob.core.windows.net",
        **principal,
        "client_secret": "wqTs81",
    }
    assert foreign_blocks.storage_options_of_foreign(opened) == {
        "connection_string": "AccountName=dev"
    }
    assert foreign_blocks.storage_options_of_foreign(object()) is None


def test_prefect_stays_out():
    """Making a dataset with the name of a block imports neither Prefect nor an SDK."""
    program = (
        "import sys; from prefect_parallelrun import FileDataset;"
        "FileDataset.from_files('s3://b/a', credentials='s3-credentials/x');"
        "print([m for m in ('prefect', 's3fs', 'distributed') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
