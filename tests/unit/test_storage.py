"""URLs before any server is asked: which are refused, what is shown of them, and files in memory."""

from __future__ import annotations

import copy
import errno
import gzip
import io
import json
import pickle
import uuid
import zipfile

import fsspec
import pandas as pd
import pytest

from prefect_parallelrun.datasets import (
    FileDataset,
    OutputFileDatasetConfig,
    TabularDataset,
    listing,
    transport,
)
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import ConfigError, DatasetError


@pytest.fixture
def memory():
    """A folder of this test in fsspec's memory, with a function that puts files there."""
    storage = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"

    class Memory:
        url = f"memory:/{root}"

        def put(self, path, data=b"x"):
            storage.pipe(f"{root}/{path}", data.encode() if isinstance(data, str) else data)
            return f"{self.url}/{path}"

        def listed(self, paths, **options):
            dataset = FileDataset.from_files(paths, **options)
            return [file.path.removeprefix(f"{self.url}/") for file in dataset.list_files()]

    yield Memory()
    if storage.exists(root):
        storage.rm(root, recursive=True)


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("", ["a.txt", "sub/.hidden", "sub/b.txt", "sub/deep/c.csv"]),
        ("/", ["a.txt", "sub/.hidden", "sub/b.txt", "sub/deep/c.csv"]),
        ("/a.txt", ["a.txt"]),
        ("/*.txt", ["a.txt"]),
        ("/*/*.txt", ["sub/b.txt"]),
        ("/**/*.txt", ["a.txt", "sub/b.txt"]),
        ("/sub/**", ["sub/b.txt", "sub/deep/c.csv"]),
        ("/sub/.*", ["sub/.hidden"]),
        ("/[ab].txt", ["a.txt"]),
    ],
)
def test_a_url_is_a_file_a_folder_or_a_glob(memory, below, expected):
    """URLs stand for the files that a local path of that form would, sorted by URL (R231)."""
    for name in ("sub/b.txt", "a.txt", "sub/deep/c.csv", "sub/.hidden"):
        memory.put(name)

    assert memory.listed(memory.url + below) == expected


def test_a_file_whose_name_looks_like_a_glob_is_found(memory):
    """A pattern that matches nothing is the name of a file, if there is one (R231)."""
    url = memory.put("a[1].txt")

    assert memory.listed(url) == ["a[1].txt"]


def test_the_protocol_may_be_in_capitals(memory):
    """As everywhere, letters of a protocol are one and the same in both cases (R231)."""
    url = memory.put("a.txt")

    assert memory.listed(url.replace("memory:", "Memory:")) == ["a.txt"]


def test_several_urls_give_each_file_once(memory):
    """A file that two paths name is one item (R231)."""
    first, _ = memory.put("a.txt"), memory.put("b.txt")

    assert memory.listed([memory.url, first]) == ["a.txt", "b.txt"]


def test_a_file_says_its_size_and_time_and_shows_changes(memory):
    """Size and time come from the listing; a file written anew has another fingerprint (R231)."""
    memory.put("a.txt", "12345")
    dataset = FileDataset.from_files(memory.url)

    before = dataset.list_files()
    memory.put("a.txt", "54321")
    after = dataset.list_files()

    assert before[0].size == 5
    assert before[0].modified_ns > 0
    assert dataset.shows_changes(before)
    assert list(dataset.fingerprint_parts(before)) != list(dataset.fingerprint_parts(after))


def test_content_decides_of_remote_files_too(memory):
    """With content=True a file written anew with the same bytes is the same (R231)."""
    memory.put("a.txt", "same")
    dataset = FileDataset.from_files(memory.url, content=True)

    before = list(dataset.fingerprint_parts(dataset.list_files()))
    memory.put("a.txt", "same")
    same = list(dataset.fingerprint_parts(dataset.list_files()))
    memory.put("a.txt", "else")

    assert same == before
    assert list(dataset.fingerprint_parts(dataset.list_files())) != before


def test_an_etag_counts_more_than_a_time():
    """Where the storage says of the content, the time of writing says nothing more (R231)."""
    old = transport.item("s3://b/x", {"size": 3, "ETag": '"e"', "LastModified": 1.0})
    new = transport.item("s3://b/x", {"size": 3, "ETag": '"e"', "LastModified": 2.0})
    dataset = FileDataset.from_files("s3://b/x")

    assert (old.etag, old.modified_ns) == ('"e"', 1_000_000_000)
    assert list(dataset.fingerprint_parts([old])) == list(dataset.fingerprint_parts([new]))


