"""Hosts with no disk in common: what a run needs goes there over Dask, all that it makes comes home (R214).

The driver, the scheduler and the Dask workers are processes of hosts made of namespaces; see `network`.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path

import pandas as pd
import pytest

from prefect_parallelrun import FileDataset, TabularDataset
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.errors import InitFailed, OutputError
from tests.hosts.conftest import filled_by, numbers, step
from tests.hosts.network import until

pytestmark = pytest.mark.timeout(180)  # hosts and all, on a machine that is busy

SCORE = """
    import argparse, os
    from pathlib import Path
    from azureml_user.parallel_run import EntryScript
    from waiting import wait

    parser = argparse.ArgumentParser()
    parser.add_argument("--side")
    parser.add_argument("--unseen")
    given, _ = parser.parse_known_args()

    def init():
        EntryScript().logger.info("begun")

    def run(mini_batch):
        wait()
        print("read", *(Path(one).name for one in mini_batch))
        assert not (given.unseen and os.path.exists(given.unseen)), "this disk is shared"
        factor = int(Path(given.side, "deep", "factor.txt").read_text())
        return [f"{Path(one).name} {int(Path(one).read_text()) * factor}" for one in mini_batch]
"""
WRITE = """
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    out = parser.parse_known_args()[0].out

    def run(mini_batch):
        for one in map(Path, mini_batch):
            folder = Path(out, "deep", one.stem[-1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / one.name).write_text(one.read_text())
        return mini_batch
"""
READ = """
    from waiting import wait

    def run(mini_batch):
        wait()
        return [open(one).read() for one in mini_batch]
"""
FAIL = """
    def init():
        print("looks for it")
        raise LookupError("no such model")

    def run(mini_batch):
        return mini_batch
"""
ADD = """
    def run(mini_batch):
        assert 13 not in set(mini_batch["n"]), "unlucky"
        return mini_batch.assign(n=mini_batch["n"] * 2)
"""


@pytest.fixture
def side(hosts):
    """A side input with a factor, deep in a folder."""
    folder = hosts.files / "side"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "factor.txt").write_text("3")
    return FileDataset.from_files(str(folder)).as_named_input("side").as_mount()


def _logged(result, *place):
    found = Path(result.logs_directory, *place).rglob("*")
    return [one for one in found if one.is_file()]


def _nothing_is_left(hosts):
    for host in hosts.nodes:
        assert host.left() == []
        assert host.processes("prefect_parallelrun_runtime") == []


@pytest.mark.slow
def test_a_run_on_hosts_that_share_nothing_is_that_of_one_host(hosts, side):
    """Source, side input and input files go there; rows, logs and samples come home; nothing stays."""
    data = numbers(hosts.files / "data", 60)
    given = {"side_inputs": (side,)}
    unseen = ("--unseen", str(data))
    there = step(hosts, SCORE, data, arguments=("--side", side, *unseen), **given)
    driver = hosts.run(there)
    until(lambda: driver.log.count(" joined: ") == 2)
    for host in (*hosts.nodes, hosts.driver):
        host.go()
    result = driver.result()

    rows = Path(result.append_row_file).read_text()
    assert sorted(rows.splitlines()) == [f"{n:03d}.txt {3 * n}" for n in range(60)]
    assert (result.items.succeeded, result.attempts) == (60, 30)
    # What the script printed and logged, per process.
    printed = [one.read_text() for one in _logged(result, "user", "stdout")]
    told = sorted(word for text in printed for word in text.split() if word.endswith(".txt"))
    assert told == [f"{n:03d}.txt" for n in range(60)]
    nodes = {"node000", "node001"}
    for place in ("stdout", "entry_script_log"):
        assert {one.parent.name for one in _logged(result, "user", place)} == nodes
    assert all("begun" in one.read_text() for one in _logged(result, "user", "entry_script_log"))
    # Ours: one file per process, and what each node's monitor has sampled.
    for node in nodes:
        assert len(_logged(result, "sys", "node", node)) == 2
        for name in ("node", "processes"):
            file = Path(result.logs_directory, "perf", node, f"{name}_resource_usage.csv")
            assert len(file.read_text().splitlines()) > 1
    summary = Path(result.logs_directory, "sys", "job_report", "node_summary.csv")
    assert {"host0", "host1"} <= {
        value for row in csv.DictReader(summary.read_text().splitlines()) for value in row.values()
    }
    # The nodes do not see that path, and the text is for the script alone to understand.
    assert driver.log.count(f"{data}, in the script's arguments as a text, is not to be") == 1
    _nothing_is_left(hosts)

    embedded = {"compute_target": None, "node_count": 1}
    alone = step(hosts, SCORE, data, arguments=("--side", side), **given, **embedded)
    alone.validate()
    same = run_step(
        alone, run_folder=hosts.files / "alone", run_id="alone", log=logging.getLogger("alone")
    )
    assert Path(same.append_row_file).read_text() == rows
    assert (same.items, same.mini_batches) == (result.items, result.mini_batches)


@pytest.fixture(scope="module")
def several(hosts):
    """What came of six steps of one driver, by name; the last two are to fail."""
    vanishing = numbers(hosts.files / "vanishing", 40)
    files, table = hosts.files / "written", hosts.files / "table.csv"
    pd.DataFrame({"n": range(40)}).to_csv(table, index=False)
    few = {"error_threshold": 20, "run_max_try": 1}
    steps = {
        "vanishing": step(hosts, READ, vanishing, mini_batch_size=1, **few),
        "written": step(hosts, WRITE, numbers(hosts.files / "files", 40), **filled_by(files)),
        "followed": step(hosts, READ, FileDataset.from_files(f"{files}/**/*.txt")),
        "added": step(
            hosts,
            ADD,
            TabularDataset.from_delimited_files(str(table)),
            mini_batch_size=20,
            output_format="parquet",
            **few,
        ),
        "unstarted": step(hosts, FAIL, hosts.files / "files", process_count_per_node=1),
        "full": step(hosts, WRITE, hosts.files / "files", **filled_by(_small(hosts))),
    }
    driver = hosts.run(*steps.values())
    until(lambda: driver.log.count(" joined: ") == 2)
    (vanishing / "039.txt").unlink()
    for host in hosts.nodes:
        host.go()
    return dict(zip(steps, driver.results(150), strict=True))


def _small(hosts):
    """Make a folder at home that has room for a few files."""
    folder = hosts.files / "small"
    options = ("-t", "tmpfs", "-o", "nr_inodes=20")
    hosts.driver.call("sh", "-c", f"mkdir {folder} && mount {' '.join(options)} none {folder}")
    return folder


@pytest.mark.slow
def test_output_files_of_scripts_come_home_for_a_step_that_follows(hosts, several):
    """Tables too are read there in pieces, and the log of what failed is at home (R60, R230)."""
    assert several["written"].items.succeeded == 40
    files = Path(several["written"].output)
    found = {str(one.relative_to(files)): one.read_text() for one in files.rglob("*.txt")}
    assert found == {f"deep/{n % 10}/{n:03d}.txt": str(n) for n in range(40)}
    rows = Path(several["followed"].append_row_file).read_text().split()
    assert sorted(map(int, rows)) == list(range(40))

    added = several["added"]
    failed = _failed(added)
    assert 0 < added.items.failed < 20
    numbers_there = set(pd.read_parquet(added.append_row_file)["n"] // 2)
    assert 13 not in numbers_there
    assert len(numbers_there) == added.items.succeeded
    logs = {path for one in failed for path in one["log_files"]}
    assert any("unlucky" in Path(path).read_text() for path in logs)
    _nothing_is_left(hosts)


@pytest.mark.slow
def test_an_input_file_that_is_removed_meanwhile_fails_its_item_by_name(hosts, several):
    """The driver is asked for it when its mini-batch comes (R60)."""
    result = several["vanishing"]
    assert (result.items.succeeded, result.items.failed) == (39, 1)
    (failed,) = _failed(result)
    assert failed["item"] == f"{hosts.files}/vanishing/039.txt"
    assert "No such file" in json.dumps(failed)


@pytest.mark.slow
def test_the_logs_of_nodes_that_cannot_be_started_are_at_home(several):
    """Each worker process that failed has left its own, on both hosts; the error names one of them (R60)."""
    error = several["unstarted"]
    assert isinstance(error, InitFailed)
    (named,) = re.findall(r"^stack trace in: (.+)$", str(error), re.MULTILINE)
    assert "no such model" in Path(named).read_text()
    logs = Path(error.logs_directory, "user")
    told = int(re.findall(r"init\(\) failed, (\d+) times", str(error))[0])
    for place, what in (("error", "no such model"), ("stdout", "looks for it")):
        there = [one for one in (logs / place).rglob("*.txt") if what in one.read_text()]
        assert len(there) >= told, place
        assert len({one.parent for one in there}) == 2


@pytest.mark.slow
def test_a_full_disk_at_home_ends_the_run_and_says_so(hosts, several):
    """No node is to blame for it, and none is lost (R60)."""
    error = several["full"]
    assert isinstance(error, OutputError)
    for text in (f"{hosts.files}/small", "No space left on device", "Free some space and run"):
        assert text in str(error)
    assert "lost" not in Path(error.logs_directory, "70_driver_log.txt").read_text()
    _nothing_is_left(hosts)


def _failed(result):
    lines = Path(result.run_directory, "failed_items.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
