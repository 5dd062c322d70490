"""A node whose disk, folders, descriptors or processes fail: the supervisor lives, and says what is wrong."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)

SCRIPT = """
import os, sys
from azureml_user.parallel_run import EntryScript
def run(mini_batch):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    EntryScript().logger.info("to the log")
    if mini_batch.task_id == 11:
        raise ValueError("bad label")
    if mini_batch.task_id == 12:
        os._exit(3)
    return [os.getpid()]
"""


def moved(node, place) -> dict:
    """Return the log files of the node, each in another place."""
    return {kind: place(Path(path).name) for kind, path in node.settings()["files"].items()}


def check_work(node) -> None:
    """A good mini-batch, one that raises, one that kills its process, and a good one after it, as ever."""
    assert node.run({"rank": 0}, index=10).outcomes == ["succeeded"]
    raised = node.run({"rank": 0}, index=11)
    assert raised.outcomes == ["failed"]
    assert raised.results[0]["error"]["message"] == "bad label"
    died = node.run({"rank": 0}, index=12)
    assert died.outcomes == ["process_died"]
    assert "exit code 3" in died.results[0]["error"]["message"]
    assert node.run({"rank": 0}, index=13).outcomes == ["succeeded"]


def test_log_files_on_a_full_disk_fail_nobody(node):
    """What cannot be written to a log is lost, and nothing else (R207)."""
    node.script(SCRIPT)
    node.start(files=moved(node, lambda name: "/dev/full"))

    check_work(node)
    assert node.stop() == 0

    assert not node.named("start_failed")


def test_log_files_that_cannot_be_made_fail_nobody(node):
    """Where a log folder cannot be written, all goes on without logs; it is told once, by name (R207)."""
    node.script(SCRIPT)
    (node.root / "file").write_text("")
    files = moved(node, lambda name: str(node.root / "file" / name))
    node.start(files=files, process_count=2)

    check_work(node)
    assert node.stop() == 0

    (event,) = node.named("logs_lost")
    assert event["reason"].startswith(f"{node.root}/file cannot be written: ")
    assert not node.named("start_failed")


def test_the_trouble_with_logs_is_written_down_where_that_can_be(node):
    """The product's own error log says which file it was (R80)."""
    node.script(SCRIPT)
    (node.root / "file").write_text("")
    files = {**node.settings()["files"], "stderr": str(node.root / "file" / "{process}")}
    node.start(files=files)

    check_work(node)

    assert node.log("system_error").count("cannot be written: ") == 1


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A file system without room; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=40", "parallelrun-test", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here (that needs root)")
    with open(place / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_full_disk_fails_nobody(full_disk, node):
    """Log files and private folders on a disk without room: the mini-batches run (R207)."""
    node.script(SCRIPT)
    (node.source / "labels.txt").write_text("cat\n" * 100)
    files = moved(node, lambda name: str(full_disk / name))
    node.start(files=files, work_folder=str(full_disk / "work"))

    check_work(node)
    assert node.stop() == 0


@pytest.mark.parametrize("which", ["logs", "work"])
def test_a_folder_that_is_deleted_meanwhile_is_made_again(node, which):
    """Deleted log or private folders cost no mini-batch; the next process has new ones."""
    node.script(SCRIPT)
    node.start()
    assert node.run({"rank": 0}, index=10).outcomes == ["succeeded"]
    shutil.rmtree(node.paths.logs if which == "logs" else node.work)

    check_work(node)
    assert node.stop() == 0

    assert not node.named("start_failed")
    assert not node.named("logs_lost")
    if which == "logs":
        assert "to stdout" in node.log("stdout", "process001")


def test_a_start_without_descriptors_is_tried_again(node):
    """A supervisor that has no descriptor left counts a failed start, rests, and goes on when it can (R87)."""
    node.script(SCRIPT)
    node.start(init_failures_allowed=20)
    ready = node.event("process_ready")
    hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (3, hard))

    os.kill(ready["pid"], 9)
    error = node.event("start_failed", process="process001")["error"]
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (hard, hard))

    assert error["type"] == "StartError"
    assert "process001 could not be started: [Errno 24] Too many open files" in error["message"]
    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    assert not node.named("gave_up")
    assert len(node.named("start_failed")) < 10  # it rests in between
    assert node.stop() == 0


