"""What URLs stand for on real servers, how often these are asked, and what people read when it fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from azure.storage.blob import generate_container_sas

from prefect_parallelrun.datasets import FileDataset, transport
from prefect_parallelrun.errors import DatasetError
from tests.storage.servers import AZURE_ACCOUNT, AZURE_KEY, azure_connection_string

PLACES = ["s3", "azure", "http_server"]


@pytest.fixture
def place(request):
    """One of the servers."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def impatient(monkeypatch):
    """Failures are given up after a moment."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "LIMIT_S", 0.3)


def dataset(place, below="", **options):
    """The files at a URL of a server."""
    return FileDataset.from_files(
        f"{place.url}{below}", storage_options={**place.storage_options, **options}
    )


def listed(place, below=""):
    """The names of these files, below the place's root."""
    return [file.path.removeprefix(place.url) for file in dataset(place, below).list_files()]


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("/in", ["/in/a.txt", "/in/sub/b.txt", "/in/sub/deep/c.csv"]),
        ("/in/", ["/in/a.txt", "/in/sub/b.txt", "/in/sub/deep/c.csv"]),
        ("/in/a.txt", ["/in/a.txt"]),
        ("/in/*.txt", ["/in/a.txt"]),
        ("/in/*/*.txt", ["/in/sub/b.txt"]),
        ("/**/*.txt", ["/in/a.txt", "/in/sub/b.txt", "/into/d.txt"]),
    ],
)
def test_a_url_is_a_file_a_folder_or_a_glob(place, below, expected):
    """On every storage a URL stands for the same files, sorted, and no other that begins alike (R231)."""
    for name in ("in/sub/b.txt", "in/a.txt", "in/sub/deep/c.csv", "into/d.txt"):
        place.put(name, "x")

    assert listed(place, below) == expected


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_size_and_what_tells_a_change_are_listed(place):
    """A file has its size, and an etag that changes with what is in it (R231)."""
    place.put("in/a.txt", "12345")
    files = dataset(place, "/in")

    (before,) = files.list_files()
    place.put("in/a.txt", "54321")
    (after,) = files.list_files()

    assert (before.size, before.path) == (5, f"{place.url}/in/a.txt")
    assert before.etag
    assert before.modified_ns > 1_600_000_000 * 10**9
    assert after.etag != before.etag
    assert files.shows_changes([before])


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_listing_is_never_one_of_before(place):
    """Files that came or went since the last listing are seen (R231)."""
    place.put("in/a.txt", "x")
    assert listed(place, "/in") == ["/in/a.txt"]

    place.put("in/b.txt", "x")

    assert listed(place, "/in") == listed(place, "/in/*") == ["/in/a.txt", "/in/b.txt"]


@pytest.mark.parametrize("place", ["s3", "azure"], indirect=True)
def test_markers_of_folders_are_no_files(place):
    """An empty object that stands for a folder is left out; an empty file is not (R231)."""
    place.put("in/", "")
    place.put("in/sub/", "")
    place.put("in/sub/a.txt", "")

    assert listed(place, "/in") == listed(place, "/in/**") == ["/in/sub/a.txt"]


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_names_that_need_quoting_are_found(place):
    """Blanks and other letters in names are no obstacle (R231)."""
    place.put("in/a ü+b.txt", "text")
    files = FileDataset.from_files(
        f"{place.url}/in/", storage_options=place.storage_options, content=True
    )

    (file,) = files.list_files()

    assert file.size == 4
    assert len(list(files.fingerprint_parts([file]))) == 2


def test_no_object_costs_a_request_of_its_own(s3, monkeypatch):
    """However many folders and files there are, S3 is asked once for a page of a thousand keys (R231)."""
    calls = []
    from s3fs import S3FileSystem

    plain = S3FileSystem._call_s3

    async def counted(self, method, *args, **kwargs):
        calls.append(method)
        return await plain(self, method, *args, **kwargs)

    for n in range(100):
        s3.put(f"in/{n // 4}/{n:04}.txt", "")
    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)

    assert len(listed(s3, "/in")) == 100
    assert sorted(calls) == ["head_object", "list_objects_v2", "list_objects_v2"]
    calls.clear()
    assert len(listed(s3, "/in/*/*.txt")) == 100
    assert calls == ["list_objects_v2"]


