"""What is taken home from a node's disk, piece by piece, is there as a node that sees it would have left it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import tracemalloc
import types
from pathlib import Path

import pytest

from prefect_parallelrun.datasets import FileItem
from prefect_parallelrun.driver.homecoming import Homecoming
from prefect_parallelrun.driver.serving import Serving
from prefect_parallelrun.node import homeward
from prefect_parallelrun.node.driver_files import PIECE
from prefect_parallelrun.node.homeward import Homeward, Piece
from prefect_parallelrun.node.run_folder import NodeRunFolder
from prefect_parallelrun.paths import RunPaths


class Journey:
    """The mirrors of some nodes, and the home of all."""

    def __init__(self, folder: Path, *, resumed: bool = False) -> None:
        self.folder = folder
        self.paths = RunPaths(folder / "run")
        self.output = folder / "output"
        self.home = Homecoming(
            self.paths, self.output, logging.getLogger("journey"), resumed=resumed
        )
        self._nodes: dict[str, tuple[Homeward, int]] = {}
        self.unread: tuple[str, ...] = ()

    def mirror(self, node: str) -> Path:
        """Of a node; what is below `output` is what its scripts write."""
        place = self.folder / node
        (place / "output").mkdir(parents=True, exist_ok=True)
        return place

    def write(self, node: str, name: str, text: str, mode: str = "w") -> None:
        """Let a script on a node write an output file."""
        with (self.mirror(node) / "output" / name).open(mode) as file:
            file.write(text)

    def take(self, node: str, *, lose: int = 0, bundles: tuple[int, ...] = ()) -> int:
        """Take home all that is new, where the first answers may be lost; return how many bytes came."""
        one, arrived = self._nodes.setdefault(node, (Homeward(self.mirror(node), "output"), 0))
        size = 0
        while True:
            taken = one.take(arrived)
            if lose:
                lose -= 1
                continue
            self.home.take_in(node, taken.pieces, bundles)
            size += sum(len(piece.data) for piece in taken.pieces)
            arrived = taken.number
            self._nodes[node] = one, arrived
            if taken.complete:
                self.unread = taken.unread
                return size

    def there(self) -> dict[str, str]:
        """What is in the output folder."""
        return {
            str(one.relative_to(self.output)): one.read_text()
            for one in self.output.rglob("*")
            if one.is_file()
        }


@pytest.fixture
def journey(tmp_path):
    return Journey(tmp_path)


def test_names_of_all_kinds_come_home(journey):
    """Line breaks, other scripts, bytes that are no UTF-8; a link comes as what it leads to."""
    names = ["a\nb.txt", "größe – 数.txt", os.fsdecode(b"\xff\xfe.bin"), " ", "x" * 200]
    for name in names:
        journey.write("node000", name, str(len(name)))
    journey.write("node000", "empty", "")
    (journey.mirror("node000") / "output" / "link").symlink_to("empty")
    (journey.mirror("node000") / "output" / "nowhere").symlink_to("missing")
    os.mkfifo(journey.mirror("node000") / "output" / "pipe")
    journey.take("node000", lose=2)
    assert journey.there() == {**{name: str(len(name)) for name in names}, "empty": "", "link": ""}


def test_files_that_get_their_names_while_it_is_looked_take_no_others_away(journey):
    """A script that writes `x.tmp`, and renames it, as many do: the others stay at home all the time."""
    place = journey.mirror("node000") / "output"
    for n in range(300):
        (place / f"{n:03d}").write_text(str(n))
    journey.take("node000")
    ending = threading.Event()

    def write():
        while not ending.is_set():
            for n in range(50):
                (place / f"draft{n}").touch()
            for n in range(50):
                (place / f"draft{n}").rename(place / f"done{n}")

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(15):
            journey.take("node000")
            assert {f"{n:03d}" for n in range(300)} <= journey.there().keys()
    finally:
        ending.set()
        writing.join()
    journey.take("node000")
    assert {f"done{n}" for n in range(50)} <= journey.there().keys()


def test_what_cannot_be_read_holds_up_nothing_else_and_is_told(journey):
    """A link that leads in circles leads nowhere; a file that is closed to its own reader stays there."""
    place = journey.mirror("node000") / "output"
    (place / "circle").symlink_to("circle")
    (place / "closed").mkdir()
    journey.write("node000", "closed/within", "kept")
    journey.write("node000", "secret", "hidden")
    journey.write("node000", "told", "1")
    journey.take("node000")
    assert journey.unread == ()
    for one in (place, *place.iterdir()):
        if os.geteuid() == 0:
            os.chown(one, 65534, -1, follow_symlinks=False)
    journey.write("node000", "secret", "hidden again")
    journey.write("node000", "told", "2")
    (place / "secret").chmod(0)
    (place / "closed").chmod(0)
    with _as_nobody(journey.folder):
        journey.take("node000")
    refused = os.strerror(errno.EACCES)
    assert sorted(journey.unread) == [f"output/closed: {refused}", f"output/secret: {refused}"]
    assert journey.there() == {"closed/within": "kept", "secret": "hidden", "told": "2"}
    (place / "secret").chmod(0o600)
    (place / "closed").chmod(0o700)
    journey.take("node000")
    assert journey.unread == ()
    assert journey.there()["secret"] == "hidden again"


@contextlib.contextmanager
def _as_nobody(folder):
    """Be somebody whom permissions hold for; what is at home can still be written."""
    if os.geteuid() != 0:
        yield
        return
    closed = [one for one in (folder, *folder.parents) if not one.stat().st_mode & 0o001]
    modes = {one: one.stat().st_mode for one in closed}
    for one in (folder / "output").rglob("*"):
        os.chown(one, 65534, -1)
    os.chown(folder / "output", 65534, -1)
    for one in closed:
        one.chmod(modes[one] | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for one, mode in modes.items():
            one.chmod(mode)


def test_a_file_that_grows_comes_in_its_parts_and_once(journey):
    sent = 0
    for n in range(20):
        journey.write("node000", "growing", f"{n}\n", "a")
        sent += journey.take("node000")
    whole = "".join(f"{n}\n" for n in range(20))
    assert journey.there() == {"growing": whole}
    assert sent == len(whole)
    assert journey.take("node000") == 0


def test_what_is_written_over_within_a_file_comes_again(journey):
    """Also where it grows at the same time, as archives and databases do, or stays as long as it was."""
    place = journey.mirror("node000") / "output" / "archive"
    place.write_bytes(b"size=?" + b"a" * 100)
    journey.take("node000")
    with place.open("r+b") as file:
        file.write(b"size=2")
        file.seek(0, 2)
        file.write(b"b" * 100)
    journey.take("node000")
    assert journey.there() == {"archive": "size=2" + "a" * 100 + "b" * 100}
    times = place.stat()
    place.write_bytes(b"size=3" + b"c" * 200)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))  # within one tick of the clock
    journey.take("node000")
    assert journey.there() == {"archive": "size=3" + "c" * 200}
    place.write_bytes(b"short")
    journey.take("node000")
    assert journey.there() == {"archive": "short"}
    place.rename(place.with_name("final"))
    journey.take("node000")
    assert journey.there() == {"final": "short"}


def test_large_files_and_many_small_ones_come_in_bounded_memory(journey):
    """40 MB in pieces of 4 MB, and 1,000 files in a few answers."""
    place = journey.mirror("node000") / "output"
    with (place / "large").open("wb") as file:
        for n in range(40):
            file.write(bytes([n]) * 1_000_000)
    logs = journey.mirror("node000") / "logs" / "user" / "stdout" / "node000"
    logs.mkdir(parents=True)
    for n in range(1000):
        (logs / f"process{n:03d}.stdout.txt").write_text(str(n))
    tracemalloc.start()
    journey.take("node000")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * homeward.MOST
    assert (journey.output / "large").read_bytes() == (place / "large").read_bytes()
    assert len(list((journey.paths.logs / "user" / "stdout" / "node000").iterdir())) == 1000


def test_a_mini_batch_that_runs_again_elsewhere_writes_its_file_again(journey):
    """What is the same, or the beginning of it, is one file, whoever lives."""
    journey.write("node000", "part", "first line\n")
    journey.write("node000", "same", "all of it")
    journey.take("node000")
    journey.write("node001", "part", "first")
    journey.take("node001")
    journey.write("node001", "part", " line\nsecond line\n", "a")
    journey.write("node001", "same", "all of it")
    journey.take("node001")
    assert journey.there() == {"part": "first line\nsecond line\n", "same": "all of it"}


def test_what_came_of_lost_bundles_is_written_over_and_nothing_else(journey):
    """A node of two processes ends one bundle, and is lost over the other."""
    journey.write("node000", "all.csv", "1\n")
    journey.take("node000", bundles=(1,))
    journey.home.ended("node000", 1)
    journey.write("node000", "done", "at 10:00")
    journey.write("node000", "undone", "at 10:01, and much more that is half of")
    journey.write("node000", "all.csv", "2\n", "a")
    journey.take("node000", bundles=(2, 3))
    journey.home.ended("node000", 2)
    journey.home.lost("node000")
    late = [Piece("output/undone", 0, b"late", 4), Piece("logs/user/x.txt", 0, b"why", 3)]
    journey.home.take_in("node000", late)
    assert (journey.paths.logs / "user" / "x.txt").read_text() == "why"
    journey.write("node001", "undone", "at 10:02")
    journey.write("node001", "all.csv", "3\n")
    journey.take("node001", bundles=(4,))
    kept = {"all.csv": "1\n2\n", "all.node001.csv": "3\n"}
    assert journey.there() == {"done": "at 10:00", "undone": "at 10:02", **kept}


def test_two_nodes_that_write_different_files_of_one_name_both_keep_them(journey, caplog):
    journey.write("node000", "all.csv", "n,m\n")
    journey.take("node000")
    journey.write("node001", "all.csv", "n,m\n2,2\n")
    journey.take("node001")
    journey.write("node000", "all.csv", "1,1\n", "a")
    journey.take("node000")
    journey.write("node001", "all.csv", "4,4\n", "a")
    journey.write("node000", "all.csv", "3,3\n", "a")
    journey.take("node001")
    journey.take("node000")
    assert journey.there() == {
        "all.csv": "n,m\n2,2\n4,4\n",
        "all.node000.csv": "n,m\n1,1\n3,3\n",
    }
    assert caplog.text.count("and not the same: that of node000 is all.node000.csv") == 1
    (journey.mirror("node000") / "output" / "all.csv").unlink()
    journey.take("node000")
    assert list(journey.there()) == ["all.csv"]


@pytest.mark.parametrize("resumed", [True, False])
def test_files_of_an_earlier_sitting_are_kept_and_those_of_other_runs_are_not(tmp_path, resumed):
    journey = Journey(tmp_path, resumed=resumed)
    journey.output.mkdir()
    (journey.output / "all.csv").write_text("1\n")
    journey.write("node005", "all.csv", "2\n")
    journey.take("node005")
    kept = {"all.csv": "1\n", "all.node005.csv": "2\n"}
    assert journey.there() == (kept if resumed else {"all.csv": "2\n"})


def test_the_driver_and_a_process_write_to_one_error_log(journey):
    """What the driver finds wrong with a result stands in the log of the process that made it (R60)."""
    name = Path("logs", "user", "error", "node000", "process000.txt")
    there, home = journey.mirror("node000") / name, journey.paths.root / name
    there.parent.mkdir(parents=True)
    home.parent.mkdir(parents=True)
    for n in range(3):
        with home.open("a") as file:
            file.write(f"driver {n}\n")
        with there.open("a") as file:
            file.write(f"process {n}\n")
        journey.take("node000", lose=1)
    assert home.read_text() == "".join(f"driver {n}\nprocess {n}\n" for n in range(3))


def test_a_file_that_cannot_be_kept_costs_no_other(journey):
    """A log that cannot is told; of an output file it is an error, for a result may count for it."""
    (journey.paths.logs / "user" / "x.txt").mkdir(parents=True)
    pieces = [Piece("logs/user/x.txt", 0, b"x", 1), Piece("logs/user/y.txt", 0, b"y", 1)]
    assert isinstance(journey.home.take_in("node000", pieces), IsADirectoryError)
    (journey.output / "deep").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="deep"):
        journey.home.take_in("node000", [Piece("output/deep", 0, b"x", 1), *pieces[1:]])
    assert (journey.paths.logs / "user" / "y.txt").read_text() == "y"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "output/../../x", "logs/../../x", "", "journal.sqlite", "run"]
)
def test_nothing_leads_to_where_no_node_writes(journey, name):
    with pytest.raises(ValueError, match=r"outside of its run|the driver's own"):
        journey.home.take_in("node000", [Piece(name, 0, b"x", 1)])


def test_a_node_that_cleans_up_takes_nothing_away_at_home(tmp_path):
    folder = NodeRunFolder(tmp_path / "unseen", "run", tmp_path / "private")
    (Path(folder.output("/home")) / "x").write_text("x")
    taken = folder.take(0)
    assert [piece.name for piece in taken.pieces] == ["output/x"]
    folder.remove()
    assert folder.take(taken.number) is None


@pytest.fixture
def serving(tmp_path):
    """Serves an input and the source, and has a side input that cannot be listed any more."""
    data, source = tmp_path / "data.txt", tmp_path / "source.zip"
    data.write_text("data")
    source.write_text("source")

    def side_input(number):
        raise LookupError("the folder is gone")

    item = FileItem(str(data), 4, data.stat().st_mtime_ns)
    return Serving(types.SimpleNamespace(files=[{str(data): item}], side_input=side_input), source)


def test_only_files_of_the_run_are_read_for_a_node(serving, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "sub").mkdir()

    def read(path):
        return serving.answer({"file": path, "at": 0, "length": 100})

    assert read(f"{tmp_path}/data.txt") == (b"data", None)
    assert read(f"{tmp_path}/source.zip") == (b"source", None)
    for path in ("secret.txt", "sub/../data.txt", "./data.txt", "data.txt/"):
        for wanted in ({"file": f"{tmp_path}/{path}"}, {"info": f"{tmp_path}/{path}"}):
            data, (number, _) = serving.answer({**wanted, "at": 0, "length": 100})
            assert (data, number) == (b"", errno.EACCES), path


def test_whatever_is_asked_there_is_an_answer_and_it_is_small(serving, tmp_path):
    """Without one a node would ask for ever; and a file of 2 GB goes there in pieces."""
    data, error = serving.answer({"side_input": 0})
    assert (data, error) == (b"", (errno.EIO, "LookupError: the folder is gone"))
    assert serving.answer({"nonsense": 1})[1] is not None
    path = tmp_path / "data.txt"
    os.truncate(path, 2 << 30)
    assert len(serving.answer({"file": str(path), "at": (2 << 30) - 10, "length": 100})[0]) == 10
    assert len(serving.answer({"file": str(path), "at": 5, "length": 2 << 30})[0]) == PIECE
    assert serving.answer({"file": str(path), "at": 0, "length": -1}) == (b"", None)
    path.unlink()
    assert serving.answer({"file": str(path), "at": 0, "length": 9})[1][0] == errno.ENOENT