def test_a_storage_that_tells_nothing_shows_no_changes():
    """Size alone does not show that a file is another one, unless its content is looked at (R231)."""
    silent = transport.item("http://host/x", {"size": 3})

    assert not FileDataset.from_files("http://host/x").shows_changes([silent])
    assert FileDataset.from_files("http://host/x", content=True).shows_changes([silent])
    assert FileDataset.from_files("http://host/x").shows_changes([])


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000_000_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T22:13:20.5+00:00", 1_700_000_000_500_000_000),
        (1_700_000_000, 1_700_000_000_000_000_000),
        (pd.Timestamp(1_700_000_000, unit="s", tz="UTC"), 1_700_000_000_000_000_000),
        ("yesterday", 0),
        (None, 0),
    ],
)
def test_times_are_understood_as_protocols_tell_them(told, expected):
    """HTTP has dates in words, S3 and Azure objects of datetime, others numbers (R231)."""
    assert transport.item("x://y", {"size": 1, "Last-Modified": told}).modified_ns == expected


def test_archives_and_caches_can_be_read_through(memory):
    """A chain of URLs, such as members of an archive in a storage, is listed and read (R231)."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/a.csv", "n,word\n1,one\n")
        file.writestr("in/b.csv", "n,word\n2,two\n")
        file.writestr("c.txt", "no")
    url = memory.put("x.zip", archive.getvalue())
    plain = memory.put("in/d.csv", "n,word\n3,three\n")

    assert [file.path for file in FileDataset.from_files(f"zip://in::{url}").list_files()] == [
        f"zip://in/a.csv::{url}",
        f"zip://in/b.csv::{url}",
    ]
    table = TabularDataset.from_delimited_files(f"zip://**/*.csv::{url}").to_pandas_dataframe()
    assert table.to_dict("list") == {"n": [1, 2], "word": ["one", "two"]}
    cached = TabularDataset.from_delimited_files(f"simplecache::{plain}").to_pandas_dataframe()
    assert cached.to_dict("list") == {"n": [3], "word": ["three"]}


def test_parquet_in_archives_and_caches_is_read(memory):
    """What is not read from its middle over the wire still can be, where it is held (R231)."""
    frame = pd.DataFrame({"n": range(10)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("t.parquet", frame.to_parquet())
    zipped = memory.put("x.zip", archive.getvalue())
    plain = memory.put("t.parquet", frame.to_parquet())

    for url in (f"zip://t.parquet::{zipped}", f"simplecache::{plain}"):
        table = TabularDataset.from_parquet_files(url).to_pandas_dataframe()
        pd.testing.assert_frame_equal(table, frame)


def test_a_changed_archive_is_seen(memory):
    """Members of an archive that was replaced are listed anew, with another identity (R231)."""

    def zipped(**members):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
        return archive.getvalue()

    url = memory.put("x.zip", zipped(a="one"))
    dataset = FileDataset.from_files(f"zip://::{url}")
    before = dataset.list_files()
    memory.put("x.zip", zipped(a="two", b="new"))
    after = dataset.list_files()

    assert [file.path for file in after] == [f"zip://a::{url}", f"zip://b::{url}"]
    assert before[0].etag != after[0].etag


def test_compressed_remote_files_are_read(memory):
    """Compression is told by the end of the name, in URLs too, a query left out (R231)."""
    url = memory.put("a.csv.gz", gzip.compress(b"n\n1\n2\n"))

    assert TabularDataset.from_delimited_files(url).to_pandas_dataframe()["n"].tolist() == [1, 2]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_remote_table_is_the_same_table(memory, tmp_path, form):
    """Types, rows and the first rows are those of the same bytes on this machine (R231, R111)."""
    frame = pd.DataFrame({"n": range(3000), "word": ["x"] * 3000, "f": [None, 1.5, 2.5] * 1000})
    data = {
        "csv": lambda: frame.to_csv(index=False).encode(),
        "jsonl": lambda: frame.to_json(orient="records", lines=True).encode(),
        "parquet": lambda: frame.to_parquet(index=False),
    }[form]()
    make = {
        "csv": TabularDataset.from_delimited_files,
        "jsonl": TabularDataset.from_json_lines_files,
        "parquet": TabularDataset.from_parquet_files,
    }[form]
    (tmp_path / f"t.{form}").write_bytes(data)
    remote, local = make(memory.put(f"t.{form}", data)), make(tmp_path / f"t.{form}")

    pd.testing.assert_frame_equal(remote.to_pandas_dataframe(), local.to_pandas_dataframe())
    pd.testing.assert_frame_equal(
        remote.take(7).to_pandas_dataframe(), local.take(7).to_pandas_dataframe()
    )


def test_nothing_that_is_open_or_secret_travels_with_a_path(memory):
    """A listed file that is pickled, copied or written as JSON is its URL alone (R78)."""
    memory.put("a.txt")
    dataset = FileDataset.from_files(memory.url, storage_options={"secret": "hush-hush"})

    (file,) = FileDataset.from_files(memory.url).list_files()
    copies = [pickle.loads(pickle.dumps(file.path)), copy.deepcopy(file.path)]

    assert [(type(one), one) for one in copies] == [(str, f"{memory.url}/a.txt")] * 2
    assert json.dumps([file.path]) == f'["{memory.url}/a.txt"]'
    assert "hush" not in repr(dataset) + repr(dataset.storage)
    assert pickle.loads(pickle.dumps(dataset)).storage == dataset.storage


def test_to_path_of_urls_is_a_url():
    """As a side input a URL is that URL, a glob its folder, several the folder they share (R74)."""

    def path_of(paths):
        return FileDataset.from_files(paths).to_path()

    assert path_of("s3://b/in/a.txt") == "s3://b/in/a.txt"
    assert path_of("s3://b/in/*/x*.txt") == "s3://b/in"
    assert path_of("s3://b/*.txt") == "s3://b"
    assert path_of(["s3://b/in/a.txt", "s3://b/in/ab.txt"]) == "s3://b/in"
    assert path_of(["s3://b/a/x", "s3://b/ab/x"]) == "s3://b"
    assert path_of("zip://in/*.csv::s3://b/x.zip") == "zip://in::s3://b/x.zip"
    assert path_of("https://host/data.csv?like=*") == "https://host/data.csv?like=*"


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("what://x/y", "what:// is unknown"),
        ("zip://a::what://x/y", "what:// is unknown"),
        ("ftp://user:hush@host/x", "password"),
        (["s3://a/x", "abfs://a/x"], "one dataset for each storage"),
        (["s3://a/x", "/tmp/x"], "one dataset for each storage"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_at_once(paths, said):
    """An unknown protocol, a password in the URL, several storages: refused where they are given (R78)."""
    with pytest.raises(ConfigError, match=said) as caught:
        FileDataset.from_files(paths)

    assert "hush" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    """Whoever lacks the package for a protocol reads what to install (R231)."""

    def lacking(*given, **options):
        raise ImportError("no such package")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(ConfigError, match=r'pip install "prefect-parallelrun\[gcs\]"'):
        FileDataset.from_files("gs://bucket/x").list_files()


def test_options_that_do_not_fit_are_named_without_their_values():
    """An option that the storage does not know is told by name; its value may be a secret (R78)."""
    dataset = FileDataset.from_files("s3://b/x", storage_options={"key": "a", "username": "hush"})

    with pytest.raises(ConfigError, match="'key', 'username'") as caught:
        dataset.list_files()

    assert "hush" not in str(caught.value)


def test_options_for_local_paths_are_refused():
    """Options that nobody would look at are a mistake; their values are not shown (R78)."""
    for given in ({"storage_options": {"key": "hush"}}, {"credentials": "type/hush"}):
        with pytest.raises(ConfigError, match="is a local path") as caught:
            FileDataset.from_files("x", **given)
        assert "hush" not in str(caught.value)


def test_no_file_is_an_error_that_names_the_url(memory):
    """What is not there, is empty or matches nothing says so, with its URL (R231)."""
    memory.put("a.txt")

    with pytest.raises(DatasetError, match=r"/no is not there"):
        memory.listed(f"{memory.url}/no")
    with pytest.raises(DatasetError, match=r"/\*.csv matches no file"):
        memory.listed(f"{memory.url}/*.csv")


class Answer(Exception):
    """An SDK's error that has the server's status."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (Answer(503), True),
        (Answer(429), True),
        (Answer(500), True),
        (Answer(404), False),
        (Answer(401), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (PermissionError(errno.EACCES, "no"), False),
        (FileNotFoundError("x"), False),
        (ValueError("x"), False),
    ],
)
def test_which_errors_may_pass(error, passes):
    """What is busy or unreachable is asked again; what is missing or forbidden is not (R231)."""
    assert transport.is_passing(error) is passes