def test_a_web_server_is_asked_once_for_each_page_and_file(http_server):
    """An index page says no sizes: each file costs one question, without its content (R231)."""
    for n in range(20):
        http_server.put(f"in/{n:02}.txt", "x" * 1000)

    assert len(listed(http_server, "/in/")) == 20

    assert http_server.requests == {"in/": 1, **{f"in/{n:02}.txt": 1 for n in range(20)}}
    assert not http_server.sent


def test_a_web_server_without_etags_and_dates_shows_no_changes(http_server):
    """Then nobody can see that a file is another one (R231)."""
    http_server.put("a.txt", "x")
    http_server.etags = http_server.dates = False
    files = dataset(http_server, "/a.txt")

    assert not files.shows_changes(files.list_files())


def test_a_file_of_unknown_length_is_refused(http_server):
    """What has no Content-Length cannot be planned; the error names it (R231)."""
    http_server.put("a.txt", "x")
    http_server.lengths = False

    with pytest.raises(DatasetError, match=r"a\.txt: its server does not say how long it is"):
        listed(http_server, "/a.txt")


@pytest.mark.parametrize("trouble", [503, 500, 429, "drop"])
def test_what_may_pass_is_asked_again(http_server, monkeypatch, trouble):
    """A server that is busy, or cuts the connection, is asked again after a pause (R231)."""
    monkeypatch.setattr(transport, "PAUSE_S", 0.01)
    http_server.put("in/a.txt", "x")
    http_server.trouble("in/", trouble, times=3)
    # Each of HEAD and GET, by which fsspec asks for a size.
    http_server.trouble("in/a.txt", 503, times=2)

    assert listed(http_server, "/in/") == ["/in/a.txt"]
    assert http_server.requests == {"in/": 4, "in/a.txt": 3}


@pytest.mark.parametrize("below", ["/in/", "/in/a.txt", "/in/*.txt", "/in/**"])
def test_trouble_that_stays_is_an_error_with_the_number_of_tries(http_server, impatient, below):
    """A server that stays busy ends the listing, with its URL and how often it was asked (R231)."""
    http_server.put("in/a.txt", "x")
    http_server.trouble("in/", 503, times=None)
    http_server.trouble("in/a.txt", 503, times=None)

    with pytest.raises(DatasetError, match=r"(?s)http://.*/in/.*too busy \(tried \d+ times in"):
        listed(http_server, below)


@pytest.mark.parametrize(
    ("trouble", "said"), [("drop", "too busy"), (404, "is not there"), (403, "access is denied")]
)
@pytest.mark.parametrize("below", ["/in/", "/in/**", "/in/*/*.txt"])
def test_a_folder_that_cannot_be_listed_is_not_left_out(
    http_server, impatient, below, trouble, said
):
    """Where a part of a listing fails, all of it does: no file is lost in silence (R231)."""
    http_server.put("in/a.txt", "x")
    http_server.put("in/sub/b.txt", "x")
    http_server.trouble("in/sub", trouble, times=None)
    http_server.trouble("in/sub/", trouble, times=None)

    with pytest.raises(DatasetError, match=said):
        listed(http_server, below)


def test_a_server_that_says_nothing_does_not_hold_up_the_listing(http_server, impatient):
    """Silence ends a request, and the listing after some tries (R231)."""
    http_server.put("a.txt", "x")
    http_server.trouble("a.txt", "hang", times=None)
    limits = {"timeout": aiohttp.ClientTimeout(sock_read=0.1)}

    with pytest.raises(DatasetError, match=r"a\.txt cannot be read: its storage does not answer"):
        dataset(http_server, "/a.txt", client_kwargs=limits).list_files()


