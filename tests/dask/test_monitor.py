"""The resource monitor of a node, and what its agent writes down of its own failures."""

from __future__ import annotations

import csv
import logging
import os
import re
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.node import agent, monitor, process_list
from prefect_parallelrun.node.process_tree import ProcessTree
from prefect_parallelrun.node.readings import Disks, Machine, Processes
from prefect_parallelrun.paths import RunPaths
from tests.dask.conftest import lines
from tests.dask.faults import EXPECTED, until

MONITOR = "--resource_monitor_interval"

SCRIPT = """
    def run(mini_batch):
        return [p[-6:] for p in mini_batch]
"""
BUSY = """
    import os, subprocess, time

    child = None

    def run(mini_batch):
        global child
        if child is None:
            # It leaves session and environment: only its parents tell whose it is.
            child = subprocess.Popen(["env", "-i", "setsid", "sleep", "600"])
        ends = time.process_time() + 0.02
        while time.process_time() < ends:
            pass
        return [p[-6:] for p in mini_batch]
"""


def table(path):
    """The rows of one of the monitor's files."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def moment(row):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])
    return datetime.fromisoformat(row["time"])


def test_a_node_is_sampled_at_the_interval_asked(run, numbers, tmp_path):
    """R62-R66: host, disks, each process and all that it started; interval 0.2 s; figures that are possible."""
    began = datetime.now(UTC)
    result = run(
        BUSY,
        numbers,
        mini_batch_size=1,
        arguments=[MONITOR, "0.2"],
        run_folder=tmp_path / "run",
    )
    ended = datetime.now(UTC)

    assert lines(result) == EXPECTED
    perf = tmp_path / "run" / "logs" / "perf" / "node000"
    host = table(perf / "node_resource_usage.csv")
    assert len(host) >= 3  # 100 times 20 ms in two processes: a second at least
    at = [moment(row) for row in host]
    assert at == sorted(at)
    assert began <= at[0]
    assert at[-1] <= ended
    for row in host:
        assert 0 <= float(row["cpu_percent"]) <= 100
        assert 0 < int(row["memory_used_bytes"]) < int(row["memory_total_bytes"])
        assert int(row["memory_total_bytes"]) == psutil.virtual_memory().total
        assert float(row["load_1m"]) >= 0
    assert max(float(row["cpu_percent"]) for row in host) > 20

    disks = table(perf / "node_disk_usage.csv")
    assert {moment(row) for row in disks} == set(at)
    assert "/" in {row["path"] for row in disks}
    (root,) = {int(row["total_bytes"]) for row in disks if row["path"] == "/"}
    assert root == psutil.disk_usage("/").total

    processes = table(perf / "processes_resource_usage.csv")
    assert {row["process"] for row in processes} == {"supervisor", "process000", "process001"}
    assert {row["time"] for row in processes} == {row["time"] for row in host}
    for name in ("process000", "process001"):
        own = [row for row in processes if row["process"] == name]
        assert {"sleep"} < {row["name"] for row in own}
        worker = [row for row in own if row["name"] != "sleep"]
        assert len({row["pid"] for row in worker}) == 1
        assert max(float(row["cpu_percent"]) for row in worker) > 5
        spent = [float(row["cpu_seconds"]) for row in worker]
        assert spent == sorted(spent)
        assert spent[-1] > 0.1
        assert all(int(row["memory_bytes"]) > 5_000_000 for row in worker)
    (listed, *_) = sorted((perf / "os").glob("*/processes_*"))
    assert datetime.strptime(listed.parent.name + listed.name[-2:], "%Y%m%d%H%M")
    head, *rest = listed.read_text().splitlines()
    assert head.split()[:3] == ["USER", "PID", "PPID"]
    assert str(os.getpid()) in {line.split()[1] for line in rest}


def test_a_short_run_has_a_first_and_a_last_sample(run, numbers, tmp_path):
    """R62: at the interval of ten minutes, which counts where none is given, both are there."""
    run(SCRIPT, numbers, mini_batch_size=50, run_folder=tmp_path / "run")

    perf = tmp_path / "run" / "logs" / "perf" / "node000"
    assert len(table(perf / "node_resource_usage.csv")) == 2
    samples = {row["time"]: set() for row in table(perf / "processes_resource_usage.csv")}
    for row in table(perf / "processes_resource_usage.csv"):
        samples[row["time"]].add(row["process"])
    assert all(names >= {"supervisor"} for names in samples.values())
    assert {"process000", "process001"} <= set.union(*samples.values())
    assert len(list((perf / "os").glob("*/processes_*"))) == 1


def test_no_monitor_is_no_file(run, numbers, tmp_path):
    """R62: an interval of 0 is off."""
    run(SCRIPT, numbers, arguments=[MONITOR, "0"], run_folder=tmp_path / "run")
    assert not (tmp_path / "run" / "logs" / "perf").exists()


def test_a_ps_that_hangs_delays_nothing_and_is_ended(run, numbers, tmp_path, monkeypatch):
    """R66: a run that takes a moment does so, and what `ps` started is gone."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ps").write_text(
        '#!/bin/sh\necho $$ >"$0.pid"\nsleep 987 & echo $! >>"$0.pid"\nwait\n'
    )
    (tools / "ps").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    stopped, stop = [], agent.NodeAgent.stop

    def timed_stop(self, **how):
        began = time.monotonic()
        news = stop(self, **how)
        stopped.append(time.monotonic() - began)
        return news

    monkeypatch.setattr(agent.NodeAgent, "stop", timed_stop)

    result = run(SCRIPT, numbers, run_folder=tmp_path / "run")

    assert lines(result) == EXPECTED
    assert stopped[0] < 3
    pids = [int(pid) for pid in (tools / "ps.pid").read_text().split()]
    assert len(pids) == 2
    until(lambda: not any(psutil.pid_exists(pid) and _lives(pid) for pid in pids), 10)


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("command", [("no-such-ps",), ("sh", "-c", "exit 1")])
def test_where_there_is_no_ps_that_fits_the_table_is_equal(monkeypatch, command):
    """R66: the same columns, whose lines tell the same of a process as `ps` does."""
    real = process_list.process_list(threading.Event()).decode()
    monkeypatch.setattr(process_list, "COMMAND", command)
    ours = process_list.process_list(threading.Event()).decode()

    assert ours.splitlines()[0].split() == real.splitlines()[0].split()

    def line(text):
        (found,) = [x for x in text.splitlines() if x.split()[1] == str(os.getpid())]
        return found.split()

    # user, pid, parent; start and name, which end the line.
    assert line(ours)[:3] == line(real)[:3]
    assert line(ours)[-6:] == line(real)[-6:]


