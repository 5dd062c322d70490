"""How a node fetches: requests and their limits, room on the disk, names of files (R231)."""

from __future__ import annotations

import json
import pickle
import threading
import time
from pathlib import Path

import pytest

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.datasets.storage import LOCAL, Storage
from prefect_parallelrun.node import transfer
from prefect_parallelrun.node.local_names import names_below
from prefect_parallelrun.node.pieces import Kept, whole
from prefect_parallelrun.node.side_inputs import with_paths
from prefect_parallelrun.node.sources import SIDE_INPUT, Files, Query, Sources
from prefect_parallelrun.node.staging import Room, Staging, at_once
from prefect_parallelrun.node.transfer import Place, Source, Stopped, Transfers, Unavailable

SECRET = "s3cr3t-value"
STORAGE = Storage(
    "s3", None, Hidden({"secret": SECRET, "client_kwargs": {"endpoint_url": "http://x"}})
)
FILE = Place("s3://bucket/a.csv", STORAGE)


@pytest.fixture
def transfers(monkeypatch):
    """The requests of a node, with short pauses."""
    monkeypatch.setattr(transfer, "PAUSE_S", 0.001)
    made = Transfers(limit_s=5)
    yield made
    made.stop()


def soon():
    return time.monotonic() + 5


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def failing(*errors, then="data"):
    """Return a request that fails in these ways, one after the other, and a list of its calls."""
    left, calls = list(errors), []

    def request():
        calls.append(1)
        if left:
            raise left.pop(0)
        return then

    return request, calls


def test_what_may_pass_is_asked_for_again(transfers):
    """A dropped connection and a time-out are no failure as long as a later try succeeds."""
    request, calls = failing(ConnectionResetError("gone"), TimeoutError("late"))
    assert transfers.ask(request, FILE, soon()) == "data"
    assert len(calls) == 3


def test_what_does_not_pass_is_asked_for_once(transfers):
    """A file that is not there is not asked for again; the error names it."""
    request, calls = failing(FileNotFoundError("no such key"))
    with pytest.raises(Unavailable, match=r"s3://bucket/a\.csv is not there"):
        transfers.ask(request, FILE, soon())
    assert len(calls) == 1


def test_trying_ends(transfers):
    """What fails again and again is given up after some tries, and the error says how many."""
    request, calls = failing(*[ConnectionError("down")] * 100)
    with pytest.raises(Unavailable, match=f"tried {transfer.TRIES} times"):
        transfers.ask(request, FILE, soon())
    assert len(calls) == transfer.TRIES


def test_denied_access_names_the_credentials_block_and_no_secret(transfers):
    """Refused access says which credentials to look into; no option's value is in any error (R78)."""
    place = Place("s3://bucket/a.csv", STORAGE, "s3-credentials/mine")
    request, _ = failing(PermissionError(f"signature of {SECRET} is wrong"))
    with pytest.raises(Unavailable, match="s3-credentials/mine") as caught:
        transfers.ask(request, place, soon())
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_nodes_are_sent_shows_no_secret():
    """Neither a repr of what a node is told, nor the bytes of it, hold a secret in clear (R78)."""
    query = Query(database=Hidden({"url": f"postgresql://u:{SECRET}@h/d"}), query="SELECT 1")
    sources = Sources(inputs=(Files(storage=STORAGE, root=""), query))

    assert SECRET not in repr(sources)
    assert SECRET.encode() not in pickle.dumps(sources)
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_a_request_that_hangs_is_given_up_at_the_deadline(transfers):
    """A request that never answers ends with the deadline, and holds no slot of the others (R205)."""
    never = threading.Event()
    try:
        for _ in range(transfer.REQUESTS + 1):
            with pytest.raises(Unavailable, match="no answer"):
                transfers.ask(never.wait, FILE, time.monotonic() + 0.01)
        assert transfers.ask(lambda: "data", FILE, soon()) == "data"
    finally:
        never.set()


def test_the_end_of_a_node_ends_its_requests(transfers):
    """Whoever waits for an answer is told at once when the node ends."""
    never, ended = threading.Event(), []

    def ask():
        try:
            transfers.ask(never.wait, FILE, soon())
        except Stopped:
            ended.append(1)

    thread = threading.Thread(target=ask)
    thread.start()
    transfers.stop()
    thread.join(2)
    never.set()
    assert ended == [1]