def test_the_cause_counts_where_a_library_hides_it():
    """fsspec's HTTP calls every failure a missing file; the server's status tells the truth (R231)."""
    hidden = FileNotFoundError("x")
    hidden.__cause__ = Answer(503)

    assert transport.is_passing(hidden)


def test_a_call_is_repeated_until_it_succeeds(monkeypatch):
    """A failure that passes costs tries, not the run (R231)."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.001)
    failures = [Answer(503), ConnectionResetError()]

    def call():
        if failures:
            raise failures.pop()
        return "there"

    assert transport.retried(call, what="s3://b/x") == "there"


def test_the_last_error_says_how_often_and_nothing_secret(monkeypatch):
    """The error names the URL and the tries; values of options are left out, however deep (R78)."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.001)
    options = {
        "connection_string": "AccountName=acc;AccountKey=aGVsbG8gd29ybGQ=;",
        "client_kwargs": {"headers": {"Authorization": "Bearer hush-token"}},
        "endpoint_url": "http://host:1",
    }

    def call():
        raise ConnectionError("http://host:1 key aGVsbG8gd29ybGQ= and hush-token, ?sig=hush2&x=1")

    with pytest.raises(DatasetError) as caught:
        transport.retried(call, what="https://h/x?sig=hush3", options=options, limit_s=0.05)

    text = str(caught.value)
    assert "https://h/x?sig=***" in text
    assert "tried " in text
    assert "http://host:1" in text
    assert not {word for word in ("aGVsbG8", "hush") if word in text}
    assert caught.value.__suppress_context__