def test_no_command_line_is_shown(monkeypatch):
    """R78: a password among the arguments of somebody's program is in no list."""
    for command in (process_list.COMMAND, ("no-such-ps",)):
        monkeypatch.setattr(process_list, "COMMAND", command)
        with subprocess.Popen(["sleep", "600.25"]) as other:
            text = process_list.process_list(threading.Event()).decode()
            other.kill()
        assert str(other.pid) in text
        assert "600.25" not in text


def test_a_disk_that_refuses_the_samples_fails_nothing_and_is_told_once(
    run, numbers, tmp_path, caplog
):
    """R205: there are no samples, the log of the run says so, and the run goes on."""
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "perf").write_text("in the way")

    with caplog.at_level(logging.WARNING):
        result = run(
            BUSY,
            numbers,
            mini_batch_size=1,
            arguments=[MONITOR, "0.05"],
            run_folder=tmp_path / "run",
        )

    assert lines(result) == EXPECTED
    told = [record for record in caplog.records if "resources" in record.getMessage()]
    assert len(told) == 1
    assert told[0].getMessage().startswith("node000: its resources are not watched")
    assert (tmp_path / "run" / "logs" / "70_driver_log.txt").read_text().count("resources") == 1


def test_a_disk_that_takes_samples_again_gets_them(settings, tmp_path):
    """R62: a failure costs the samples until it is over, not all that would have come."""
    perf = tmp_path / "logs" / "perf"
    perf.parent.mkdir()
    perf.write_text("in the way")
    told = []
    watch = started(settings, tmp_path, told.append)
    until(lambda: told)
    perf.unlink()
    until((perf / "node000" / "node_resource_usage.csv").exists)
    watch.stop()

    assert len(told) == 1
    assert "FileExistsError" in told[0] or "NotADirectoryError" in told[0]


def test_a_failure_of_the_monitors_own_code_is_written_down(run, numbers, tmp_path, monkeypatch):
    """R80: with time and stack trace, in the file of the node; the run completes."""

    def rows(self):
        raise ZeroDivisionError("no such column")

    monkeypatch.setattr(monitor.Machine, "rows", rows)
    result = run(SCRIPT, numbers, run_folder=tmp_path / "run")

    assert lines(result) == EXPECTED
    text = (tmp_path / "run" / "logs" / "sys" / "error" / "node000.txt").read_text()
    assert re.match(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \| agent of node000, sampling resources\nTraceback", text
    )
    assert "ZeroDivisionError: no such column" in text
    assert text.count("Traceback") == 1


def test_a_failure_of_the_agents_own_code_is_written_down(run, numbers, tmp_path, monkeypatch):
    """R80: what kept a node from starting."""

    def unpack(archive, folder):
        raise RuntimeError("the lid is stuck")

    monkeypatch.setattr(agent.snapshot, "unpack", unpack)
    with pytest.raises(ParallelRunError):
        run(SCRIPT, numbers, run_folder=tmp_path / "run")

    text = (tmp_path / "run" / "logs" / "sys" / "error" / "node000.txt").read_text()
    assert "agent of node000, starting the node\nTraceback" in text
    assert "RuntimeError: the lid is stuck" in text


