"""Blocks with credentials: what they keep, and what they give to fsspec (R78)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from prefect_parallelrun import (
    ConfigError,
    FileDataset,
    ParallelRunConfig,
    PipelineParameter,
    blocks,
    foreign_blocks,
)
from prefect_parallelrun.blocks import (
    AzureAccountKeyCredentials,
    AzureSasCredentials,
    HttpCredentials,
    ParallelRunConfigBlock,
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


KINDS = [kind for name in blocks.__all__ if Block.is_block_class(kind := getattr(blocks, name))]


class TestAsPrefectWantsThem(BlockStandardTestSuite):
    """Prefect's own demands on a collection's blocks: descriptions, documentation, examples (R240)."""

    @pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
    def block(self, request):
        return request.param

    def test_has_a_valid_image(self, block):
        """There is the address of a logo; Prefect's own test fetches it from the network."""
        assert str(block._logo_url).startswith("https://")


@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_can_edit_a_block(kind):
    """No field has a form that Prefect 3.8's pages cannot edit: a mapping that may be None has no editor,
    and values that are no JSON schema are not saved (R240)."""
    for name, field in kind.model_json_schema()["properties"].items():
        forms = field.get("anyOf", [field])
        assert len(forms) == 1 or "object" not in {form.get("type") for form in forms}
        if name in ("description", "title", "type", "format", "enum"):
            assert field["type"] == "string"


SETTINGS = {
    "entry_script": "score.py",
    "source_directory": "scripts",
    "mini_batch_size": "1MB",
    "error_threshold": 3,
    "allowed_failed_count": 4,
    "allowed_failed_percent": 12.5,
    "output_action": "append_row",
    "append_row_file_name": "rows.txt",
    "output_format": "csv",
    "output_order": "completion",
    "compute_target": "tcp://10.0.0.4:8786",
    "node_count": 3,
    "process_count_per_node": 2,
    "environment": "/opt/venv",
    "environment_variables": {"A": "1"},
    "logging_level": "DEBUG",
    "run_invocation_timeout": 7.5,
    "run_max_try": 2,
    "isolate_failures": True,
    "speculative_copies": True,
    "gpus_per_process": 1,
    "source_limits": [1000, 5],
    "description": "nightly",
}


def test_settings_are_those_of_the_config():
    """A block has each setting of ParallelRunConfig, with its default, and gives an equal config (R240)."""
    assert {*ParallelRunConfigBlock.model_fields} == {*ParallelRunConfig.model_fields}
    assert {*SETTINGS, "partition_keys"} == {*ParallelRunConfig.model_fields}
    name = f"x-{uuid.uuid4().hex[:8]}"
    ParallelRunConfigBlock(**SETTINGS).save(name)

    loaded = ParallelRunConfigBlock.load(name)
    keys = ParallelRunConfigBlock(entry_script="s.py", partition_keys=["a", "b"])

    assert loaded.to_config() == ParallelRunConfig(**SETTINGS)
    assert keys.to_config() == ParallelRunConfig("s.py", partition_keys=["a", "b"])
    assert ParallelRunConfigBlock(entry_script="s.py").to_config() == ParallelRunConfig("s.py")


@pytest.mark.parametrize(
    "given",
    [
        {
            "entry_script": Path("s.py"),
            "source_directory": Path("src"),
            "environment": Path("venv"),
        },
        {"entry_script": "s.py", "source_limits": ("1GB", 5000), "partition_keys": ("a", "b")},
        {
            "entry_script": "s.py",
            "append_row_file_name": None,
            "logging_level": None,
            "run_invocation_timeout": None,
            "run_max_try": None,
            "environment_variables": None,
            "description": None,
        },
    ],
)
def test_settings_in_other_forms(given):
    """What ParallelRunConfig takes, the block takes (R240)."""
    before = dict(given)

    assert ParallelRunConfigBlock(**given).to_config() == ParallelRunConfig(**given)
    assert given == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("node_count", 0),
        ("node_count", True),
        ("node_count", PipelineParameter("nodes", 2)),
        ("mini_batch_size", {"name": "size", "default_value": 3}),
        ("output_format", "xml"),
        ("isolate_failures", "yes"),
        ("compute_target", "s3-credentials/x"),
        ("source_limits", ["300MB"]),
        ("nodes", 2),
    ],
)
def test_settings_that_cannot_work(setting, value):
    """What ParallelRunConfig refuses, and a PipelineParameter, are refused with the setting's name (R39)."""
    secret = {"KEY": "wqTs81"}
    with pytest.raises(ValidationError, match=setting) as caught:
        ParallelRunConfigBlock(
            entry_script="s.py", environment_variables=secret, **{setting: value}
        )
    assert "wqTs81" not in str(caught.value)


def test_settings_with_changes():
    """to_config() takes other values, and PipelineParameters, in place of the block's (R39)."""
    block = ParallelRunConfigBlock(entry_script="s.py", node_count=2)

    config = block.to_config(mini_batch_size=PipelineParameter("size", 4), node_count=3)

    assert config.resolved({"size": 9}) == ParallelRunConfig(
        "s.py", mini_batch_size=9, node_count=3
    )
    with pytest.raises(ConfigError, match="node_count=0"):
        block.to_config(node_count=0)


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
