"""Storage as it really answers: S3 (moto's server), Azure blobs (Azurite) and plain HTTP.

A test takes the fixture `s3`, `azure` or `http_server` and gets a bucket, container or folder of its
own, empty, at `.url`:

    def test_…(s3, run):
        s3.put("in/a.txt", "text")              # by the vendor's client, not by fsspec; gives the URL
        FileDataset.from_files(f"{s3.url}/in", storage_options=s3.storage_options)
        s3.names(), s3.read("out/x"), s3.delete("in/a.txt")

`azure` is the same with `abfs://`. `http_server` serves what `put` gives it, with index pages for
folders; `http_server.trouble("a.csv", 503, times=2)` (also 404, 401, …, `"drop"`, `"hang"`;
`times=None` for always) makes it fail, `.etags`, `.dates`, `.ranges`, `.lengths` = False leave these
out, `.token = "t"` asks for `Authorization: Bearer t`; `.requests[path]` and `.sent[path]` count
requests and bytes. `run` is that of `tests/conftest.py`. The servers are started by the first test
that wants them and end with the session. Azurite's program is looked for in `AZURITE_BIN`, where that
is set, else on PATH.
"""

from __future__ import annotations

import threading
import uuid

import pytest

from tests.storage.http_files import WebServer
from tests.storage.servers import (
    S3_KEY,
    S3_SECRET,
    Place,
    azure_connection_string,
    azurite_server,
    moto_server,
)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory):
    """Address of an S3 server."""
    with moto_server(tmp_path_factory.mktemp("moto") / "log") as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint):
    """An empty bucket of this test."""
    boto3 = pytest.importorskip("boto3")
    secrets = {"aws_access_key_id": S3_KEY, "aws_secret_access_key": S3_SECRET}
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1", **secrets)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    options = {"key": S3_KEY, "secret": S3_SECRET, "endpoint_url": s3_endpoint}
    try:
        yield Place(f"s3://{name}", options, client, s3_endpoint)
    finally:
        client.close()


@pytest.fixture(scope="session")
def azure_endpoint(tmp_path_factory):
    """Address of an Azure storage account."""
    with azurite_server(tmp_path_factory.mktemp("azurite") / "log") as endpoint:
        yield endpoint


@pytest.fixture
def azure(azure_endpoint):
    """An empty container of this test."""
    blob = pytest.importorskip("azure.storage.blob")
    opened = azure_connection_string(azure_endpoint)
    name = f"container-{uuid.uuid4().hex[:12]}"
    with blob.BlobServiceClient.from_connection_string(opened) as client:
        client.create_container(name)
        yield Place(f"abfs://{name}", {"connection_string": opened}, client, azure_endpoint)


@pytest.fixture(scope="session")
def web_server():
    """A web server."""
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http_server(web_server):
    """A folder of files of this test, behind a web server that can be told to fail."""
    with web_server.folder(f"test-{uuid.uuid4().hex[:12]}") as files:
        yield files
