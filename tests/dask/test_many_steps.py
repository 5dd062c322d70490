"""Several runs on one Dask cluster, and other people's tasks beside them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import distributed
import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.choice import least_used
from tests.dask.conftest import lines
from tests.dask.drivers import driver
from tests.dask.faults import EXPECTED, RECORD, Meanwhile, dask_worker_of, told, until

ONE_PROCESS = {"mini_batch_size": 5, "process_count_per_node": 1}
TRIVIAL = "def run(mini_batch): return [p[-6:] for p in mini_batch]"


@pytest.fixture
def address(cluster):
    """Address of its scheduler, with both workers there."""
    cluster.wait_for_workers(2, timeout=30)
    return cluster.scheduler_address


@pytest.fixture
def client(address):
    """Somebody else on the cluster."""
    with distributed.Client(address, set_as_default=False) as client:
        yield client


def test_a_short_run_ends_while_a_long_one_has_all_nodes(run, numbers, address, tmp_path):
    """R230: two flows: what the long one has on every node costs the short one no place to run."""
    (tmp_path / "hold").touch()
    here = {"HERE": str(tmp_path)}
    long = driver(
        tmp_path / "long",
        RECORD,
        numbers,
        compute_target=address,
        node_count=2,
        environment_variables=here,
        **ONE_PROCESS,
    )
    with long as other:
        until(lambda: len(told(tmp_path)) == 2)

        short = run(TRIVIAL, numbers, compute_target=address, node_count=2, **ONE_PROCESS)

        assert lines(short) == EXPECTED
        assert len(told(tmp_path)) == 2
        (tmp_path / "hold").unlink()
        assert other.communicate(timeout=60)[0].split() == EXPECTED
        assert other.returncode == 0


def test_a_second_run_chooses_the_dask_worker_that_the_first_left_free(
    run, numbers, address, tmp_path
):
    """R230: with `node_count` less than the Dask workers, two flows use different ones."""
    (tmp_path / "hold").touch()
    settings = {
        "compute_target": address,
        "environment_variables": {"HERE": str(tmp_path)},
        **ONE_PROCESS,
    }
    with driver(tmp_path / "first", RECORD, numbers, **settings):
        [(_, first)] = until(lambda: told(tmp_path))

        def look():
            (_, second) = until(lambda: told(tmp_path)[1:])[0]
            seen.append(dask_worker_of(second))

        seen = [dask_worker_of(first)]
        with Meanwhile(look, tmp_path):
            assert lines(run(RECORD, numbers, **settings)) == EXPECTED

    assert len(set(seen)) == 2


def test_steps_that_are_submitted_at_the_same_moment_choose_different_dask_workers(
    run, numbers, address, tmp_path
):
    """R230: two steps of one flow; neither has a lease yet when the other chooses."""
    (tmp_path / "hold").touch()
    together = threading.Barrier(2)
    settings = {
        "compute_target": address,
        "environment_variables": {"HERE": str(tmp_path)},
        **ONE_PROCESS,
    }

    def one_run():
        together.wait(30)
        return lines(run(RECORD, numbers, **settings))

    def look():
        until(lambda: len(told(tmp_path)) == 2)
        places.update(dask_worker_of(pid) for _, pid in told(tmp_path))

    places = Counter()
    with Meanwhile(look, tmp_path), ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(one_run) for _ in range(2)]
        assert [one.result(60) for one in runs] == [EXPECTED, EXPECTED]

    assert len(places) == 2


def test_the_least_used_dask_workers_come_first_and_hosts_take_turns():
    """R230: few runs' nodes first; then hosts with few nodes, those just chosen included."""
    big = [f"tcp://10.0.0.1:{port}" for port in (1, 2, 3)]
    small = ["tls://10.0.0.2:1"]
    for _ in range(20):
        first, second, *rest = least_used([*big, *small], {})
        assert {first, second} > set(small)
        assert set(rest) < set(big)
        assert least_used([*big, *small], {big[0]: 1})[0] == small[0]
        assert least_used([*big, *small], {small[0]: 1, big[1]: 2})[2:] == [small[0], big[1]]


def test_others_tasks_and_a_run_go_on_beside_each_other(run, numbers, client, tmp_path):
    """R230: each makes progress while the other waits: a run behind a queue, tasks beside a run that is stuck."""
    (tmp_path / "hold").touch()
    # Told where to run, none waits on the scheduler: all are before ours on their Dask worker.
    there = list(client.scheduler_info(n_workers=-1)["workers"])
    others = client.map(time.sleep, [0.05] * 4000, pure=False, workers=there)

    def done():
        return sum(future.done() for future in others)

    def wait_for_others():
        until(lambda: len(told(tmp_path)) == 2)
        before = done()
        until(lambda: done() >= before + 20)

    with Meanwhile(wait_for_others, tmp_path):
        result = run(
            RECORD,
            numbers,
            node_count=2,
            compute_target=client.scheduler.address,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_PROCESS,
        )

    assert lines(result) == EXPECTED
    assert done() < len(others), "a run that waited for all that was queued before it"
    assert {future.status for future in others} == {"finished", "pending"}


def test_a_dask_worker_has_few_threads_for_many_bundles(run, numbers, client):
    """Each bundle that is in flight waits in a thread of its own: those of a node's window, no more."""
    most = 0
    over = threading.Event()

    def look():
        nonlocal most
        while not over.wait(0.01):
            most = max(most, *client.run(bundle_threads).values())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        result = run(
            TRIVIAL,
            numbers,
            mini_batch_size=1,
            node_count=2,
            process_count_per_node=2,
            compute_target=client.scheduler.address,
        )
    finally:
        over.set()
        looking.join()

    assert lines(result) == EXPECTED
    # The lease has one, too, and so has Dask for what comes next.
    assert 1 < most <= 2 * policy.window(0.0) + 2
    until(lambda: set(client.run(bundle_threads).values()) <= {0, 1})


def bundle_threads():
    return sum("Dask-Default-Threads" in thread.name for thread in threading.enumerate())


@pytest.mark.slow
def test_others_may_restart_the_cluster_during_a_run(run, numbers, client, tmp_path):
    """R86, R205: `Client.restart` takes all nodes, and all tasks of all clients; no row is lost or doubled."""
    (tmp_path / "hold").touch()

    def restart():
        until(lambda: len(told(tmp_path)) == 2)
        client.restart(timeout=60)

    with Meanwhile(restart, tmp_path):
        result = run(
            RECORD,
            numbers,
            node_count=3,  # one more than there are is wanted, before and after
            compute_target=client.scheduler.address,
            environment_variables={"HERE": str(tmp_path)},
            **ONE_PROCESS,
        )

    assert lines(result) == EXPECTED
    assert (result.attempts, result.items.failed) == (20, 0)