def test_room_is_given_in_order_and_larger_things_pass_alone():
    """Nobody overtakes in the line for room, and what is larger than all of it gets it alone."""
    room, got = Room(10), []
    room.take(6)

    def take(name, size):
        room.take(size)
        got.append(name)

    large = threading.Thread(target=take, args=("large", 50))
    large.start()
    until(lambda: len(room._line) == 1)
    small = threading.Thread(target=take, args=("small", 1))
    small.start()
    until(lambda: len(room._line) == 2)
    assert got == []
    room.give_back(6)
    large.join(5)
    assert got == ["large"]
    room.give_back(50)
    small.join(5)
    assert got == ["large", "small"]


def test_closed_room_lets_nobody_wait():
    """Who waits for room when the node ends is told so."""
    room, ended = Room(1), []
    room.take(1)

    def take():
        try:
            room.take(1)
        except Stopped:
            ended.append(1)

    thread = threading.Thread(target=take)
    thread.start()
    room.close()
    thread.join(5)
    assert ended == [1]


def test_a_value_is_made_once_however_many_want_it():
    """What several want at the same time is made once; a failure is not kept."""
    kept, made = Kept(), []

    def make():
        made.append(1)
        time.sleep(0.05)
        return "footer"

    got = []
    threads = [threading.Thread(target=lambda: got.append(kept.get(1, make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert got == ["footer"] * 4
    assert made == [1]
    with pytest.raises(ZeroDivisionError):
        kept.get(2, lambda: 1 / 0)
    assert kept.get(2, lambda: "there") == "there"


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("s3://b/in", "s3://b/in/x/a.txt", "x/a.txt"),
        ("s3://b/in/", "s3://b/in/a b.txt", "a b.txt"),
        ("s3://b/in/a.txt", "s3://b/in/a.txt", "a.txt"),
        ("https://h/in", "https://h/in/x/a%20b.txt?version=2", "x/a b.txt"),
        ("https://h/in", "https://h/in/a%2F..%2Fb.txt", "a%2F..%2Fb.txt"),
    ],
)
def test_files_keep_their_names_below_the_root(root, path, name):
    """A file has on the node the name, and the folders, that it has below the root of its input."""
    assert names_below(root, [path]) == [name]


@pytest.mark.parametrize("name", ["../a.txt", "x/../../a.txt", "/etc/passwd", "a\0b"])
def test_no_name_leads_out_of_the_folder(name):
    """A name in a storage that would lead out of the node's folder is refused."""
    with pytest.raises(Unavailable, match="no file on a disk"):
        names_below("s3://b/in", [f"s3://b/in/{name}"])


def test_files_of_the_same_name_from_two_folders():
    """Files that are not below the root keep their base names, apart from each other."""
    names = names_below("s3://b/in", ["s3://c/a.txt", "s3://d/a.txt"])
    assert [name.rpartition("/")[2] for name in names] == ["a.txt", "a.txt"]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    ("root", "paths", "names"),
    [
        ("https://h", [f"https://h/get?id={n}" for n in (7, 8)], ["0/get", "1/get"]),
        (
            "s3://b/in",
            ["s3://b/in/a//x", "s3://b/in/a/./x", "s3://b/in/y"],
            ["0/a/x", "1/a/x", "y"],
        ),
        ("s3://b/in", ["s3://b/in/a", "s3://b/in/a/x.txt"], ["0/a", "a/x.txt"]),
        (
            "s3://b/in",
            ["s3://b/in/0/x", "s3://b/in/0//x", "s3://b/in/0_"],
            ["0__/0/x", "1/0/x", "0_"],
        ),
        ("/in", ["/in/a::b.txt", "/in/zip://c.txt"], ["a::b.txt", "zip:/c.txt"]),
    ],
)
def test_no_two_files_get_the_same_place(root, paths, names):
    """Files that a disk would take for the same one, or for a folder of another, are kept apart (R231)."""
    assert names_below(root, paths) == names


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("zip://in::s3://b/x.zip", "zip://in/y/a.txt::s3://b/x.zip", "y/a.txt"),
        ("zip://::s3://b/x.zip", "zip://in/a.txt::s3://b/x.zip", "in/a.txt"),
        ("", "zip://a.csv.gz::s3://b/x.zip", "a.csv.gz"),
        ("simplecache::s3://b/in", "simplecache::s3://b/in/y/a.txt", "y/a.txt"),
    ],
)
def test_a_file_of_a_chain_has_its_own_name(root, path, name):
    """What is read through an archive or a cache is called as it is in there (R231)."""
    assert names_below(root, [path]) == [name]


def test_a_name_that_no_disk_can_hold_is_refused():
    """A part of a name that is too long for a disk is an error that names the URL and the limit (R206)."""
    url = f"s3://b/in/{'é' * 128}/a.txt"
    with pytest.raises(Unavailable, match=r"s3://b/in/é.* no file on a disk can have .*255 bytes"):
        names_below("s3://b/in", [url])
    assert names_below("s3://b/in", [f"s3://b/in/{'n' * 255}"]) == ["n" * 255]