def test_starts_that_fail_for_ever_end_the_trying(node):
    """When nothing can be started, the node says so once and hands its work back (R87, R205)."""
    node.script(SCRIPT)
    (node.root / "file").write_text("")

    node.start(work_folder=str(node.root / "file" / "work"), init_failures_allowed=2)
    answer = node.run({"rank": 0})

    assert (answer.outcomes, answer.finished) == ([], 0)
    assert [event["process"] for event in node.named("start_failed")] == [
        "process000",
        "process001",
    ]
    assert len(node.named("gave_up")) == 1
    assert "StartError: process000 could not be started: " in node.log("system_error")
    assert "Not a directory" in node.log("system_error")
    assert node.stop() == 0


@pytest.fixture
def few_processes() -> Iterator[Path]:
    """A control group that limits the number of processes; skipped where none can be made."""
    name = f"parallelrun-test-{uuid.uuid4().hex[:8]}"
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = Path(root, name)
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / "pids.max").write_text("2")  # the supervisor, and one worker process
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no control group with a limit of processes can be made here (that needs root)")


def test_a_fork_that_is_refused_is_tried_again(few_processes, node):
    """Where the system allows no more processes, the others work on, and a start is tried until it succeeds (R87)."""
    node.script(SCRIPT)
    join = f'echo $$ > {few_processes}/cgroup.procs; exec "$@"'
    node.start(launcher=["/bin/sh", "-c", join, "sh"], process_count=2, init_failures_allowed=20)

    error = node.event("start_failed")["error"]
    assert "could not be started: [Errno 11] " in error["message"]
    assert node.run({"rank": 0}).outcomes == ["succeeded"]
    (few_processes / "pids.max").write_text("max")

    node.until(lambda: len(node.named("process_ready")) == 2)
    assert not node.named("gave_up")
    assert node.stop() == 0


def test_many_processes_need_no_higher_limit_and_scripts_keep_theirs(node):
    """A node with many cores does not run out of descriptors at the usual limit, which scripts see unchanged."""
    node.script("import resource\ndef run(x): return resource.getrlimit(resource.RLIMIT_NOFILE)")
    join = 'ulimit -S -n 40; exec "$@"'
    node.start(launcher=["/bin/sh", "-c", join, "sh"], process_count=12)

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert node.run({"rank": 0}).rows == [f"40\n{hard}\n".encode()]
    node.until(lambda: len(node.named("process_ready")) == 12)
    assert not node.named("start_failed")


def test_each_process_has_its_own_copy_of_small_source_files(node):
    """What a script writes into a small file of the source changes neither the source nor a neighbour (R107)."""
    node.script("""
        import os
        def run(mini_batch):
            with open("deep/labels.txt", "r+") as file:
                found = file.read()
                file.write(f"{os.getpid()}\\n")
            return [found.splitlines(), os.path.islink("model.bin"), os.access("tool.sh", os.X_OK)]
    """)
    (node.source / "deep").mkdir()
    (node.source / "deep" / "labels.txt").write_text("cat\n")
    (node.source / "model.bin").write_bytes(b"x" * 70_000)
    (node.source / "tool.sh").write_text("#!/bin/sh\n")
    (node.source / "tool.sh").chmod(0o755)
    node.start(process_count=2)
    node.event("process_ready", process="process000")
    node.event("process_ready", process="process001")

    first, second = (node.run({"rank": 0}, avoid=[f"process00{number}"]) for number in (0, 1))

    assert first.rows == second.rows == [b"['cat']\nTrue\nTrue\n"]
    assert (node.source / "deep" / "labels.txt").read_text() == "cat\n"
    assert (node.work / "process000" / "deep" / "labels.txt").read_text().startswith("cat\n")


@pytest.mark.timed
def test_a_supervisor_that_cannot_write_its_own_error_still_ends_cleanly(node):
    """An exception of our own code that cannot be written down leaves no process behind either (R80)."""
    node.script(SCRIPT)
    node.start(files=moved(node, lambda name: "/dev/full"))
    pid = int(node.run({"rank": 0}).rows[0])

    node.send(b"hello, is anybody there?")
    began = time.monotonic()

    assert node.wait() == 1
    assert time.monotonic() - began < 5, "took longer"
    assert not node.is_alive(pid)
    assert not node.work.exists()
