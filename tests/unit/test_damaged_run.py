"""A full disk, a read-only folder, a journal cut short or corrupted: never a silent loss."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import writer
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.recorder import Recorder
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

REPOSITORY = Path(__file__).parents[2]


def success(mini_batch: int, **changes) -> AttemptRecord:
    fields = {
        "mini_batch": mini_batch,
        "attempt": 1,
        "final": True,
        "outcome": Outcome.SUCCEEDED,
        "node": "node000",
        "process": "process000",
        "items_total": 1,
        "items_succeeded": 1,
        "items_failed": 0,
    }
    return AttemptRecord(**(fields | changes))


def rows(mini_batch: int, size: int = 20) -> bytes:
    return f"{mini_batch:<{size}}\n".encode()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run_of(paths: RunPaths, count: int) -> None:
    with OutputWriter(paths, keep_rows=True) as output:
        for index in range(count):
            output.add(success(index), rows(index))


def finish(paths: RunPaths, out: Path, count: int, size: int = 20) -> bytes:
    """Open the run again, do what is not done, and return the output."""
    with OutputWriter(paths, keep_rows=True) as output:
        done = set(output.done())
        for index in range(count):
            if index not in done:
                output.add(success(index), rows(index, size))
        return output.publish(out, "out.txt", order="input").read_bytes()


def expected(count: int, size: int = 20) -> bytes:
    return b"".join(rows(index, size) for index in range(count))


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, 0.001, 0.3, 0.5, 0.99, 0.99999])
def test_a_journal_cut_short_is_an_error_that_says_what_is_kept(tmp_path, left):
    """The rows are kept, and the error says how many bytes, and how to go on; nothing is changed."""
    paths = RunPaths(tmp_path / "run")
    run_of(paths, 2_000)
    os.truncate(paths.journal, int(paths.journal.stat().st_size * left))
    before = content(paths.root)

    with pytest.raises(OutputError) as caught:
        OutputWriter(paths, keep_rows=True)

    said = str(caught.value)
    assert str(paths.journal) in said
    assert "is damaged" in said
    assert "42,000 bytes of rows is kept" in said
    assert "Restore journal.sqlite" in said
    assert "allow_reuse=False" in said
    assert str(paths.root) in said
    assert content(paths.root) == before


def test_a_journal_that_is_gone_is_not_begun_anew(tmp_path):
    """Rows without a journal are an error, not thrown away with a fresh one."""
    paths = RunPaths(tmp_path / "run")
    run_of(paths, 10)
    paths.journal.unlink()

    with pytest.raises(OutputError, match=r"it is gone, though there is more.*210 bytes"):
        OutputWriter(paths, keep_rows=True)

    assert os.listdir(paths.root) == ["output.partial"]


def test_every_corrupted_page_of_a_journal_is_found(tmp_path):
    """A run whose journal holds nonsense anywhere is refused, whichever page it is."""
    paths = RunPaths(tmp_path / "run")
    run_of(paths, 400)
    whole = paths.journal.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    noise = random.Random(1).randbytes(size)

    for page in range(len(whole) // size):
        paths.journal.write_bytes(whole[: page * size] + noise + whole[(page + 1) * size :])
        with pytest.raises(OutputError, match=r"journal\.sqlite"):
            OutputWriter(paths, keep_rows=True)
    paths.journal.write_bytes(whole)

    assert finish(paths, tmp_path, 401) == expected(401)


def test_an_index_that_lost_an_entry_is_found(tmp_path):
    """Where the journal's own index contradicts it, rows could come twice: that is damage too."""
    paths = RunPaths(tmp_path / "run")
    run_of(paths, 10)
    connection = sqlite3.connect(paths.journal, isolation_level=None)
    connection.execute("PRAGMA writable_schema = 1")
    connection.execute(
        "UPDATE sqlite_master SET sql = replace(sql, 'final = 1', 'final = 1 AND mini_batch <> 5') "
        "WHERE name = 'settled'"
    )
    connection.execute("PRAGMA schema_version = 99")
    connection.close()

    with pytest.raises(OutputError, match="is damaged"):
        OutputWriter(paths, keep_rows=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
sys.path.insert(0, sys.argv[2])
from test_damaged_run import rows, success

output = OutputWriter(RunPaths(Path(sys.argv[1])), keep_rows=True)
for index in range(20):
    output.add(success(index), rows(index))
    output.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_run(paths: RunPaths) -> Path:
    """Return the write-ahead log of a run that was killed with 20 commits in it."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(paths.root), str(Path(__file__).parent)],
        env={"PYTHONPATH": str(REPOSITORY)},
        timeout=50,
    )
    assert child.returncode == -signal.SIGKILL
    log = Path(f"{paths.journal}-wal")
    assert log.stat().st_size > 10_000
    return log


@pytest.mark.parametrize("left", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_write_ahead_log_cut_short_costs_the_last_commits_only(tmp_path, left):
    """The journal falls back to an earlier commit, the rows are cut to it, and the rest runs again."""
    paths = RunPaths(tmp_path / "run")
    log = killed_run(paths)
    os.truncate(log, int(log.stat().st_size * left))

    with OutputWriter(paths, keep_rows=True) as output:
        done = list(output.done())
        assert done == list(range(len(done)))
        assert len(done) < 20
        assert paths.partial.stat().st_size == len(expected(len(done)))

    assert finish(paths, tmp_path, 30) == expected(30)


def test_a_write_ahead_log_that_is_whole_costs_nothing(tmp_path):
    """Of a killed driver all is there that was committed."""
    paths = RunPaths(tmp_path / "run")
    killed_run(paths)

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == list(range(20))
    assert finish(paths, tmp_path, 30) == expected(30)


def test_noise_in_a_write_ahead_log_is_never_taken_for_rows(tmp_path):
    """Whatever is in the log after a crash, the run goes on from a commit, or is refused."""
    paths = RunPaths(tmp_path / "run")
    log = killed_run(paths)
    data = bytearray(log.read_bytes())
    half = len(data) // 2
    data[half:] = random.Random(2).randbytes(len(data) - half)
    log.write_bytes(data)

    assert finish(paths, tmp_path, 30) == expected(30)


@pytest.mark.parametrize("left", [None, 0, 100])
def test_rows_that_are_gone_are_an_error(tmp_path, left):
    """A partial file that lacks journalled rows is neither made anew nor filled up with nothing."""
    paths = RunPaths(tmp_path / "run")
    run_of(paths, 10)
    if left is None:
        paths.partial.unlink()
    else:
        os.truncate(paths.partial, left)
    before = content(paths.root)

    with pytest.raises(OutputError) as caught:
        OutputWriter(paths, keep_rows=True)

    said = str(caught.value)
    assert f"{left or 0} bytes, but the journal beside it has rows up to 210" in said
    assert "Restore output.partial" in said
    assert "allow_reuse=False" in said
    assert content(paths.root) == before


def test_rows_that_go_while_the_run_goes_on_are_not_published(tmp_path):
    """If somebody removes the partial file, there is an error, and no output with holes."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), rows(0))
        output.flush()
        os.truncate(paths.partial, 3)
        with pytest.raises(OutputError, match=r"3 bytes, but the journal.*Restore"):
            output.publish(tmp_path / "out", "out.txt", order="input")

    assert not (tmp_path / "out").exists()


# -- the disk ------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "parallelrun-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; return the file to remove."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    filler.write_bytes(b"x" * free.f_bavail * free.f_frsize)
    assert not os.statvfs(disk).f_bavail
    return filler


def add_until_it_fails(output: OutputWriter, size: int = 2_000) -> OutputError:
    for index in range(10_000):
        try:
            output.add(success(index), rows(index, size))
            output.flush()
        except OutputError as error:
            return error
    raise AssertionError("the disk took everything")


def test_a_full_disk_while_opening(tmp_path, disk):
    """A run that cannot begin says so; with space again it begins."""
    filler = fill(disk)
    paths = RunPaths(disk / "run")

    with pytest.raises(OutputError, match=r"run.*(No space left|disk is full).*Free some space"):
        OutputWriter(paths, keep_rows=True)

    filler.unlink()
    assert finish(paths, tmp_path, 5) == expected(5)


def test_a_full_disk_while_opening_again(tmp_path, disk):
    """A run that cannot be gone on with for lack of space has lost nothing, and goes on later."""
    paths = RunPaths(disk / "run")
    run_of(paths, 5)
    filler = fill(disk)

    with pytest.raises(OutputError, match=r"could not be written.*is kept\. Free some space"):
        OutputWriter(paths, keep_rows=True)

    filler.unlink()
    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == list(range(5))


@pytest.mark.parametrize("keep_rows", [True, False])
def test_a_disk_that_fills_up_during_a_run(tmp_path, disk, keep_rows):
    """By rows or by the journal: what is journalled is on disk, and with space the run goes on."""
    paths = RunPaths(disk / "run")
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    output = OutputWriter(paths, keep_rows=keep_rows)

    error = add_until_it_fails(output)
    output.close()

    assert "is kept. Free some space and run the step again" in str(error)
    ballast.unlink()
    with OutputWriter(paths, keep_rows=keep_rows) as again:
        done = list(again.done())
        assert done == list(range(len(done)))
        assert done
    if keep_rows:
        assert paths.partial.stat().st_size == len(expected(len(done), 2_000))
        assert finish(paths, tmp_path, len(done) + 20, 2_000) == expected(len(done) + 20, 2_000)


def test_a_full_disk_while_publishing(tmp_path, disk):
    """The earlier output stays, nothing of ours is left beside it, and publishing later works."""
    paths = RunPaths(tmp_path / "run")
    (disk / "out.txt").write_bytes(b"earlier\n")
    with OutputWriter(paths, keep_rows=True) as output:
        for index in range(300):
            output.add(success(index), rows(index, 2_000))
        with pytest.raises(OutputError, match=r"out\.txt.*No space left.*all rows are kept in"):
            output.publish(disk, "out.txt", order="input")

    assert content(disk) == {"out.txt": b"earlier\n"}
    assert finish(paths, tmp_path, 300, 2_000) == expected(300, 2_000)


def test_a_read_only_run_folder(tmp_path, disk):
    """A run folder that cannot be written is an error that says what to do; nothing is lost."""
    paths = RunPaths(disk / "run")
    run_of(paths, 5)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    with pytest.raises(OutputError, match=r"is kept\. Make the folder writable and run the step"):
        OutputWriter(paths, keep_rows=True)
    with Journal(paths.journal) as journal:
        assert list(journal.done()) == list(range(5))

    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert finish(paths, tmp_path, 10) == expected(10)


def test_a_read_only_output(tmp_path, disk):
    """An output that cannot be written is an error; the rows are kept for the next try."""
    paths = RunPaths(tmp_path / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), rows(0))
        with pytest.raises(OutputError, match=r"out\.txt.*Read-only.*all rows are kept in"):
            output.publish(disk, "out.txt", order="input")

    assert finish(paths, tmp_path, 1) == expected(1)


