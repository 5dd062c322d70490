"""What the Dask dashboard shows of a run: tasks under the step's name, and the work of each node's processes."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from types import SimpleNamespace

import distributed
import pytest
from distributed.dashboard.components.scheduler import WorkerTable
from distributed.utils import key_split

from prefect_parallelrun.driver import target
from prefect_parallelrun.driver.node import task_name
from prefect_parallelrun.node.metrics import Metrics, Tally
from prefect_parallelrun_runtime import channel
from tests.dask.conftest import lines
from tests.dask.faults import EXPECTED, Meanwhile, until

VALUES = ["busy processes", "memory MiB", "mini-batches/s", "processes"]

HOLD = """
    import os, subprocess, sys, time

    def init():
        # 80 MB that Dask knows nothing of.
        hoard = "import time; x = bytearray(80_000_000); time.sleep(600)"
        subprocess.Popen([sys.executable, "-I", "-S", "-c", hoard])

    def run(mini_batch):
        while os.path.exists(os.environ["HERE"] + "/hold"):
            time.sleep(0.01)
        return [mini_batch[0][-6:]]
"""


@pytest.fixture(params=["embedded", "processes"])
def schedulers(request, monkeypatch):
    """Return the `compute_target`, and a list that comes to hold the scheduler that a run uses."""
    if request.param == "processes":
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster:
            yield cluster, [cluster.scheduler]
        return
    found, embedded = [], target._embedded

    def seen(node_count):
        cluster = embedded(node_count)
        found.append(cluster.scheduler)
        return cluster

    monkeypatch.setattr(target, "_embedded", seen)
    yield None, found


def values_of(scheduler):
    """By name, what each Dask worker that tells of our values told last."""
    told = [dict(worker.metrics) for worker in scheduler.workers.values()]
    return [
        {name: told_by[f"{name} (test-step)"] for name in VALUES}
        for told_by in told
        if "busy processes (test-step)" in told_by
    ]


def test_the_dashboard_shows_tasks_by_step_and_the_work_of_each_node(
    run, numbers, tmp_path, schedulers
):
    """R240: the link in the log opens it; two nodes with two busy processes each, and their memory."""
    compute_target, found = schedulers
    (tmp_path / "hold").touch()
    log = tmp_path / "run" / "logs" / "70_driver_log.txt"

    def look():
        until(lambda: log.exists() and "Dask dashboard: " in log.read_text())
        link = re.search(r"Dask dashboard: (\S+)", log.read_text())[1]
        with urllib.request.urlopen(link, timeout=10) as page:
            assert b"Dask Diagnostic UI" in page.read()
        with urllib.request.urlopen(link.replace("/status", "/workers"), timeout=10) as page:
            assert b"bokeh" in page.read().lower()
        (scheduler,) = found
        working = {"busy processes": 2, "processes": 2}
        until(
            lambda: (
                [{name: values[name] for name in working} for values in values_of(scheduler)]
                == [working, working]
                and all(
                    values["memory MiB"] > 2 * 80_000_000 >> 20 for values in values_of(scheduler)
                )
            )
        )
        prefixes = [name for name, prefix in scheduler.task_prefixes.items() if prefix.groups]
        assert set(prefixes) <= {"test-step", "test-step-node"}
        # The table of the page itself, as the dashboard builds it.
        table = WorkerTable(scheduler)
        table.update()
        shown = table.source.data
        assert shown["busy processes (test-step)"] == [4, 2, 2]
        assert shown["processes (test-step)"] == [4, 2, 2]
        assert shown["memory MiB (test-step)"][0] > 4 * 80_000_000 >> 20

    with Meanwhile(look, tmp_path):
        result = run(
            HOLD,
            numbers,
            mini_batch_size=1,
            node_count=2,
            run_folder=tmp_path / "run",
            compute_target=compute_target,
            environment_variables={"HERE": str(tmp_path)},
        )

    assert lines(result) == EXPECTED
    if compute_target is not None:
        until(lambda: values_of(found[0]) == [])
        with distributed.Client(compute_target, set_as_default=False) as client:
            left = client.run(lambda dask_worker: list(dask_worker.metrics))
        assert not [name for names in left.values() for name in names if "test-step" in name]


@pytest.mark.parametrize(
    "step", ["test-step", "score-v2", "step-2", "a-deadbeef", "deadbeef-a", "a2c", "x-1-y", "abc"]
)
def test_dask_groups_the_tasks_of_a_step_by_its_whole_name(step):
    """R240: names that differ are shown apart, and a name as it is, but for its hyphens where Dask would cut it."""
    name = task_name(step)
    assert key_split(f"{name}-0000017-0123456789ab") == name
    assert name.replace("_", "-") == step
    assert "_" not in task_name("test-step")


def metrics(step="test-step", run_id="run-1"):
    return Metrics({"step": step, "run_id": run_id}, Tally())


def test_runs_that_share_a_dask_worker_share_no_value_and_leave_none():
    """R240: two steps, and two runs of one step; what others have put there stays."""
    before = {"their own": lambda worker: 1}
    worker = SimpleNamespace(metrics=before)
    some = [metrics(), metrics("other"), metrics(run_id="run-2")]
    for each in some:
        each.show(worker)

    assert len(worker.metrics) == 1 + 3 * len(VALUES)
    assert {"processes (test-step)", "processes (other)", "processes (test-step, run-2)"} < set(
        worker.metrics
    )
    # A heartbeat may go through the dict, and wait for a value of somebody else meanwhile.
    assert list(before) == ["their own"]

    for each in some:
        each.hide(worker)
    assert worker.metrics == before


def told(worker):
    """The values, as a heartbeat gets them."""
    return {name: metric(worker) for name, metric in worker.metrics.items()}


def test_what_is_told_follows_what_the_supervisor_says():
    """R240: bundles begun and not ended are busy processes; what a script made up harms nothing."""
    tally, worker = Tally(), SimpleNamespace(metrics={})
    Metrics({"step": "s", "run_id": "r"}, tally).show(worker)
    for number in range(3):
        tally.heard({"name": "process_started", "process": f"process{number:03d}", "pid": 1})
    tally.heard({"name": "bundle_started", "bundle": 7, "process": "process000"})
    tally.heard({"name": "bundle_started", "bundle": 8, "process": "process001"})
    tally.heard({"name": "process_ended", "process": "process002"})
    for made_up in ({"name": "bundle_started"}, {"name": "process_started", "process": []}, {}):
        tally.heard(made_up)
    tally.came(channel.RESULT, 7)
    tally.came(channel.BUNDLE_END, 7)

    values = told(worker)
    assert (values["processes (s)"], values["busy processes (s)"]) == (2, 1)
    tally.heard({"name": "supervisor_ended"})
    values = told(worker)
    assert (values["processes (s)"], values["busy processes (s)"]) == (0, 0)


def test_the_rate_is_an_average_of_the_last_seconds(monkeypatch):
    """R240: 5 results a second show as 5, and nothing 10 seconds later as nothing."""
    clock = [100.0]
    monkeypatch.setattr("prefect_parallelrun.node.metrics.time.monotonic", lambda: clock[0])
    tally, worker = Tally(), SimpleNamespace(metrics={})
    Metrics({"step": "s", "run_id": "r"}, tally).show(worker)

    assert told(worker)["mini-batches/s (s)"] == 0
    for _ in range(60):
        clock[0] += 0.5
        tally.results += 2 if _ % 2 else 3
        rate = told(worker)["mini-batches/s (s)"]
    assert rate == pytest.approx(5, abs=0.2)
    for _ in range(22):
        clock[0] += 0.5
        rate = told(worker)["mini-batches/s (s)"]
    assert rate == 0


def test_a_heartbeat_costs_next_to_nothing():
    """The values are told on Dask's event loop: in far less than 2 ms, and without a look at processes."""
    tally, worker = Tally(), SimpleNamespace(metrics={})
    Metrics({"step": "s", "run_id": "r"}, tally).show(worker)
    before = threading.active_count()
    began = time.thread_time()
    for _ in range(1000):
        told(worker)
    assert time.thread_time() - began < 0.5
    assert threading.active_count() == before
