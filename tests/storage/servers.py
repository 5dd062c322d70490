"""Real storage servers on loopback, each a process of its own: moto for S3, Azurite for Azure blobs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The key of Azurite's account, the same everywhere; Microsoft's documentation has it."""
S3_KEY, S3_SECRET = "AKIAOFTHETESTS000000", "secret-of-the-storage-tests"


def lacking(name: str, why: str) -> NoReturn:
    """Skip the test, or fail it where PARALLELRUN_TESTS_REQUIRE (words with commas) has the name."""
    if name in os.environ.get("PARALLELRUN_TESTS_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here, and {why}")
    pytest.skip(why)


@dataclass(frozen=True)
class Place:
    """A bucket or container of one test."""

    url: str
    """Of the bucket, without a slash at its end."""
    storage_options: Mapping[str, Any] = field(repr=False)
    client: Any = field(repr=False)
    """The vendor's own client, so that tests put data there by other means than fsspec."""
    endpoint: str = ""
    """http:// address of the server."""

    @property
    def name(self) -> str:
        """Of the bucket or container."""
        return self.url.rpartition("/")[2]

    def open_by_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment open this bucket of S3, as it does for whoever names no credentials."""
        import s3fs

        monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
        monkeypatch.setenv("AWS_ENDPOINT_URL", self.endpoint)
        # fsspec keeps what it opened, and does not look whether the environment is another by now.
        s3fs.S3FileSystem.clear_instance_cache()

    def put(self, path: str, data: bytes | str) -> str:
        """Store an object, and return its URL."""
        raw = data.encode() if isinstance(data, str) else data
        if self.url.startswith("s3:"):
            self.client.put_object(Bucket=self.name, Key=path, Body=raw)
        else:
            self.client.get_blob_client(self.name, path).upload_blob(raw, overwrite=True)
        return f"{self.url}/{path}"

    def read(self, path: str) -> bytes:
        """Return what an object holds."""
        if self.url.startswith("s3:"):
            found: bytes = self.client.get_object(Bucket=self.name, Key=path)["Body"].read()
            return found
        blob: bytes = self.client.get_blob_client(self.name, path).download_blob().readall()
        return blob

    def delete(self, path: str) -> None:
        """Remove an object."""
        if self.url.startswith("s3:"):
            self.client.delete_object(Bucket=self.name, Key=path)
        else:
            self.client.get_blob_client(self.name, path).delete_blob()

    def names(self) -> list[str]:
        """Return the keys of all objects, sorted."""
        if self.url.startswith("s3:"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))
        return sorted(self.client.get_container_client(self.name).list_blob_names())


@contextlib.contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """Run an S3 server; gives its address."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, log):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def azurite_server(log: Path) -> Iterator[str]:
    """Run a server of Azure blobs; gives the address of its account."""
    program = shutil.which("azurite-blob", path=os.environ.get("AZURITE_BIN"))
    if program is None:
        lacking("azurite", "azurite-blob is not on PATH, nor in AZURITE_BIN (npm install azurite)")
    port = _free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--loose", "--silent"]
    command = [program, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _running([*command, "--disableTelemetry"], port, log):
        yield f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"


def azure_connection_string(endpoint: str, key: str = AZURE_KEY) -> str:
    """Return what opens the account at an address."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={key};"
        f"BlobEndpoint={endpoint};"
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=log.parent
        )
    try:
        deadline = time.monotonic() + 45
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"{command[0]} does not answer: {log.read_text()[-2000:]}")
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()
