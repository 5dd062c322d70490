"""What of a storage may be written down (R78)."""

from __future__ import annotations

import pickle

import pytest

from prefect_parallelrun.datasets import FileDataset, TabularDataset
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.kept_storage import kept, may_be_kept
from prefect_parallelrun.datasets.storage import LOCAL, Storage
from prefect_parallelrun.errors import ConfigError

SAS = "sv=2024-11-04&se=2026-12-01T00%3A00%3A00Z&sr=c&sp=rl&sig=wqTs81%2Bx%2F%3D"


@pytest.mark.parametrize(
    ("storage", "open_"),
    [
        (LOCAL, True),
        (Storage("s3", "s3-credentials/mine"), True),
        (Storage("s3", None, Hidden({"anon": True})), False),
        (Storage("sql", "sql-connection/mine"), True),
        (Storage("sql", None, Hidden({"url": "sqlite:////data/a.db"})), True),
        (Storage("sql", None, Hidden({"url": "postgresql+psycopg://me@host/sales"})), True),
        (Storage("sql", None, Hidden({"url": "postgresql+psycopg://me:wqTs81@host/sales"})), False),
        (
            Storage(
                "sql", None, Hidden({"url": "postgresql+psycopg://host/sales?password=wqTs81"})
            ),
            False,
        ),
    ],
)
def test_options_may_be_secret(storage, open_):
    """Options are not written down, but for a database's URL without a password (R78)."""
    assert may_be_kept(storage) == open_
    again = kept(storage)
    assert again == storage if open_ else (again.left_out and not again.options)
    assert "wqTs81" not in f"{again!r} {storage!r}".encode().decode()
    assert b"wqTs81" not in pickle.dumps(again)


def test_what_was_left_out_is_missed():
    """A storage that was written down without its options says so when it is opened (R78, R205)."""
    with pytest.raises(ConfigError, match=r"not kept with the run.*credentials block"):
        kept(Storage("s3", None, Hidden({"secret": "wqTs81"}))).unlocked()


@pytest.mark.parametrize(
    ("url", "shown", "parameters"),
    [
        (
            f"https://account.blob.core.windows.net/c/a%20b.csv?{SAS}",
            "https://account.blob.core.windows.net/c/a%20b.csv",
            {"sig": "wqTs81+x/=", "se": "2026-12-01T00:00:00Z", "sp": "rl"},
        ),
        (
            "https://b.s3.amazonaws.com/a.csv?X-Amz-Date=2026&id=7&X-Amz-Signature=wqTs81",
            "https://b.s3.amazonaws.com/a.csv?id=7",
            {"X-Amz-Date": "2026", "X-Amz-Signature": "wqTs81"},
        ),
        (
            "https://example.org/a.csv?store=1&size=2&api_key=wqTs81&sv=3",
            "https://example.org/a.csv?store=1&size=2&sv=3",
            {"api_key": "wqTs81"},
        ),
        ("https://example.org/a?Password=wqTs81", "https://example.org/a", {"Password": "wqTs81"}),
        (
            "simplecache::https://example.org/a.csv?site=1&token=wqTs81",
            "simplecache::https://example.org/a.csv?site=1",
            {"token": "wqTs81"},
        ),
    ],
)
def test_a_signature_is_taken_out_of_a_url(url, shown, parameters):
    """A signed web address is known by the rest of it; its signature is an option like others (R78)."""
    dataset = FileDataset.from_files(url)

    assert dataset.paths == (shown,)
    given = dict(dataset.storage.options["params"])
    assert {name: given[name] for name in parameters} == parameters
    assert "wqTs81" not in f"{dataset!r} {dataset.storage!r} {dataset.to_path()}"
    assert not may_be_kept(dataset.storage)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.csv",
        "https://example.org/a?id=3&state=x&size=2",
        "https://example.org/pkg@1.0/a?sort=a;b#part",
        "http://localhost:8080/a@b",
        "abfs://container@account.dfs.core.windows.net/a",
        "s3://b/a?b",
    ],
)
def test_other_queries_stay(url):
    """A query without a signature is part of the address."""
    dataset = FileDataset.from_files(url)
    assert (dataset.paths, dataset.storage.options) == ((url,), {})


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://wqTs81@example.org/a", "HttpCredentials"),
        ("https://me:wqTs81@example.org/a", "HttpCredentials"),
        ("simplecache::https://me:p/wqTs81@example.org/a", "HttpCredentials"),
        ("zip://in::https://wqTs81@example.org/a.zip", "HttpCredentials"),
        ("ftp://me:wqTs81@example.org/a", "credentials"),
        ("https://example.org/a#access_token=wqTs81", "after a #"),
        ("https://example.org/a?b=1;sig=wqTs81", "apart with &"),
    ],
)
def test_a_secret_that_no_server_gets_so_is_refused(url, says):
    """Users and secrets in other parts of a URL are refused, with what to do instead, and not shown (R78)."""
    with pytest.raises(ConfigError, match=says) as caught:
        FileDataset.from_files(url)
    assert "wqTs81" not in str(caught.value)


def test_files_with_one_token_are_one_dataset():
    """What tells files apart stays in their URLs, however alike it is to Azure's parameters (R78)."""
    urls = [f"https://example.org/a?{name}=1&token=wqTs81" for name in ("store", "site", "sort")]
    dataset = FileDataset.from_files(urls)
    assert dataset.paths == tuple(url.removesuffix("&token=wqTs81") for url in urls)
    with pytest.raises(ConfigError, match="another secret"):
        FileDataset.from_files([urls[0], urls[1].replace("81", "82")])


def test_a_signature_where_it_does_not_belong():
    """A signed URL of an object store is refused, and not shown (R78)."""
    with pytest.raises(ConfigError, match="AzureSasCredentials") as caught:
        TabularDataset.from_parquet_files(f"abfs://container/a?{SAS}")
    assert "wqTs81" not in str(caught.value)