def test_credentials_are_asked_for_when_files_are(monkeypatch):
    """A dataset with a credentials block asks Prefect for the secret when it is opened, not before (R78)."""
    monkeypatch.setattr(
        "prefect_parallelrun.datasets.credentials.options_of", lambda name: {"key": name}
    )

    storage = Storage("memory", "some-block/mine", Hidden({"other": 1}))

    assert storage.options == {"other": 1}
    assert storage.unlocked().options == {"key": "some-block/mine", "other": 1}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("s3://a/in", "s3://b/more", True),
        ("s3://a/in", ["s3://b/more", "s3://c/*.csv"], True),
        ("zip://in::s3://a/x.zip", "zip://::s3://a/y.zip", True),
        ("zip://in::s3://a/x.zip", "zip://in::https://example.org/x.zip", False),
        ("s3://a/in", "abfs://b/more", False),
        ("https://example.org/a.csv", "https://example.org/b.csv", True),
        ("https://example.org/a.csv", "https://elsewhere.org/a.csv", False),
        ("https://example.org/a.csv", "http://example.org/a.csv", False),
        ("s3://a/in", "/data/in", False),
        ("/data/in", "s3://a/in", False),
    ],
)
def test_other_files_are_opened_alike_in_the_same_storage(before, after, same):
    """Other files keep delivery, place and name, and what opens the storage if it is the same one (R39, R78)."""
    given = {} if before == "/data/in" else {"storage_options": {"secret": "hush"}}
    dataset = FileDataset.from_files(before, partition_format="/{a}.csv", content=True, **given)
    dataset = dataset.as_named_input("days").as_download("/tmp/days")

    other = dataset.at(after)

    kept = {
        name: value for name, value in vars(dataset).items() if name not in ("storage", "paths")
    }
    assert kept == {name: value for name, value in vars(other).items() if name in kept}
    assert other.paths == FileDataset.from_files(after).paths
    assert other.storage.options == ({"secret": "hush"} if same else {})


def test_many_requests_keep_their_order():
    """Requests made at the same time give their answers in the order of the questions."""
    assert list(mapped(lambda n: n * n, range(100), at_once=8)) == [n * n for n in range(100)]
    assert list(mapped(str, [], at_once=8)) == []


def test_the_root_of_a_url_is_found_without_asking_the_storage():
    """`root_of` of a URL cuts a glob; it opens nothing (R231)."""
    assert listing.root_of("s3://b/in/*.csv") == "s3://b/in"
    assert listing.root_of("s3://b/in") == "s3://b/in"


@pytest.mark.parametrize("url", ["memory://", "s3://", "s3:///", "https://", "zip://*.csv::s3://"])
def test_a_url_needs_a_place(tmp_path, url):
    """Without bucket or host a URL would become a local path: refused as input, output and target (R50)."""
    (tmp_path / "a.csv").write_text("k,v\n1,2\n")
    table = TabularDataset.from_delimited_files(str(tmp_path / "a.csv"))

    for use in (
        FileDataset.from_files,
        lambda place: OutputFileDatasetConfig(destination=place),
        lambda place: table.partition_by(["k"], place),
    ):
        with pytest.raises(ConfigError, match=r"://.*the place is missing"):
            use(url)


def test_a_broken_archive(tmp_path):
    """An archive that is none, or not there, is a DatasetError that names it, not one of its options."""
    (tmp_path / "a.zip").write_text("no archive")

    for name, trouble in (("a", "cannot be read"), ("b", "is not there")):
        with pytest.raises(DatasetError, match=f"zip://.*{name}.zip {trouble}"):
            FileDataset.from_files(f"zip://*.csv::file://{tmp_path}/{name}.zip").list_files()