def test_a_server_that_is_not_there_is_said_to_be(http_server, impatient):
    """An address at which nothing listens is told as such (R231)."""
    with pytest.raises(DatasetError, match=r"http://127\.0\.0\.1:1/a\.txt .*does not answer"):
        FileDataset.from_files("http://127.0.0.1:1/a.txt").list_files()


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize(
    ("below", "said"),
    [
        ("/none", "/none is not there"),
        ("/none/*.txt", r"/none/\*.txt is not there"),
        ("/in/*.csv", r"/in/\*.csv matches no file"),
    ],
)
def test_what_is_not_there_is_named(place, below, said):
    """The error names the URL that leads nowhere (R231)."""
    place.put("in/a.txt", "x")

    with pytest.raises(DatasetError, match=said):
        listed(place, below)


@pytest.mark.parametrize("place", ["s3", "azure"], indirect=True)
def test_a_missing_bucket_is_named(place):
    """A bucket or container that is not there is told so (R231)."""
    files = FileDataset.from_files(f"{place.url}-none/in", storage_options=place.storage_options)

    with pytest.raises(DatasetError, match=r"-none/in is not there: no such bucket, container"):
        files.list_files()


def test_wrong_keys_are_told_without_showing_them(azure):
    """Whoever is not let in reads what to look at; no part of the key is shown (R78, R231)."""
    wrong = "A" * 20 + AZURE_KEY[20:]
    azure.put("in/a.txt", "x")
    opened = azure_connection_string(azure.endpoint, wrong)

    with pytest.raises(DatasetError, match="access is denied") as caught:
        dataset(azure, "/in", connection_string=opened).list_files()

    assert f"{azure.url}/in cannot be read" in str(caught.value)
    assert wrong[:30] not in str(caught.value)


def test_an_expired_signature_is_told_without_showing_it(azure):
    """A shared access signature that has run out is told as such; it is not shown (R78, R231)."""
    azure.put("in/a.txt", "x")
    signature = generate_container_sas(
        AZURE_ACCOUNT,
        azure.name,
        account_key=AZURE_KEY,
        permission="rl",
        expiry=datetime.now(UTC) - timedelta(hours=1),
    )
    opened = f"BlobEndpoint={azure.endpoint};SharedAccessSignature={signature}"

    with pytest.raises(DatasetError, match=r"access is denied.*not expired") as caught:
        dataset(azure, "/in", connection_string=opened).list_files()

    assert signature.rpartition("sig=")[2] not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_web_server_that_lets_nobody_in_is_not_asked_again(http_server, status):
    """A refusal does not pass: the error comes at once (R231)."""
    http_server.put("a.txt", "x")
    http_server.trouble("a.txt", status, times=None)

    with pytest.raises(DatasetError, match=r"a\.txt cannot be read: access is denied"):
        listed(http_server, "/a.txt")

    assert http_server.requests["a.txt"] == 2  # HEAD and GET


def test_headers_open_a_web_server(http_server):
    """A token in `storage_options` is sent along (R231)."""
    http_server.put("in/a.txt", "x")
    http_server.token = "hush-token"
    headers = {"Authorization": "Bearer hush-token"}

    assert len(dataset(http_server, "/in/", headers=headers).list_files()) == 1


def test_an_interrupted_program_ends_though_a_server_does_not_answer(http_server):
    """Ctrl-C while files are listed: nothing waits for the requests that hang."""
    for name in "abc":
        http_server.put(f"in/{name}.txt", "x")
    http_server.trouble("in/b.txt", "hang", times=None)
    program = "import sys; from prefect_parallelrun import FileDataset; "
    program += "FileDataset.from_files(sys.argv[1]).list_files()"
    command = [sys.executable, "-c", program, f"{http_server.url}/in/"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not http_server.requests["in/b.txt"] and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=5)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in said
