"""Finding the processes that others started."""

from __future__ import annotations

import os
import subprocess

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import reaper


def test_children_are_found_on_every_kernel():
    """Where the kernel does not list children, a scan of all processes finds the same ones."""
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], stdout=subprocess.PIPE) as shell:
        shell.stdout.readline()
        try:
            (grandchild,) = reaper.children(shell.pid)
            assert shell.pid in reaper.children(os.getpid())
            assert reaper.descendants(shell.pid) == [grandchild]
            assert reaper._children_by_scan(shell.pid) == [grandchild]
        finally:
            reaper.kill_tree(shell.pid)
            shell.wait()


def test_a_process_that_is_gone_has_no_children():
    """Asking for a process that has ended is no error."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()

    assert reaper.children(gone.pid) == []
    reaper.send(gone.pid, 9)


def test_what_outlived_its_supervisor_is_found_by_its_marker():
    """Every process with the marker is killed, in whatever session, and no other one (R205)."""
    marker = f"PARALLELRUN_PROCESS=test-{os.getpid()}"
    script = "trap '' TERM; setsid sleep 600 & echo $!; sleep 600"

    def start(value: str) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env={"PATH": os.environ["PATH"], "PARALLELRUN_PROCESS": value},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return process, int(process.stdout.readline())

    name = marker.partition("=")[2]
    (ours, orphan), (other, others) = start(f"{name}/node000/process007"), start(f"{name}/node0001")
    try:
        assert reaper.kill_marked(f"{marker}/node000/".encode())

        assert ours.wait(timeout=5) == -9
        assert reaper._environment(orphan) == []
        assert other.poll() is None
        assert reaper._environment(others)
    finally:
        assert reaper.kill_marked(marker.encode())
        for process in (ours, other):
            process.wait(timeout=5)
            process.stdout.close()


def test_looking_for_a_marker_that_nobody_has_is_no_error():
    """Where nothing is left there is nothing to do."""
    assert reaper.kill_marked(b"PARALLELRUN_PROCESS=no-such-run/")


def test_a_process_within_exec_is_found_too(monkeypatch):
    """Within exec a process shows no environment; in 60 tries at shells that do nothing else, none gets away (R205)."""
    monkeypatch.setattr(reaper, "_EXEC_S", 0.2)
    marker = f"PARALLELRUN_PROCESS=exec-{os.getpid()}/"
    again = 'exec sh -c "$0" "$0"'
    environment = dict([marker.split("=")], PATH=os.environ["PATH"])
    for _ in range(60):
        with subprocess.Popen(["sh", "-c", again, again], env=environment) as shell:
            try:
                assert reaper.kill_marked(marker.encode())
                assert shell.wait(timeout=5) == -9
            finally:
                shell.kill()


def test_a_process_that_was_given_no_environment_is_left_alone(monkeypatch):
    """It holds the search up for a moment, and goes on."""
    monkeypatch.setattr(reaper, "_EXEC_S", 0.2)
    with subprocess.Popen(["/bin/sleep", "600"], env={}) as bare:
        try:
            assert reaper.kill_marked(b"PARALLELRUN_PROCESS=no-such-run/")
            assert bare.poll() is None
        finally:
            bare.kill()
