"""Nodes that die, stop, leave and come back: real Dask workers, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import dask
import distributed
import pytest

from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.driver import schedule, tending, versions
from prefect_parallelrun.errors import ClusterError
from tests.dask.conftest import lines
from tests.dask.faults import (
    EXPECTED,
    RECORD,
    Meanwhile,
    dask_worker_of,
    living,
    supervisor_of,
    told,
    until,
)

ONE_EACH = {"mini_batch_size": 1, "process_count_per_node": 1}


@pytest.fixture
def two_workers(cluster):
    """Address of that cluster, with both workers there."""
    cluster.wait_for_workers(2, timeout=30)
    return cluster.scheduler_address


@pytest.fixture
def log(tmp_path):
    """Return a function that gives the driver's log of the test's run."""

    def read():
        [file] = tmp_path.rglob("70_driver_log.txt")
        return file.read_text()

    return read


@contextlib.contextmanager
def dask_worker(scheduler, *options):
    """A Dask worker as its command starts it; yields the process."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1"]
    with subprocess.Popen(
        [*command, "--no-dashboard", *options],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def hold(here):
    (here / "hold").touch()


def test_what_a_killed_supervisor_leaves_behind_is_killed(run, numbers, two_workers, tmp_path):
    """R86, R205: also grandchildren that called setsid; its mini-batches run elsewhere at no cost."""
    hold(tmp_path)
    script = RECORD.replace(
        "        tell(name)\n",
        "        tell(name)\n"
        "        child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "        with open(HERE / 'children', 'a') as file:\n"
        "            file.write(f'{child.pid}\\n')\n",
    )
    children = tmp_path / "children"

    def kill_the_supervisor():
        until(lambda: children.exists() and len(children.read_text().split()) == 2)
        victim = told(tmp_path)[0][1]
        os.kill(supervisor_of(victim), signal.SIGKILL)
        until(lambda: len(living(map(int, children.read_text().split()[:2]))) < 2, 5)

    with Meanwhile(kill_the_supervisor, tmp_path):
        result = run(
            script,
            numbers,
            node_count=2,
            compute_target=two_workers,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_EACH,
        )

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (100, 0)
    assert living(map(int, children.read_text().split())) == []


def test_when_all_workers_are_gone_the_run_waits_and_goes_on(
    run, numbers, two_workers, tmp_path, log
):
    """R86: the only node is killed; the run says that it waits, and goes on with its successor."""
    hold(tmp_path)

    def kill_the_dask_worker():
        until(lambda: told(tmp_path))
        os.kill(dask_worker_of(told(tmp_path)[0][1]), signal.SIGKILL)

    with Meanwhile(kill_the_dask_worker, tmp_path):
        result = run(
            RECORD,
            numbers,
            compute_target=two_workers,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_EACH,
        )

    assert lines(result) == EXPECTED
    assert result.attempts == 100
    assert "No node is left; waiting for a Dask worker" in log()
    assert "node001 joined" in log()


def test_workers_gone_for_good_end_the_run_and_what_is_done_is_kept(run, numbers, tmp_path):
    """R86, R201: after --first_task_creation_timeout a clear error; the same run goes on later."""
    settings = {
        "arguments": ("--first_task_creation_timeout", 1),
        "environment_variables": {"HERE": str(tmp_path)},
        "run_folder": tmp_path / "run",
        **ONE_EACH,
    }
    (tmp_path / "hold-50").touch()

    def end_the_workers():
        until(lambda: "50" in dict(told(tmp_path)))
        doomed.scale(0)
        until(lambda: not doomed.scheduler_info["workers"])

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as doomed:
        with Meanwhile(end_the_workers, tmp_path), pytest.raises(ClusterError) as caught:
            run(RECORD, numbers, compute_target=doomed.scheduler_address, **settings)
    assert "there was no node to work on" in str(caught.value)
    assert "--first_task_creation_timeout 1" in str(caught.value)
    # What had ended in the same bundle as number 50 was not told yet.
    (kept,) = re.findall(r"(\d+) of 100 mini-batches are done and kept", str(caught.value))
    assert 25 <= int(kept) <= 50

    before = len(told(tmp_path))
    result = run(RECORD, numbers, **settings)

    assert lines(result) == EXPECTED
    assert result.mini_batches.reused == int(kept)
    assert len(told(tmp_path)) - before == 100 - result.mini_batches.reused


def test_a_mini_batch_whose_node_is_retired_again_and_again_is_not_to_blame(
    run, numbers, tmp_path, log
):
    """R214: handed back five times with its node, it costs no attempt, and it has not failed."""
    hold(tmp_path)
    with distributed.LocalCluster(
        n_workers=6, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        with distributed.Client(cluster, set_as_default=False) as client:

            def retire_its_node():
                for times in range(1, 6):
                    until(lambda times=times: len(told(tmp_path)) == times)
                    client.retire_workers([w for w, keys in client.processing().items() if keys])

            with Meanwhile(retire_its_node, tmp_path):
                result = run(
                    RECORD,
                    [FileDataset.from_files(str(numbers / "00.txt"))],
                    compute_target=cluster.scheduler_address,
                    environment_variables={"HERE": str(tmp_path)},
                    **ONE_EACH,
                )

    assert lines(result) == EXPECTED[:1]
    assert (result.attempts, result.items.failed) == (1, 0)
    assert log().count("its Dask worker was retired") == 5


@pytest.mark.slow
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_sigterm_to_a_dask_worker_hands_its_work_back(run, numbers, tmp_path, log, nanny):
    """R214: as at a spot instance's end: it costs no attempt, and nothing is left running.

    Without a nanny, Dask closes nothing at SIGTERM: its end looks like a crash then.
    """
    hold(tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        dask_worker(cluster.scheduler_address, nanny) as process,
    ):
        cluster.wait_for_workers(1, timeout=30)

        def preempt():
            [(_, pid)] = until(lambda: told(tmp_path))
            process.terminate()
            until(lambda: not living([pid]), 10)
            cluster.scale(1)

        with Meanwhile(preempt, tmp_path):
            result = run(
                RECORD,
                numbers,
                compute_target=cluster.scheduler_address,
                environment_variables={"HERE": str(tmp_path)},
                **ONE_EACH,
            )
        process.wait(20)

    assert lines(result) == EXPECTED
    assert result.attempts == 100
    assert f"its Dask worker is {'closing' if nanny == '--nanny' else 'gone'}" in log()


@pytest.mark.slow
def test_a_node_that_stops_answering_is_lost_and_can_come_back(
    run, numbers, two_workers, tmp_path, log, monkeypatch
):
    """R86, R205: its work runs elsewhere; when it wakes, its old results change nothing, and it joins again."""
    monkeypatch.setattr(tending, "SILENT_S", 5.0)
    hold(tmp_path)

    def stop_one():
        begun = until(lambda: len(told(tmp_path)) == 2 and told(tmp_path))
        stopped = dask_worker_of(begun[0][1])
        os.kill(stopped, signal.SIGSTOP)
        try:
            until(lambda: "nothing was heard of it" in log())
        finally:
            os.kill(stopped, signal.SIGCONT)
        until(lambda: "node002 joined" in log())
        assert not living([begun[0][1]])

    with Meanwhile(stop_one, tmp_path):
        result = run(
            RECORD,
            numbers,
            node_count=2,
            compute_target=two_workers,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_EACH,
        )

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (100, 0)


def test_a_dask_worker_that_does_not_become_a_node_in_time_is_done_without(
    run, numbers, cluster, two_workers, log, monkeypatch
):
    """R205: one that does not answer from the start: the others do the work, and the end waits for nobody."""
    monkeypatch.setattr(versions, "SLOW_S", 1.0)
    with distributed.Client(two_workers, set_as_default=False) as client:
        stopped = next(iter(client.run(os.getpid).values()))
    os.kill(stopped, signal.SIGSTOP)
    try:
        result = run(
            """
            import time

            def run(mini_batch):
                time.sleep(0.2)
                return [p[-6:] for p in mini_batch]
            """,
            numbers,
            node_count=2,
            process_count_per_node=1,
            compute_target=two_workers,
        )
    finally:
        os.kill(stopped, signal.SIGCONT)

    assert lines(result) == EXPECTED
    assert "is no node yet: its Dask worker has not answered for 1 s" in log()
    with distributed.Client(two_workers, set_as_default=False) as client:
        until(lambda: not ours(client))


def ours(client):
    """Names of this product's plugins on all Dask workers."""
    found = client.run(lambda dask_worker: sorted(dask_worker.plugins))
    return [name for names in found.values() for name in names if name.startswith("parallelrun")]


@pytest.mark.slow
def test_the_end_of_a_run_waits_only_moments_for_a_node_that_does_not_answer(
    run, numbers, two_workers, tmp_path, log
):
    """R205: an idle node that stopped: the run completes without it, and it ends when it wakes up."""
    hold(tmp_path)
    stopped = []

    def stop_the_idle_one():
        [(_, pid)] = until(lambda: told(tmp_path))
        until(lambda: log().count("joined") == 2)
        with distributed.Client(two_workers, set_as_default=False) as client:
            [idle] = set(client.run(os.getpid).values()) - {dask_worker_of(pid)}
        stopped.append(idle)
        os.kill(idle, signal.SIGSTOP)

    try:
        with Meanwhile(stop_the_idle_one, tmp_path):
            result = run(
                RECORD,
                [FileDataset.from_files(str(numbers / "00.txt"))],
                node_count=2,
                compute_target=two_workers,
                environment_variables={"HERE": str(tmp_path)},
                **ONE_EACH,
            )
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    assert lines(result) == EXPECTED[:1]
    assert (result.ended_at - result.started_at).total_seconds() < 15
    assert "does not answer at the end; it ends by itself" in log()
    with distributed.Client(two_workers, set_as_default=False) as client:
        until(lambda: not ours(client))


@pytest.mark.slow
def test_a_cluster_is_asked_for_a_replacement_of_a_worker_that_does_not_answer(
    run, numbers, tmp_path, log, monkeypatch
):
    """R86: a cluster object that starts its own Dask workers is asked once for one more."""
    monkeypatch.setattr(tending, "SILENT_S", 4.0)
    monkeypatch.setattr(tending, "REPLACE_AFTER_S", 0.5)
    hold(tmp_path)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:

        def stop_it():
            [(_, pid)] = until(lambda: told(tmp_path))
            stopped = dask_worker_of(pid)
            os.kill(stopped, signal.SIGSTOP)
            try:
                until(lambda: "node001 joined" in log())
                (tmp_path / "hold").unlink()
                until(lambda: len(told(tmp_path)) >= 100)
            finally:
                os.kill(stopped, signal.SIGCONT)

        with Meanwhile(stop_it, tmp_path):
            result = run(
                RECORD,
                numbers,
                compute_target=cluster,
                environment_variables={"HERE": str(tmp_path)},
                **ONE_EACH,
            )
        assert len(cluster.plan) == 2

    assert lines(result) == EXPECTED
    assert result.attempts == 100


def test_a_closed_worker_of_the_embedded_cluster_is_replaced(
    run, numbers, tmp_path, log, monkeypatch
):
    """R86: a cluster that is ours is asked for a replacement."""
    monkeypatch.setattr(tending, "REPLACE_AFTER_S", 0.1)
    monkeypatch.setattr(tending, "ASK_AGAIN_S", 0.5)
    clusters = capture_cluster(monkeypatch)
    hold(tmp_path)

    def close_it():
        until(lambda: told(tmp_path))
        own = clusters[0]._target._scalable
        [worker] = own.workers.values()
        asyncio.run_coroutine_threadsafe(worker.close(), own.loop.asyncio_loop).result(10)

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "100ms"}):
        with Meanwhile(close_it, tmp_path):
            result = run(RECORD, numbers, environment_variables={"HERE": str(tmp_path)}, **ONE_EACH)

    assert lines(result) == EXPECTED
    assert result.attempts == 100
    assert "node001 joined" in log()


