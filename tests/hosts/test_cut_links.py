"""Cables that are cut between hosts that share nothing: for a while, for good, at the end of a run (R214).

A cut cable lets nothing pass, and tells nobody. Dask notices after `distributed.comm.timeouts.tcp`, here
11 seconds, of which the docs give the default (30 seconds).
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from tests.hosts.conftest import filled_by, numbers, step
from tests.hosts.network import TCP_S, until

pytestmark = pytest.mark.timeout(180)  # hosts and all, on a machine that is busy

SLOW = """
    import argparse, socket, time
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
                Path(out, one.name).write_text(f"{one.read_text()} {socket.gethostname()} {time.time_ns()}")
        return [Path(one).name for one in mini_batch]
"""
ENDS_SLOWLY = """
    def shutdown():
        time.sleep(3)
"""


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
def test_a_link_cut_for_seconds_costs_nothing_and_for_good_moves_what_was_there(hosts):
    """First for 5 seconds: no attempt and no node is lost. Then for good: the other node takes over, within
    the limit; of files that a result counts for there is one each.
    """
    files, cut = hosts.files / "written_of_cut", hosts.nodes[1]
    data = numbers(hosts.files / "data_of_cut", 300)

    def written_there():
        return [text for text in _files(files).values() if f" {cut.name} " in text]

    driver = hosts.run(step(hosts, SLOW, data, **filled_by(files)))
    name = _name(hosts, driver, cut)
    _go(hosts)
    until(lambda: len(_files(files)) > 20)
    cut.cut()
    threading.Event().wait(5)
    before = len(written_there())
    cut.heal()
    until(lambda: len(written_there()) > before + 8)
    assert "is lost" not in driver.log

    cut.cut()
    began = time.monotonic()
    until(lambda: f"{name} is lost" in driver.log)
    assert time.monotonic() - began < TCP_S + 6, driver.log
    kept = _files(files)
    _ended(cut)

    result = driver.result()
    assert result.items.succeeded == 300
    assert result.attempts == 150  # the loss of a node is no attempt of what ran there
    found = _files(files)
    # None twice, or under another name.
    assert sorted(found) == [f"{n:03d}.txt" for n in range(300)]
    assert all(text.split()[0] == str(int(name[:3])) for name, text in found.items())
    # The script writes another text each time: what counted is not made again.
    again = sum(found[name] != text for name, text in kept.items())
    assert again <= 2 * 2 * 4, again


@pytest.mark.slow
def test_a_link_cut_while_a_run_ends_is_told_and_costs_no_row(hosts):
    """What a node had not brought home of its logs is lost, and the log says so."""
    driver = hosts.run(step(hosts, SLOW + ENDS_SLOWLY, numbers(hosts.files / "data_of_end", 20)))
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
