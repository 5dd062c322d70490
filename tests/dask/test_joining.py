"""Dask workers that go, or are let go of, just when they are made nodes: no run waits for them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time

import dask
import distributed
import pytest
from distributed.comm.addressing import parse_host_port

from prefect_parallelrun.driver import tending
from prefect_parallelrun.driver.choice import Choice
from prefect_parallelrun.driver.contact import Contact
from prefect_parallelrun.node import agent, calls
from tests.dask.conftest import lines
from tests.dask.faults import EXPECTED, RECORD, Meanwhile, supervisor_of, told, until

ECHO = "def run(mini_batch): return [p[-6:] for p in mini_batch]"


@pytest.fixture
def cluster():
    """Two Dask workers with one thread each."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


@pytest.fixture
def log(tmp_path):
    """Return a function that gives the driver's log of the test's run."""

    def read():
        [file] = tmp_path.rglob("70_driver_log.txt")
        return file.read_text()

    return read


def is_open(host, port):
    """Whether somebody listens there."""
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def test_a_dask_worker_that_goes_when_it_is_chosen_is_not_waited_for(
    run, numbers, cluster, log, monkeypatch
):
    """R214, R205: its end was told before it was a node; to reach it would take Dask 30 s to give up."""
    real = Choice.join
    gone = []

    async def join(choice, addresses, wanted):
        if not gone and addresses:
            gone.append(addresses[0])
            await choice._target.client.retire_workers(gone, asynchronous=True)
            while is_open(*parse_host_port(gone[0].removeprefix("tcp://"))):
                await asyncio.sleep(0.01)
            addresses = gone
        await real(choice, addresses, wanted)

    monkeypatch.setattr(Choice, "join", join)
    began = time.monotonic()

    result = run(
        ECHO,
        numbers,
        mini_batch_size=10,
        process_count_per_node=1,
        compute_target=cluster.scheduler_address,
    )

    assert time.monotonic() - began < 15
    assert lines(result) == EXPECTED
    assert result.attempts == 10
    assert "node000 is lost: its Dask worker is gone" in log()


def test_a_node_that_was_long_without_its_lease_is_tried_again(
    run, numbers, cluster, log, monkeypatch
):
    """R205: the driver stood still while a node was admitted, so that the node ended; it is no loss for good."""
    monkeypatch.setattr(agent, "LEASE_S", 0.3)
    monkeypatch.setattr(agent, "BEAT_S", 0.1)
    monkeypatch.setattr(tending, "TEND_S", 0.1)
    monkeypatch.setattr(tending, "SLOW_S", 0.1)
    real_submit, real_run_on = Contact.submit, Contact.run_on
    tried = []

    def submit(contact, node, what, function, *args):
        if what == agent.LEASE and node.address not in tried:
            # One that no agent knows comes as late as none.
            return real_submit(contact, node, "late", function, "nobody")
        return real_submit(contact, node, what, function, *args)

    async def run_on(contact, node, function, *args):
        if function is calls.start_node and node.address not in tried:
            tried.append(node.address)
            await asyncio.sleep(1)
        return await real_run_on(contact, node, function, *args)

    monkeypatch.setattr(Contact, "submit", submit)
    monkeypatch.setattr(Contact, "run_on", run_on)

    result = run(
        ECHO,
        numbers,
        mini_batch_size=10,
        node_count=2,
        process_count_per_node=1,
        compute_target=cluster.scheduler_address,
    )

    assert lines(result) == EXPECTED
    assert len(tried) == 2
    assert "it was let go of before it was started" in log()
    assert "node000 is still being started after 0.1 s" in log()


def test_a_node_that_is_just_being_ended_is_not_the_last_word(run, numbers, tmp_path, monkeypatch):
    """R205: the only Dask worker gets free again while it is settled who may be a node: the run goes on."""
    (tmp_path / "hold").touch()
    real = Choice.join

    async def join(choice, addresses, wanted):
        while choice._nodes.leaving:
            await asyncio.sleep(0.01)
        await real(choice, addresses, wanted)

    monkeypatch.setattr(Choice, "join", join)

    def kill_the_supervisor():
        [(_, process)] = until(lambda: told(tmp_path))
        os.kill(supervisor_of(process), signal.SIGKILL)

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Meanwhile(kill_the_supervisor, tmp_path),
    ):
        result = run(
            RECORD,
            numbers,
            mini_batch_size=10,
            process_count_per_node=1,
            compute_target=cluster.scheduler_address,
            environment_variables={"HERE": str(tmp_path)},
        )

    assert lines(result) == EXPECTED
    assert result.attempts == 10


def test_a_dask_worker_that_nobody_can_reach_is_told_of(run, numbers, log):
    """R205: one behind a firewall, say, that calls the scheduler and cannot be called: the log says why."""

    def watch():
        if "cannot be asked what it has" in log():
            raise Enough

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        distributed.LocalCluster(
            n_workers=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            contact_address="tcp://127.0.0.1:9",
        ) as cluster,
        pytest.raises(Enough),
    ):
        run(ECHO, numbers, compute_target=cluster.scheduler_address, watch=watch)

    assert "tcp://127.0.0.1:9 is no node yet: its Dask worker cannot be asked" in log()
    assert "Timed out trying to connect to tcp://127.0.0.1:9" in log()


class Enough(Exception):
    pass