def capture_cluster(monkeypatch):
    """Return a list in which each run's `Cluster` will be."""
    made = []

    class Captured(schedule.Cluster):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            made.append(self)

    monkeypatch.setattr(schedule, "Cluster", Captured)
    return made


@pytest.mark.slow
def test_a_busy_node_and_a_driver_that_stood_still_are_no_silence(
    run, numbers, two_workers, tmp_path, log, monkeypatch
):
    """R205: other people's tasks on the Dask worker, and a gap of the driver's own, lose no node."""
    monkeypatch.setattr(tending, "SILENT_S", 5.0)
    clusters = capture_cluster(monkeypatch)
    hold(tmp_path)

    def keep_busy():
        until(lambda: told(tmp_path))
        with distributed.Client(two_workers, set_as_default=False) as client:
            busy = client.map(count_down, range(6), pure=False)
            clusters[0]._target.loop.call_soon_threadsafe(time.sleep, 6)
            client.gather(busy)

    with Meanwhile(keep_busy, tmp_path):
        result = run(
            RECORD,
            numbers,
            node_count=2,
            compute_target=two_workers,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_EACH,
        )

    assert lines(result) == EXPECTED
    assert "is lost" not in log()


def count_down(_):
    """Keep a thread busy with pure Python for three seconds."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        sum(range(1000))


class Wire:
    """A port that passes bytes on to the scheduler, and can be cut."""

    def __init__(self, address):
        host, _, port = address.removeprefix("tcp://").partition(":")
        self._there = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends = []
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        pumps = []
        while True:
            try:
                ours, _ = self._server.accept()
            except OSError:
                break
            theirs = socket.create_connection(self._there)
            self._ends += [ours, theirs]
            for pair in ((ours, theirs), (theirs, ours)):
                pumps.append(threading.Thread(target=self._pump, args=pair))
                pumps[-1].start()
        for pump in pumps:
            pump.join()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break every connection there is; new ones are let through."""
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Let nobody through any more."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._thread.join()
        for end in self._ends:
            end.close()


