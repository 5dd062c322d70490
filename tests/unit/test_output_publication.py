from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_parallelrun.errors import ConfigError, OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import publication, segments
from prefect_parallelrun.output.publication import check_destination
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

REPOSITORY = Path(__file__).parents[2]


def success(mini_batch: int) -> AttemptRecord:
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=1,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=1,
        items_succeeded=1,
        items_failed=0,
    )


def test_no_rows_make_an_empty_file(tmp_path):
    """An append_row run without rows still has its one output file (R28)."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        published = output.publish(tmp_path / "a" / "b", "out.txt", order="input")

    assert published.read_bytes() == b""


def test_the_header_comes_once_and_first(tmp_path):
    """The header line is that of the first mini-batch in input order, once, at the top (R103)."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        for index in (2, 0, 1):
            output.add(success(index), b"%d 7\n" % index, "x y\n")
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == b"x y\n0 7\n1 7\n2 7\n"


def test_different_headers_are_warned_of(tmp_path, caplog):
    """Where mini-batches disagree on the columns, the first one's are taken and the log says so."""
    log = logging.getLogger("test-output")
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True, log=log) as output:
        output.add(success(1), b"1\n", "b\n")
        output.add(success(0), b"0\n", "a\n")
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == b"a\n0\n1\n"
    assert "2 different headers" in caplog.text


def test_an_earlier_output_is_replaced_in_one_step(tmp_path):
    """Who has the earlier output open reads it to its end; the new file is another one (R50)."""
    earlier = tmp_path / "out.txt"
    earlier.write_bytes(b"earlier\n" * 1000)

    with (
        OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output,
        earlier.open("rb") as reader,
    ):
        reader.read(8)
        output.add(success(0), b"new\n")
        output.publish(tmp_path, "out.txt", order="input")
        assert reader.read() == b"earlier\n" * 999

    assert earlier.read_bytes() == b"new\n"


def test_the_output_has_the_permissions_of_any_new_file(tmp_path):
    """The umask decides who may read the output, as for a file that the user writes."""
    plain = tmp_path / "plain"
    plain.touch()

    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.stat().st_mode == plain.stat().st_mode


def test_a_failed_publication_leaves_what_was_there(tmp_path, monkeypatch):
    """If the output cannot be written, the earlier file is untouched and nothing of ours is left."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "out.txt").write_bytes(b"earlier\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publication, "write_all", full)
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(success(0), b"new\n")
        with pytest.raises(OutputError, match=r"out\.txt.*No space left.*all rows are kept"):
            output.publish(out, "out.txt", order="input")

    assert os.listdir(out) == ["out.txt"]
    assert (out / "out.txt").read_bytes() == b"earlier\n"


def test_a_folder_in_the_way_of_the_output_file_is_an_output_error(tmp_path):
    """A folder where the file should be is an error that names it, and stays."""
    (tmp_path / "out.txt").mkdir()

    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(success(0), b"new\n")
        with pytest.raises(OutputError, match=r"out\.txt"):
            output.publish(tmp_path, "out.txt", order="input")

    assert (tmp_path / "out.txt").is_dir()


def test_what_a_killed_publication_left_is_gone_after_the_next(tmp_path):
    """A driver killed while publishing leaves nothing once its run has gone on to the end (R50)."""
    paths = RunPaths(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / f".parallelrun-{paths.root.name}.tmp").write_bytes(b"torn" * 1000)

    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), b"new\n")
        output.publish(out, "out.txt", order="input")

    assert os.listdir(out) == ["out.txt"]
    assert (out / "out.txt").read_bytes() == b"new\n"


def test_until_it_is_whole_the_new_file_has_no_name(tmp_path, monkeypatch):
    """While the output is written nothing of ours is in its folder, so a kill leaves nothing (R50)."""
    seen = []
    really = publication.write_all
    monkeypatch.setattr(
        publication,
        "write_all",
        lambda *args: (seen.append(os.listdir(tmp_path / "out")), really(*args))[1],
    )
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(success(0), b"new\n")
        output.publish(tmp_path / "out", "out.txt", order="input")

    assert seen
    assert all(names == [] for names in seen)
    assert os.listdir(tmp_path / "out") == ["out.txt"]


def test_the_new_file_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """Its bytes are synced before its name, and the name at the end: a loss of power tears nothing."""
    calls = []
    out = tmp_path / "out"
    out.mkdir()
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(success(0), b"new\n")
        output.flush()
        really = os.fsync
        for name in ("link", "replace"):
            call = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *a, n=name, c=call, **k: (calls.append(n), c(*a, **k))[1]
            )
        monkeypatch.setattr(
            os, "fsync", lambda of: (calls.append(os.fstat(of).st_ino), really(of))[1]
        )
        published = output.publish(out, "out.txt", order="input")

    assert calls == [published.stat().st_ino, "link", "replace", out.stat().st_ino]


@pytest.mark.parametrize("lacking", ["open", "link"])
def test_a_file_system_without_nameless_files_will_do(tmp_path, monkeypatch, lacking):
    """Where a file must have a name from the start, or cannot get one later, the output is the same."""
    paths = RunPaths(tmp_path / "run")
    refused = []
    really = getattr(os, lacking)

    def refuse(path: object, *args: object, **keywords: object) -> object:
        if lacking == "link" or args[0] & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(path)
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return really(path, *args, **keywords)

    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), b"new\n")
        output.flush()
        monkeypatch.setattr(publication.os, lacking, refuse)
        published = output.publish(tmp_path / "out", "out.txt", order="input")

    assert refused
    assert published.read_bytes() == b"new\n"
    assert os.listdir(tmp_path / "out") == ["out.txt"]


KILLED = """
import os, signal, sys
from pathlib import Path
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

