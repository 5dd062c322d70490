"""Cables that are cut between hosts that share nothing: for a while, for good, at the end of a run (R214).

A cut cable lets nothing pass, and tells nobody. Dask notices after `distributed.comm.timeouts.tcp`, here
12 seconds, of which the docs give the default (30 seconds).
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests.hosts import network
from tests.hosts.conftest import filled_by, numbers, step
from tests.hosts.network import until

pytestmark = pytest.mark.timeout(180)  # hosts and all, on a machine that is busy

TCP_S = 12.0
SLOW = """
    import argparse, time
    from pathlib import Path
    from waiting import wait

    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    out = parser.parse_known_args()[0].out

    def run(mini_batch):
        wait()
        time.sleep(0.2)
        for one in map(Path, mini_batch):
            if out:
                Path(out, one.name).write_text(one.read_text() + f" {time.time_ns()}")
        return [Path(one).name for one in mini_batch]
"""
ENDS_SLOWLY = """
    def shutdown():
        time.sleep(3)
"""


@pytest.fixture
def hosts(tmp_path):
    """Hosts of this test alone, which notice a cut after 12 seconds."""
    with network.made(tmp_path, 2, tcp=f"{TCP_S:g}s") as made:
        made.begin()
        yield made


def _name(hosts, driver, host):
    """Wait until all nodes are there and at work; return the name of the one on a host."""
    until(lambda: driver.log.count(" joined: ") == len(hosts.nodes))
    (name,) = re.findall(rf"(node\d+) joined: tcp://{host.address}:", driver.log)
    return name


def _go(hosts):
    for host in hosts.nodes:
        host.go()


def _once(result, count):
    rows = Path(result.append_row_file).read_text().split()
    assert sorted(rows) == [f"{n:03d}.txt" for n in range(count)]


def _files(folder):
    return {one.name: one.read_text() for one in folder.glob("*")}


def _ended(host):
    """Wait until nothing of a run is left on a host that cannot be told of its end."""
    until(lambda: not host.processes("prefect_parallelrun_runtime"), TCP_S + 10)
    until(lambda: host.left() == [])


@pytest.mark.slow
def test_a_link_that_is_cut_for_five_seconds_costs_nothing(hosts):
    """No mini-batch is tried again, none is lost, and no node."""
    driver = hosts.run(step(hosts, SLOW, numbers(hosts.files / "data", 100)))
    cut = hosts.nodes[1]
    _name(hosts, driver, cut)
    _go(hosts)
    cut.cut()
    threading.Event().wait(5)
    cut.heal()
    result = driver.result()
    _once(result, 100)
    assert result.attempts == 50
    assert "is lost" not in driver.log
    assert all(host.left() == [] for host in hosts.nodes)


@pytest.mark.slow
def test_a_link_cut_for_good_moves_its_mini_batches_within_the_limit(hosts):
    """What was there runs on the other node; of files that a result counts for there is one each."""
    files, cut = hosts.files / "written", hosts.nodes[1]
    data = numbers(hosts.files / "data", 160)
    driver = hosts.run(step(hosts, SLOW, data, **filled_by(files)))
    name = _name(hosts, driver, cut)
    _go(hosts)
    until(lambda: len(_files(files)) > 40)
    cut.cut()
    began = time.monotonic()
    until(lambda: f"{name} is lost" in driver.log)
    assert time.monotonic() - began < TCP_S + 6, driver.log
    before = _files(files)
    _ended(cut)

    result = driver.result()
    assert result.items.succeeded == 160
    assert result.attempts == 80  # the loss of a node is no attempt of what ran there
    found = _files(files)
    assert sorted(found) == [
        f"{n:03d}.txt" for n in range(160)
    ]  # none twice, or under another name
    assert all(text.split()[0] == str(int(name[:3])) for name, text in found.items())
    # The script writes another text each time: what counted is not made again.
    again = sum(found[name] != text for name, text in before.items())
    assert again <= 2 * 2 * 4, again


@pytest.mark.slow
def test_a_link_cut_while_a_run_ends_is_told_and_costs_no_row(hosts):
    """What a node had not brought home of its logs is lost, and the log says so."""
    driver = hosts.run(step(hosts, SLOW + ENDS_SLOWLY, numbers(hosts.files / "data", 20)))
    _name(hosts, driver, hosts.nodes[1])
    _go(hosts)
    logs = driver.folder / "run0" / "logs"
    until(lambda: any("nding the nodes" in one.read_text() for one in logs.glob("job_pro*")))
    hosts.nodes[1].cut()
    began = time.monotonic()
    _once(driver.result(), 20)
    assert time.monotonic() - began < 25
    assert "what it has not brought home is lost" in driver.log
    _ended(hosts.nodes[1])