LIMITED = """
import resource, sys
from pathlib import Path
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
sys.path.insert(0, sys.argv[2])
from test_damaged_run import add_until_it_fails

output = OutputWriter(RunPaths(Path(sys.argv[1])), keep_rows=sys.argv[3] == "rows")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
print(add_until_it_fails(output))
output.close()
"""


@pytest.mark.parametrize("what", ["rows", "journal"])
def test_a_limit_on_the_size_of_files(tmp_path, what):
    """A quota or limit that strikes during a run is told, and nothing that was journalled is lost."""
    paths = RunPaths(tmp_path / "run")
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(paths.root), str(Path(__file__).parent), what],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert child.returncode == 0, child.stderr
    assert "is kept" in child.stdout
    assert "run the step again" in child.stdout
    with OutputWriter(paths, keep_rows=what == "rows") as output:
        done = list(output.done())
    assert done == list(range(len(done)))
    assert done


# -- what follows a failure ----------------------------------------------------------------------


def test_after_a_failed_sync_no_row_is_claimed(tmp_path, monkeypatch):
    """Rows whose sync failed are never in the journal, however often the writer is called (R200)."""
    paths = RunPaths(tmp_path / "run")
    output = OutputWriter(paths, keep_rows=True)
    output.add(success(0), rows(0))
    output.flush()
    once = iter([OSError(errno.EIO, "Input/output error")])

    def sync(_: int) -> None:
        for error in once:  # later ones succeed, as they do on Linux though the data are lost
            raise error

    monkeypatch.setattr(writer.os, "fdatasync", sync)
    output.add(success(1), rows(1))
    for _ in range(3):
        with pytest.raises(OutputError, match=r"Input/output error.*run the step again"):
            output.flush()
        with pytest.raises(OutputError, match="Input/output error"):
            output.add(success(2), rows(2))
    output.close()

    with Journal(paths.journal) as journal:
        assert list(journal.done()) == [0]
    assert finish(paths, tmp_path, 3) == expected(3)


def test_after_a_failed_commit_nothing_more_is_recorded(tmp_path, monkeypatch):
    """A commit that failed is the last one: what comes later is not journalled without it (R200)."""
    paths = RunPaths(tmp_path / "run")
    calls = []

    def record(_self: object, entries: list, notes: list) -> None:
        calls.append(len(entries))
        raise sqlite3.OperationalError("disk I/O error")

    output = OutputWriter(paths, keep_rows=True)
    monkeypatch.setattr(Recorder, "record", record)
    output.add(success(0), rows(0))
    with pytest.raises(OutputError, match="disk I/O error"):
        output.flush()
    with pytest.raises(OutputError, match="disk I/O error"):
        output.add(success(1), rows(1))
    output.close()
    monkeypatch.undo()

    assert calls == [1]
    assert finish(paths, tmp_path, 2) == expected(2)
