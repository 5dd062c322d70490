"""The folder that the nodes of a run share on a host: who has it, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from prefect_parallelrun.node.host_folder import HostFolder
from prefect_parallelrun.node.transfer import Stopped, Unavailable

HOLD = """
import sys, tempfile
from prefect_parallelrun.node.host_folder import HostFolder
tempfile.tempdir = sys.argv[1]
host = HostFolder("run", lambda: False)
host.enter()
(host.path / "0").mkdir(exist_ok=True)
host.link(__import__("pathlib").Path(sys.argv[2]), host.path / "0")
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder for temporary files of this test's own."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def entered(run_id="run"):
    host = HostFolder(run_id, lambda: False)
    host.enter()
    return host


def test_the_last_to_leave_removes_it(tmp_path):
    """The folder and its links are there until the last of several nodes has left."""
    first, second = entered(), entered()
    (first.path / "0").mkdir()
    wanted = tmp_path / "made" / "x"
    first.link(wanted, first.path / "0")
    second.link(wanted, second.path / "0")
    first.leave()
    assert wanted.resolve() == second.path / "0"
    second.leave()
    assert not second.path.exists()
    assert not (tmp_path / "made").exists()


def test_nodes_that_leave_at_the_same_time(tmp_path):
    """However many leave at once, one of them is the last (R74)."""
    for _ in range(20):
        hosts = [entered() for _ in range(4)]
        threads = [threading.Thread(target=host.leave) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert not hosts[0].path.exists()


@pytest.fixture
def killed(folder, tmp_path):
    """Return a function that has another process take the folder and be killed."""

    def kill():
        command = [sys.executable, "-c", HOLD, str(folder), str(tmp_path / "wanted")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"there\n"
            yield
            os.kill(process.pid, signal.SIGKILL)

    return kill


def test_a_killed_sibling_leaves_the_folder_to_the_others(killed, tmp_path):
    """After `kill -9` of one node the others have all, and the last of them removes all."""
    for _ in killed():
        mine = entered()
    assert (tmp_path / "wanted").is_symlink()
    mine.leave()
    assert not mine.path.exists()
    assert not os.path.lexists(tmp_path / "wanted")


@pytest.mark.parametrize("run_id", ["run", "another"])
def test_what_a_killed_run_has_left_is_removed_by_the_next(killed, tmp_path, folder, run_id):
    """A folder of which nobody lives is cleared away by the next run, or sitting, with its links."""
    for _ in killed():
        pass
    assert (tmp_path / "wanted").is_symlink()
    mine = entered(run_id)
    assert not os.path.lexists(tmp_path / "wanted")
    assert not (mine.path / "0").exists()
    mine.leave()
    assert list(folder.iterdir()) == []


def test_a_link_of_a_living_run_is_left_alone(tmp_path):
    """Two runs that want the same path do not take it from each other."""
    first, second = entered("first"), entered("second")
    first.link(tmp_path / "wanted", first.path / "0")
    with pytest.raises(Unavailable, match="another run"):
        second.link(tmp_path / "wanted", second.path / "0")
    second.leave()
    first.leave()


def test_a_link_of_somebody_else_is_left_alone(tmp_path):
    """A link that the user has made is not replaced."""
    (tmp_path / "wanted").symlink_to(tmp_path)
    host = entered()
    (host.path / "0").mkdir()
    with pytest.raises(Unavailable, match="somebody else"):
        host.link(tmp_path / "wanted", host.path / "0")
    host.leave()
    assert (tmp_path / "wanted").readlink() == tmp_path


def test_a_link_into_a_folder_of_the_user(tmp_path, folder):
    """A folder that only is called like a run's is left alone, with a lock of its own, and a link into it."""
    mine = folder / "parallelrun-demo-data"
    (mine / "0").mkdir(parents=True)
    (mine / "lock").write_text("mine")
    (tmp_path / "wanted").symlink_to(mine / "0")
    host = entered()
    (host.path / "0").mkdir()
    with pytest.raises(Unavailable, match="somebody else"):
        host.link(tmp_path / "wanted", host.path / "0")
    host.leave()
    assert sorted(path.name for path in mine.iterdir()) == ["0", "lock"]
    assert (tmp_path / "wanted").is_dir()


def test_a_link_that_the_user_has_made_into_what_a_dead_run_left(
    killed, tmp_path, folder, monkeypatch
):
    """What a run left elsewhere is not removed for a link of which the run knows nothing."""
    for _ in killed():
        pass
    (tmp_path / "other").symlink_to(folder / "parallelrun-run-data" / "0")
    (tmp_path / "tmp2").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp2"))
    host = entered("another")
    (host.path / "0").mkdir()
    with pytest.raises(Unavailable, match="of another side input"):
        host.link(tmp_path / "other", host.path / "0")
    assert (tmp_path / "other").is_dir()
    # The link that it does know of is of a run that is dead.
    host.link(tmp_path / "wanted", host.path / "0")
    assert (tmp_path / "wanted").readlink() == host.path / "0"
    host.leave()
    assert not os.path.lexists(tmp_path / "wanted")


def test_a_folder_that_holds_something_else_is_not_used(folder):
    """Files of somebody else in place of the folder are refused, and left alone."""
    mine = folder / "parallelrun-run-data"
    mine.mkdir()
    (mine / "precious").touch()
    with pytest.raises(Unavailable, match="somebody else"):
        entered()
    assert (mine / "precious").exists()


def test_nothing_is_made_through_a_link_of_a_run(tmp_path):
    """Inside a side input, which may be the user's own folder, no other one is put (R75)."""
    (tmp_path / "labels").mkdir()
    first, second = entered("first"), entered("second")
    (first.path / "0").symlink_to(tmp_path / "labels")
    first.link(tmp_path / "m", first.path / "0")
    for host in (first, second):
        with pytest.raises(Unavailable, match=r"/m is a link to .* of another side input"):
            host.link(tmp_path / "m" / "a" / "b", host.path / "1")
    second.leave()
    first.leave()
    assert list((tmp_path / "labels").iterdir()) == []


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_nodes_with_different_folders_for_temporary_files(
    tmp_path, monkeypatch, first_leaves_first
):
    """Of nodes of a run on one host with a TMPDIR each, the last one to leave removes the link, and all (R75)."""
    hosts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        hosts.append(entered())
        for number in "01":
            (hosts[-1].path / number).mkdir()
    wanted = tmp_path / "made" / "x"
    for host in hosts:
        host.link(wanted, host.path / "0")
    with pytest.raises(Unavailable, match="of another side input"):
        hosts[1].link(wanted, hosts[1].path / "1")

    first, last = hosts if first_leaves_first else reversed(hosts)
    first.leave()
    assert wanted.is_dir()
    last.leave()
    assert not (tmp_path / "made").exists()
    assert not any(host.path.exists() for host in hosts)


def test_nodes_that_make_the_same_link_at_the_same_time(tmp_path, monkeypatch):
    """However many nodes make one link at once, in folders of their own, each has it (R75)."""
    for round_ in range(10):
        hosts = []
        for number in range(4):
            place = tmp_path / f"{round_}-{number}"
            place.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(place))
            hosts.append(entered())
            (hosts[-1].path / "0").mkdir()
        wanted = tmp_path / f"wanted{round_}"
        found = []

        def link(host, wanted=wanted, found=found):
            host.link(wanted, host.path / "0")
            found.append(wanted.is_dir())

        threads = [threading.Thread(target=link, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == [True] * 4
        for host in hosts:
            assert wanted.is_dir()
            host.leave()
        assert not os.path.lexists(wanted)


def test_a_folder_of_another_user_is_not_used(folder):
    """A link in place of the folder, which others could have put there, is refused."""
    (folder / "elsewhere").mkdir()
    (folder / "parallelrun-run-data").symlink_to(folder / "elsewhere")
    with pytest.raises(Unavailable, match="not a folder of this user"):
        entered()


def test_one_works_and_the_others_wait(folder):
    """While one node fetches, another waits, hears of it, and stops waiting when it ends."""
    stopping = threading.Event()
    first, second = entered(), HostFolder("run", stopping.is_set)
    second.enter()
    heard = []

    def hear():
        heard.append(1)
        stopping.set()

    with first.working(lambda: None):
        with pytest.raises(Stopped):
            with second.working(hear):
                pass
    assert heard
    first.leave()
    second.leave()