def test_no_place_is_written_to_twice(tmp_path, transfers):
    """What is there already is never overwritten with another file's data (R231)."""
    file = tmp_path / "a.txt"
    file.write_text("text")
    item = FileItem(str(file), 4, file.stat().st_mtime_ns)
    source, target = Source(LOCAL, "", transfers), tmp_path / "target"
    for job in whole(source, item, target):
        job(soon())
    assert target.read_text() == "text"
    with pytest.raises(FileExistsError):
        next(whole(source, item, target))(soon())


def test_each_account_is_opened_by_itself(transfers):
    """Files whose URLs name two storage accounts are each asked for at their own (R231)."""
    pytest.importorskip("adlfs")
    source = Source(Storage("abfs", None, Hidden({"account_key": "a2V5"})), "", transfers)
    opened = [
        source._located(f"abfs://c@{name}.dfs.core.windows.net/{file}.txt")[0].filesystem
        for name in ("one", "two")
        for file in ("a", "b")
    ]
    assert [filesystem.account_name for filesystem in opened] == ["one", "one", "two", "two"]
    assert opened[0] is opened[1]


def test_a_side_inputs_path_is_put_into_longer_arguments_too():
    """The mark of a side input is replaced wherever it stands in an argument (R76)."""
    mark = SIDE_INPUT.format(number=1)
    assert with_paths(["--a", f"--labels={mark}", mark], ["/x", "/y"]) == [
        "--a",
        "--labels=/y",
        "/y",
    ]


def test_jobs_at_once_end_with_the_first_that_raises():
    """An error of one job is raised, and no new one is begun after it."""
    begun = []

    def fine():
        begun.append(1)
        time.sleep(0.01)

    def bad():
        raise Unavailable("gone")

    with pytest.raises(Unavailable, match="gone"):
        at_once(iter([bad] + [fine] * 1000))
    assert len(begun) < 1000


def staged(tmp_path, transfers, tasks, inputs):
    staging = Staging(inputs, [{}, {}], tmp_path / "fetched", transfers)
    return staging, json.dumps(tasks).encode()


def task(index, input_index, path, status):
    known = [status.st_size, status.st_mtime_ns, ""]
    planned = {"bytes": status.st_size, "files": [known]}
    return [index, 1, input_index, {"files": [str(path)], "planned": planned}]


def test_a_bundle_of_staged_and_other_inputs(tmp_path, transfers):
    """Only what is to be fetched is; the data is there for as long as the bundle is, and then gone."""
    file = tmp_path / "in" / "a.txt"
    file.parent.mkdir()
    file.write_text("text")
    tasks = [task(0, 0, file, file.stat()), [1, 1, 1, {"files": ["/b.txt"]}]]
    inputs = (Files(storage=LOCAL, root=str(file.parent)), None)
    staging, data = staged(tmp_path, transfers, tasks, inputs)
    with staging.staged(7, data) as ready:
        [[*_, first], [*_, second]] = json.loads(ready)
        assert second == {"files": ["/b.txt"]}
        assert set(first) == {"files", "local"}
        local = Path(first["local"][0])
        assert local.read_text() == "text"
        assert local.name == "a.txt"
    assert not local.exists()
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_full_disk_is_a_failure_of_the_mini_batch(tmp_path, transfers, monkeypatch):
    """Where data cannot be written, its mini-batch fails, and says why; the node goes on."""
    file = tmp_path / "a.txt"
    file.write_text("text")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    inputs = (Files(storage=LOCAL, root=str(tmp_path)),)
    staging, data = staged(tmp_path, transfers, [task(0, 0, file, file.stat())], inputs)
    with staging.staged(7, data) as ready:
        [[*_, work]] = json.loads(ready)
    assert "No space left" in work["unavailable"]
    assert str(file) in work["unavailable"]


def test_a_change_is_seen_by_size_etag_or_time(tmp_path, transfers):
    """A file of another size or time than was listed is not the file that was planned."""
    file = tmp_path / "a.txt"
    file.write_text("text")
    status = file.stat()
    source = Source(LOCAL, "", transfers)
    source.check(FileItem(str(file), status.st_size, status.st_mtime_ns), soon())
    source.check(FileItem(str(file), status.st_size, 0), soon())
    for changed in (
        FileItem(str(file), 5, status.st_mtime_ns),
        FileItem(str(file), 4, status.st_mtime_ns - 10**9),
    ):
        with pytest.raises(Unavailable, match="was changed since the step was planned"):
            source.check(changed, soon())
