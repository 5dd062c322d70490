from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.node import snapshot


@pytest.fixture
def source(tmp_path):
    """Return a source folder with a script and a module beside it."""
    folder = tmp_path / "source"
    (folder / "lib").mkdir(parents=True)
    (folder / "score.py").write_text("def run(b): return b\n")
    (folder / "lib" / "helper.py").write_text("x = 1\n")
    return folder


def _config(source, **settings):
    return ParallelRunConfig("score.py", source_directory=str(source), **settings)


def _shipped(source, leave_out=(), **settings):
    """Take and unpack a snapshot; return the names that arrive."""
    target = source.parent / "unpacked"
    archive = source.parent / "source.zip"
    taken = snapshot.take(_config(source, **settings), archive, leave_out=leave_out)
    snapshot.unpack(archive.read_bytes(), target)
    names = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert len(names) == taken.files
    return names


def test_everything_is_shipped(source):
    """All files arrive with content and mode, below the same names (R30)."""
    (source / "tool.sh").write_text("#!/bin/sh\n")
    (source / "tool.sh").chmod(0o755)
    (source / "name with ä blank.bin").write_bytes(bytes(range(256)))

    names = _shipped(source)

    unpacked = source.parent / "unpacked"
    assert names == {"score.py", "lib/helper.py", "tool.sh", "name with ä blank.bin"}
    assert (unpacked / "name with ä blank.bin").read_bytes() == bytes(range(256))
    assert stat.S_IMODE((unpacked / "tool.sh").stat().st_mode) == 0o755


def test_the_scripts_folder_is_the_source(source, tmp_path):
    """Without source_directory, all beside the script is shipped (R30)."""
    config = ParallelRunConfig(str(source / "score.py"))

    taken = snapshot.take(config, tmp_path / "source.zip", leave_out=())

    assert (taken.files, taken.entry_script) == (2, "score.py")
    assert taken.bytes == sum(p.stat().st_size for p in source.rglob("*.py"))


def test_as_it_was(source):
    """An edit after the snapshot changes nothing of it (R30)."""
    archive = source.parent / "source.zip"
    snapshot.take(_config(source), archive, leave_out=())
    (source / "score.py").write_text("changed")

    with zipfile.ZipFile(archive) as taken:
        assert taken.read("score.py") == b"def run(b): return b\n"


def test_equal_sources_give_equal_snapshots(source, tmp_path):
    """Hash and zip depend on names, contents and the right to execute, not on times and places."""
    copy = tmp_path / "elsewhere"
    (copy / "lib").mkdir(parents=True)
    for name in ("lib/helper.py", "score.py"):
        (copy / name).write_bytes((source / name).read_bytes())
        os.utime(copy / name, (1, 1))
    config = _config(source)

    first = snapshot.take(config, tmp_path / "1.zip", leave_out=())
    second = snapshot.take(_config(copy), tmp_path / "2.zip", leave_out=())

    assert first == second == snapshot.digest(config, leave_out=())
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_every_change_of_the_source_is_seen(source):
    """Another content, name or right to execute is another hash."""
    config = _config(source)
    seen = {snapshot.digest(config, leave_out=()).sha256}

    for change in (
        lambda: (source / "lib" / "helper.py").write_text("x = 2\n"),
        lambda: (source / "lib" / "helper.py").rename(source / "lib" / "other.py"),
        lambda: (source / "score.py").chmod(0o755),
        lambda: (source / "new.txt").write_text(""),
    ):
        before = len(seen)
        change()
        seen.add(snapshot.digest(config, leave_out=()).sha256)
        assert len(seen) == before + 1


def test_always_left_out(source):
    """.git, __pycache__, and what the caller names never leave the machine (R30)."""
    for name in (".git/config", "lib/__pycache__/helper.pyc", "out/rows.txt", "runs/a/run.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    (source / "rows.txt").write_text("x")

    leave_out = [source / "out", source / "runs", source / "rows.txt", source / "nothing"]
    names = _shipped(source, leave_out)

    assert names == {"score.py", "lib/helper.py"}


def test_a_source_that_is_left_out_itself(source):
    """An output folder that is the source, or around it, does not empty the source (R30)."""
    assert _shipped(source, [source, source.parent]) == {"score.py", "lib/helper.py"}


def test_ignore_files(source):
    """.amlignore leaves files out, in the way of .gitignore, which counts only without it (R30)."""
    for name in ("data/a.csv", "data/keep.csv", "deep/data/b.csv", "notes.md", "build/x.o"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    (source / ".gitignore").write_text("# rules\n*.csv\n!keep.csv\n/build/\n")

    by_git = _shipped(source)
    (source / ".amlignore").write_text("data/\n.*ignore\n")
    for path in sorted((source.parent / "unpacked").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    by_aml = _shipped(source)

    always = {"score.py", "lib/helper.py", "notes.md"}
    assert by_git == always | {"data/keep.csv", ".gitignore"}
    assert by_aml == always | {"build/x.o"}


def test_ignored_entry_script(source):
    """A source without its entry script is refused with the file that leaves it out."""
    (source / ".amlignore").write_text("*.py\n")

    with pytest.raises(ConfigError, match=r"entry_script='score.py'.*\.amlignore leaves it out"):
        snapshot.digest(_config(source), leave_out=())


def test_links(source, tmp_path):
    """Links are shipped as what they lead to; one that leads nowhere is noted, a ring is left (R30)."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.bin").write_text("weights")
    (source / "model.bin").symlink_to(tmp_path / "models" / "model.bin")
    (source / "models").symlink_to(tmp_path / "models")
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (source / "lib" / "ring").symlink_to(source / "lib")
    os.mkfifo(source / "pipe")

    names = _shipped(source)

    assert names == {"score.py", "lib/helper.py", "model.bin", "models/model.bin"}
    assert (source.parent / "unpacked" / "models" / "model.bin").read_text() == "weights"
    notes = snapshot.digest(_config(source), leave_out=()).notes
    assert notes == ("gone is a link that leads nowhere",)


def test_too_large(source):
    """A source over a limit is refused with its largest files and what to do (R30)."""
    (source / "weights.bin").write_bytes(b"\0" * 4096)

    with pytest.raises(ConfigError, match=r"source_limits=.*The largest: weights\.bin") as error:
        snapshot.digest(_config(source, source_limits=("1KB", 10)), leave_out=())

    assert ".amlignore" in str(error.value)
    assert snapshot.digest(_config(source, source_limits=("5KB", 10)), leave_out=()).files == 3


def test_too_many_files(source):
    """Too many files are refused before all of a huge folder has been walked (R30)."""
    for number in range(40):
        (source / f"{number}.txt").write_text("")
    config = ParallelRunConfig(str(source / "score.py"), source_limits=("1MB", 3))

    with pytest.raises(ConfigError, match=r"at least 30 files.*set source_directory"):
        snapshot.digest(config, leave_out=())


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py"])
def test_unpack_stays_in_its_folder(tmp_path, name):
    """A name that leads out of the folder is refused, and nothing is written."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("good.py", "x")
        archive.writestr(name, "x")

    with pytest.raises(ValueError, match="outside its folder"):
        snapshot.unpack(content.getvalue(), tmp_path / "folder")

    assert list(Path(tmp_path).rglob("*.py")) == []
