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
