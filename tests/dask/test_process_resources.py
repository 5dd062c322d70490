"""What a worker process gets of its machine: threads, a place in the queue, and who dies first for memory."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import distributed
import pytest

from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.node import threads
from prefect_parallelrun.node.threads import cores_here
from tests.dask.conftest import lines
from tests.storage.servers import lacking

SHOW = """
    import json, os
    from pathlib import Path

    import numpy
    import threadpoolctl

    def init():
        numpy.ones((200, 200)) @ numpy.ones((200, 200))  # what loads its threads late has them now

    def run(mini_batch):
        pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        variables = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS")}
        first = int(Path("/proc/self/oom_score_adj").read_text())
        seen = [os.environ["PARALLELRUN_PROCESS"], variables, pools, first]
        return [json.dumps([*seen, os.getpriority(os.PRIO_PROCESS, 0)])]
"""
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@pytest.fixture(autouse=True)
def no_numbers_of_ours(monkeypatch):
    """What is set where the tests run is not what they are about; what they set does not stay."""
    for name in (*NAMES, "MALLOC_TRIM_THRESHOLD_", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def seen(run, numbers):
    """Return a function that runs a step; it returns what a process saw, and that process's log."""

    def call(**settings):
        result = run(SHOW, numbers, mini_batch_size=50, error_threshold=-1, **settings)
        process, variables, pools, oom, nice = json.loads(lines(result)[0])
        _, node, name = process.split("/")
        log = Path(result.logs_directory, "sys/node", node, f"{name}.txt").read_text()
        return {"variables": variables, "pools": pools, "oom": oom, "nice": nice, "log": log}

    return call


def test_the_cores_are_divided_by_the_processes(seen):
    """A library's own reading, and the process's log, say so; Linux takes a process before its Dask worker."""
    one = seen(process_count_per_node=1)

    cores = cores_here()
    assert one["variables"] == dict.fromkeys(NAMES, str(cores))
    assert set(one["pools"]) == {cores}
    assert f"| started | threads {cores}\n" in one["log"]
    assert one["oom"] == 1000 > int(Path("/proc/self/oom_score_adj").read_text())
    assert one["nice"] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)


def test_no_process_has_less_than_one(seen):
    """More processes than cores: one thread each; and the niceness is the user's to choose."""
    crowded = seen(
        process_count_per_node=cores_here() + 1, environment_variables={"PARALLELRUN_NICENESS": "0"}
    )

    assert set(crowded["variables"].values()) == {"1"}
    assert set(crowded["pools"]) == {1}
    assert crowded["nice"] == os.getpriority(os.PRIO_PROCESS, 0)


def test_the_users_variables_hold(seen):
    """What is set for OpenMP counts for the libraries that nothing is said of."""
    set_by_user = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "7"}

    own = seen(process_count_per_node=1, environment_variables=set_by_user)

    assert own["variables"] == {
        **set_by_user,
        "OPENBLAS_NUM_THREADS": "3",
        "NUMEXPR_NUM_THREADS": "3",
    }
    assert "started | OMP_NUM_THREADS=3, MKL_NUM_THREADS=7, OPENBLAS_NUM_THREADS=3" in own["log"]


def test_what_dask_sets_for_its_own_tasks_is_no_wish_of_the_users(seen, monkeypatch):
    """A nanny sets each of these to 1, which is meant for its Dask worker; what was there before stays.

    It sets them for good where it runs, too: here, where a flow may go on without a cluster.
    """
    monkeypatch.setenv("NUMEXPR_NUM_THREADS", "5")
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=4, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        found = seen(process_count_per_node=2, compute_target=cluster)
        with distributed.Client(cluster, set_as_default=False) as client:
            preset = client.run(os.getenv, "OPENBLAS_NUM_THREADS")

    assert set(preset.values()) == {"1"}
    own = {"MKL_NUM_THREADS": "3", "NUMEXPR_NUM_THREADS": "5"}
    assert found["variables"] == {**dict.fromkeys(NAMES, "2"), **own}
    assert os.environ["OMP_NUM_THREADS"] == "1"
    here = threads.settings({}, cores=4, processes=2, has_nanny=False)
    assert here == {**dict.fromkeys(NAMES, "2"), **own}
    assert set(found["pools"]) == {min(2, cores_here())}


@pytest.mark.parametrize("value", ["-1", "20", "low", ""])
def test_a_niceness_that_is_none_is_refused(run, numbers, value):
    """Before anything is started."""
    with pytest.raises(ConfigError, match=r"PARALLELRUN_NICENESS.*a whole number from 0 to 19"):
        run(SHOW, numbers, environment_variables={"PARALLELRUN_NICENESS": value})


REFUSE = """
import ctypes, os, platform, struct, sys
call = {"x86_64": 141, "aarch64": 140}[platform.machine()]  # setpriority
def statement(code, yes, no, value): return struct.pack("HBBI", code, yes, no, value)
program = b"".join([
    statement(0x20, 0, 0, 0),           # the number of the system call
    statement(0x15, 0, 1, call),        # is it this one?
    statement(0x06, 0, 0, 0x00050001),  # then EPERM
    statement(0x06, 0, 0, 0x7FFF0000),  # else go on
])
kept = ctypes.create_string_buffer(program)
filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs what follows where its niceness cannot be changed, as in sandboxes of some clusters."""


def test_where_a_sandbox_refuses_it_scripts_run_all_the_same(seen, tmp_path):
    """/proc cannot be written, and the niceness not be changed: neither costs the run anything."""
    in_sandbox = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -o remount,ro,bind /proc && exec "$@"',
        "sh",
    ]
    in_sandbox += [sys.executable, "-c", REFUSE]
    if platform.machine() not in ("x86_64", "aarch64") or not shutil.which("unshare"):
        lacking("namespaces", "of this machine the numbers of system calls are not known here")
    tried = subprocess.run([*in_sandbox, "/bin/true"], capture_output=True, text=True)
    if tried.returncode:
        lacking("namespaces", f"no sandbox can be made here: {tried.stderr}")
    with distributed.LocalCluster(
        n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        command += ["--no-nanny", "--no-dashboard", "--nthreads", "2", "--host", "127.0.0.1"]
        with open(tmp_path / "worker.log", "w") as log:
            worker = subprocess.Popen([*in_sandbox, *command], stderr=log)
        try:
            found = seen(process_count_per_node=1, compute_target=cluster.scheduler_address)
        finally:
            worker.kill()
            worker.wait()

    assert found["oom"] == int(Path("/proc/self/oom_score_adj").read_text())
    assert found["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
