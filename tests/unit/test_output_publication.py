from __future__ import annotations

import itertools
import logging
import os
import random

import pytest

from prefect_parallelrun.errors import ConfigError, OutputError
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import publication
from prefect_parallelrun.output.publication import check_destination
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths


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


@pytest.mark.parametrize("seed", range(5))
def test_copy_gives_the_segments_in_their_order(tmp_path, monkeypatch, seed):
    """Whatever the sizes and gaps, copy() appends exactly these segments, in this order."""
    monkeypatch.setattr(publication, "_COPY_BYTES", 500)
    monkeypatch.setattr(publication, "_COLLECT_BYTES", 900)
    monkeypatch.setattr(publication, "_COLLECT_SEGMENTS", 7)
    monkeypatch.setattr(publication, "_SPAN_BYTES", 600)
    monkeypatch.setattr(publication, "_GAP_BYTES", 30)
    chance = random.Random(seed)
    data = chance.randbytes(50_000)
    cuts = sorted(chance.sample(range(50_000), 400))
    segments = [(a, b - a) for a, b in itertools.pairwise(cuts) if chance.random() < 0.7]
    segments += [(cuts[-1], 0)] if seed % 2 else []
    chance.shuffle(segments)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)

    with source.open("rb") as reading, target.open("wb") as writing:
        publication.copy(reading.fileno(), writing.fileno(), segments)

    assert target.read_bytes() == b"".join(data[at : at + length] for at, length in segments)


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
