"""Hosts with no disk in common: what a run needs goes there over Dask, all that it makes comes home (R214).

The driver, the scheduler and the Dask workers are processes of hosts made of namespaces; see `network`.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from prefect_parallelrun import FileDataset, TabularDataset
from prefect_parallelrun.driver.run import run_step
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
    _nothing_is_left(hosts)

    embedded = {"compute_target": None, "node_count": 1}
    alone = step(hosts, SCORE, data, arguments=("--side", side), **given, **embedded)
    alone.validate()
    same = run_step(
        alone, run_folder=hosts.files / "alone", run_id="alone", log=logging.getLogger("alone")
    )
    assert Path(same.append_row_file).read_text() == rows
    assert (same.items, same.mini_batches) == (result.items, result.mini_batches)


@pytest.mark.slow
def test_output_files_of_scripts_come_home_for_a_step_that_follows(hosts):
    """Tables too are read there in pieces, and the log of what failed is at home (R60, R230)."""
    data = numbers(hosts.files / "files", 40)
    files, table = hosts.files / "written", hosts.files / "table.csv"
    pd.DataFrame({"n": range(40)}).to_csv(table, index=False)
    writing = step(hosts, WRITE, data, **filled_by(files))
    following = step(
        hosts,
        "def run(mini_batch):\n    return [open(one).read() for one in mini_batch]",
        FileDataset.from_files(f"{files}/**/*.txt"),
    )
    rows = TabularDataset.from_delimited_files(str(table))
    adding = step(
        hosts,
        ADD,
        rows,
        mini_batch_size=20,
        error_threshold=20,
        run_max_try=1,
        output_format="parquet",
    )
    written, followed, added = hosts.run(writing, following, adding).results()

    assert written.items.succeeded == 40
    found = {str(one.relative_to(files)): one.read_text() for one in files.rglob("*.txt")}
    assert found == {f"deep/{n % 10}/{n:03d}.txt": str(n) for n in range(40)}
    rows = Path(followed.append_row_file).read_text().split()
    assert sorted(map(int, rows)) == list(range(40))

    failed = [
        json.loads(one)
        for one in Path(added.run_directory, "failed_items.jsonl").read_text().splitlines()
    ]
    assert 0 < added.items.failed < 20
    numbers_there = set(pd.read_parquet(added.append_row_file)["n"] // 2)
    assert 13 not in numbers_there
    assert len(numbers_there) == added.items.succeeded
    logs = {path for one in failed for path in one["log_files"]}
    assert any("unlucky" in Path(path).read_text() for path in logs)
    _nothing_is_left(hosts)


@pytest.mark.slow
def test_an_input_file_that_is_removed_meanwhile_fails_its_item_by_name(hosts):
    """The driver is asked for it when its mini-batch comes (R60)."""
    script = """
        from waiting import wait

        def run(mini_batch):
            wait()
            return [open(one).read() for one in mini_batch]
    """
    data = numbers(hosts.files / "vanishing", 40)
    given = {"error_threshold": 2, "run_max_try": 1, "mini_batch_size": 1}
    driver = hosts.run(step(hosts, script, data, **given))
    until(lambda: driver.log.count(" joined: ") == 2)
    (data / "039.txt").unlink()
    for host in hosts.nodes:
        host.go()
    result = driver.result()
    assert (result.items.succeeded, result.items.failed) == (39, 1)
    (failed,) = Path(result.run_directory, "failed_items.jsonl").read_text().splitlines()
    assert json.loads(failed)["item"] == f"{data}/039.txt"
    assert "No such file" in failed
    _nothing_is_left(hosts)