# -- the monitor by itself -------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path):
    paths = RunPaths(tmp_path)
    return {
        "run_id": "r",
        "node": "node000",
        "monitor_interval_s": 0.01,
        "files": paths.node_files("node000"),
    }


def started(settings, tmp_path, tell=print):
    tree = ProcessTree(os.getpid(), "r/node000")
    return monitor.Monitor(settings, RunPaths(tmp_path), tree, disks=[tmp_path], tell=tell)


def test_samples_that_take_longer_than_the_interval_do_not_pile_up(settings, tmp_path, monkeypatch):
    """One at a time, and at most half of the time."""
    under_way, began, ended = [], [], []
    rows = Machine.rows

    def slow(self):
        began.append(time.monotonic())
        under_way.append(1)
        assert len(under_way) == 1
        threading.Event().wait(0.05)
        under_way.pop()
        ended.append(time.monotonic())
        return rows(self)

    monkeypatch.setattr(monitor.Machine, "rows", slow)
    watch = started(settings, tmp_path)
    until(lambda: len(ended) >= 4)
    watch.stop()

    # The last one comes when the node ends, however soon that is after the one before it.
    pauses = [b - a for a, b in zip(ended[:-2], began[1:-1], strict=True)]
    assert all(pause >= 0.045 for pause in pauses)
    assert not (tmp_path / "logs" / "sys").exists()


@pytest.mark.timed
def test_the_end_of_a_node_does_not_wait_for_a_disk_that_hangs(settings, tmp_path, monkeypatch):
    """R205: one second at most."""
    hangs, let_go = threading.Event(), threading.Event()

    def rows(self):
        hangs.set()
        let_go.wait(30)
        return iter(())

    monkeypatch.setattr(monitor.Disks, "rows", rows)
    watch = started(settings, tmp_path)
    assert hangs.wait(10)
    before = time.monotonic()
    watch.stop()
    took = time.monotonic() - before
    let_go.set()
    watch._thread.join(10)

    assert took < 2, "took longer"
    assert not watch._thread.is_alive()


def test_a_file_system_that_cannot_be_looked_at_is_left_out_and_told_once(tmp_path, monkeypatch):
    """The others are there still; two folders of one file system are one line."""
    disks = Disks([tmp_path, tmp_path / "not" / "there" / "yet", Path("/proc"), Path("/")])
    usage = psutil.disk_usage

    def refusing(path):
        if path == "/proc":
            raise OSError(5, "Input/output error")
        return usage(path)

    monkeypatch.setattr(psutil, "disk_usage", refusing)
    seen = [[str(row[0]) for row in disks.rows()] for _ in range(3)]

    assert all(len(names) == len(set(names)) for names in seen)
    assert all("/" in names and "/proc" not in names for names in seen)
    assert len(disks.trouble) == 1
    assert "/proc" in disks.trouble[0]


def test_a_process_of_any_name_has_one_row(tmp_path):
    """A process may call itself what it likes: no line ends there, and no spreadsheet computes it (R66)."""
    named = subprocess.Popen(
        [
            "python3",
            "-c",
            "import ctypes, time; ctypes.CDLL(None).prctl(15, b'=1+1\\nx', 0, 0, 0); "
            "print(flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
    )
    with named:
        try:
            assert named.stdout.readline()
            rows = list(Processes(ProcessTree(os.getpid(), "r/node000")).rows())
        finally:
            named.kill()
    names = [row[2] for row in rows if row[1] == named.pid]
    assert names == ["'=1+1\\nx"]


def test_a_node_is_sampled_without_a_look_at_the_hosts_other_processes(monkeypatch):
    """With a thousand others on the host a sample costs what it costs without them."""
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("this kernel does not tell the children of a process")
    processes = Processes(ProcessTree(os.getpid(), "r/node000"))
    list(processes.rows())  # psutil may look at /proc once, to see how this system is
    looked, listdir, opened = [], os.listdir, psutil._pslinux.open_binary
    monkeypatch.setattr(os, "listdir", lambda path=".": looked.append(str(path)) or listdir(path))
    monkeypatch.setattr(
        psutil._pslinux, "open_binary", lambda path: looked.append(str(path)) or opened(path)
    )
    rows = list(processes.rows())

    assert [row[0] for row in rows][:1] == ["supervisor"]
    assert looked
    own = {str(row[1]) for row in rows}
    for path in looked:
        assert path.startswith("/proc/")
        assert path.split("/")[2] in own | {"stat", "self"}
