"""Web addresses with a signature in them open what they sign, and are not written down whole (R78, R231)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.errors import DatasetError
from tests.storage.servers import AZURE_ACCOUNT, AZURE_KEY

ROWS = """
def run(mini_batch):
    return [open(path).read() for path in mini_batch]
"""


@pytest.fixture
def token(azure):
    """A signature for reading the container."""
    blob = pytest.importorskip("azure.storage.blob")
    text: str = blob.generate_container_sas(
        AZURE_ACCOUNT,
        azure.name,
        account_key=AZURE_KEY,
        permission=blob.ContainerSasPermissions(read=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    return text


def test_signed_addresses(run, azure, token, tmp_path):
    """Files behind signed URLs are read; the signature is nowhere in the run folder (R78)."""
    urls = []
    for name in ("a", "b"):
        azure.put(f"in/{name}.txt", name)
        urls.append(f"{azure.endpoint}/{azure.name}/in/{name}.txt?{token}")
    folder = tmp_path / "runs" / "one"

    result = run(ROWS, [FileDataset.from_files(urls)], run_folder=folder, logging_level="DEBUG")

    with open(result.append_row_file) as rows:
        assert rows.read() == "a\nb\n"
    (signature,) = parse_qs(token)["sig"]
    secrets = [signature.encode(), token.encode(), token.partition("sig=")[2].encode()]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets), path


def test_without_its_signature(azure, token):
    """The signature does open it: without, or with a wrong one, access is denied, and it is not shown."""
    azure.put("in/a.csv", "x,y\n1,2\n")
    url = f"{azure.endpoint}/{azure.name}/in/a.csv"

    assert TabularDataset.from_delimited_files(f"{url}?{token}").to_pandas_dataframe().y[0] == 2
    wrong = token.replace("sig=", "sig=AAAA")
    with pytest.raises(DatasetError) as caught:
        FileDataset.from_files(f"{url}?{wrong}").list_files()

    assert url in str(caught.value)
    assert wrong.partition("sig=")[2][:30] not in str(caught.value)