@pytest.mark.parametrize("greeted", [True, False])
def test_a_connection_to_the_scheduler_that_breaks_comes_back(
    run, numbers, two_workers, tmp_path, log, monkeypatch, greeted
):
    """R86, R200: the nodes end, join again, and the output is as if nothing had been.

    Also if Dask first finds other news in the scheduler's greeting (a race), which it asserts away.
    """
    wire = Wire(two_workers)
    connect, connected = distributed.Client._ensure_connected, []

    async def stumble(client, timeout=None):
        connected.append(client)
        if len(connected) == 2 and not greeted:
            raise AssertionError
        await connect(client, timeout=timeout)

    monkeypatch.setattr(distributed.Client, "_ensure_connected", stumble)
    hold(tmp_path)

    def cut_it():
        until(lambda: len(told(tmp_path)) == 2)
        wire.cut()
        until(lambda: len(told(tmp_path)) == 4)

    with Meanwhile(cut_it, tmp_path):
        result = run(
            RECORD,
            numbers,
            node_count=2,
            compute_target=wire.address,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_EACH,
        )
    wire.close()

    assert lines(result) == EXPECTED
    assert result.attempts == 100
    assert "the connection to the Dask scheduler broke" in log()


def gone_in_time(run, numbers, tmp_path, target, **settings):
    """Stop a run, whose processes have children of their own, by `watch`; return seconds until all are gone."""
    script = """
        import os, signal, subprocess, time

        def run(mini_batch):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            with open(os.environ["PIDS"], "a") as pids:
                pids.write(f"{os.getpid()} {child.pid}\\n")
            time.sleep(600)
    """
    pids = tmp_path / "pids"
    stopped_at = []

    class Stop(Exception):
        pass

    def watch():
        if pids.exists() and len(pids.read_text().split()) >= 4:
            settings.get("before", lambda found: None)(
                [int(pid) for pid in pids.read_text().split()]
            )
            stopped_at.append(time.monotonic())
            raise Stop

    with pytest.raises(Stop):
        run(
            script,
            numbers,
            node_count=2,
            compute_target=target,
            watch=watch,
            environment_variables={"PIDS": str(pids)},
            **ONE_EACH,
        )
    returned = time.monotonic() - stopped_at[0]
    return returned, [int(pid) for pid in pids.read_text().split()]


@pytest.mark.parametrize("own", [True, False])
def test_what_watch_raises_stops_every_process_on_every_node(
    run, numbers, two_workers, tmp_path, own
):
    """R205: within five seconds, children that called setsid included."""
    returned, pids = gone_in_time(run, numbers, tmp_path, None if own else two_workers)

    assert returned < 5
    assert living(pids) == []


def test_a_node_that_does_not_answer_holds_no_cancellation_up(run, numbers, two_workers, tmp_path):
    """R205: the others are gone within five seconds; that one ends as soon as it wakes up."""
    stopped = []

    def stop_one(pids):
        stopped.append(dask_worker_of(pids[0]))
        os.kill(stopped[0], signal.SIGSTOP)

    returned, pids = gone_in_time(run, numbers, tmp_path, two_workers, before=stop_one)
    held, free = pids[:2], pids[2:4]
    try:
        assert returned < 5
        assert living(free) == []
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    until(lambda: not living(held), 10)