CALLS = ["mkdir", "unlink", "open", "preadv", "write", "fsync", "link", "close", "replace"]


def publish(folder, deadly):
    output = OutputWriter(RunPaths(folder / "run"), keep_rows=True)
    for index in range(3):
        output.add(AttemptRecord(mini_batch=index, attempt=1, final=True,
            outcome=Outcome.SUCCEEDED, node="node000", process="process000", items_total=1,
            items_succeeded=1, items_failed=0), b"new %d\\n" % index)
    output.flush()
    count = 0

    def deadly_version(name, call):
        def version(*args, **keywords):
            nonlocal count
            count += 1
            if count == deadly:
                (folder / "died-before").write_text(name)
                count = 1_000  # that was a call as well
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keywords)
        return version

    for name in CALLS:
        setattr(os, name, deadly_version(name, getattr(os, name)))
    output.publish(folder / "out", "out.txt", order="input")
    os._exit(0)


deadly = 0
while True:
    deadly += 1
    folder = Path(sys.argv[1], str(deadly))
    (folder / "out").mkdir(parents=True)
    if sys.argv[2] == "replacing":
        (folder / "out" / "out.txt").write_bytes(b"earlier\\n")
    child = os.fork()
    if not child:
        publish(folder, deadly)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0
        break
"""


@pytest.mark.parametrize("how", ["replacing", "new"])
def test_killed_at_any_step_a_publication_can_be_done_again(tmp_path, how):
    """Killed before each of its steps: a reader sees the old file or the whole new one (R200, R50)."""
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), how],
        env={"PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=50,
    )
    new = b"new 0\nnew 1\nnew 2\n"
    old = {"out.txt": b"earlier\n"} if how == "replacing" else {}
    died_before, named = set(), 0

    for folder in tmp_path.iterdir():
        out, paths = folder / "out", RunPaths(folder / "run")
        there = {path.name: path.read_bytes() for path in out.iterdir()}
        if (folder / "died-before").exists():
            died_before.add((folder / "died-before").read_text())
        temporary = there.pop(f".parallelrun-{paths.root.name}.tmp", None)
        named += temporary is not None
        assert there in (old, {"out.txt": new})
        assert temporary in (None, new)
        with OutputWriter(paths, keep_rows=True) as output:
            assert list(output.done()) == [0, 1, 2]
            output.publish(out, "out.txt", order="input")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {"out.txt": new}

    assert died_before >= {"write", "fsync", "link", "replace"}
    assert named <= 2  # nothing has a name but between link and replace


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_the_segments_in_their_order(tmp_path, monkeypatch, seed):
    """Whatever the sizes and gaps, the pieces are exactly these segments, in this order."""
    monkeypatch.setattr(segments, "_COPY_BYTES", 500)
    monkeypatch.setattr(segments, "_COLLECT_BYTES", 900)
    monkeypatch.setattr(segments, "_COLLECT_SEGMENTS", 7)
    monkeypatch.setattr(segments, "_SPAN_BYTES", 600)
    monkeypatch.setattr(segments, "_GAP_BYTES", 30)
    chance = random.Random(seed)
    data = chance.randbytes(50_000)
    cuts = sorted(chance.sample(range(50_000), 400))
    some = [(a, b - a) for a, b in itertools.pairwise(cuts) if chance.random() < 0.7]
    some += [(cuts[-1], 0)] if seed % 2 else []
    chance.shuffle(some)
    source = tmp_path / "source"
    source.write_bytes(data)

    with source.open("rb") as reading:
        found = b"".join(map(bytes, segments.pieces(reading.fileno(), some)))

    assert found == b"".join(data[at : at + length] for at, length in some)


def test_a_destination_is_made_and_left_empty(tmp_path):
    """check_destination makes the folder, and its trial leaves nothing there."""
    check_destination(tmp_path / "a" / "b", "out.txt")

    assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/sys/kernel"])
def test_a_destination_that_cannot_be_written_is_refused(tmp_path, place):
    """A file in the way, or a place where nothing can be written, is refused, naming `output`."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"output=.*cannot be used"):
        check_destination(tmp_path / place)


def test_a_folder_with_the_output_files_name_is_refused(tmp_path):
    """The output file's name must not be taken by a folder; said before any worker starts."""
    (tmp_path / "out.txt").mkdir()

    with pytest.raises(ConfigError, match=r"append_row_file_name='out\.txt'"):
        check_destination(tmp_path, "out.txt")
