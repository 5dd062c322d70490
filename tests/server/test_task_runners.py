"""A chain of tasks and steps under each task runner, as Prefect's API shows it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import distributed
import pytest
from prefect import flow, get_client, runtime, task
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_dask import DaskTaskRunner

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunResult, ParallelRunStep

RECORDED_S = 20.0
"""Prefect's server learns of task runs by events, a moment after they end."""
SCRIPT = "def run(mini_batch):\n    return [path[-5] for path in mini_batch]\n"


@pytest.fixture(scope="module")
def cluster():
    """A Dask cluster that flows run their tasks on."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0", silence_logs="ERROR"
    ) as found:
        yield found.scheduler_address


@dataclass(frozen=True)
class Shown:
    """A flow run as Prefect shows it; task runs go by the beginning of their names."""

    states: dict[str, list[str]]
    edges: set[tuple[str, str]]


def shown(flow_run_id, task_runs) -> Shown:
    """Return what the API says of a flow run, once it knows how so many task runs ended."""
    deadline = time.monotonic() + RECORDED_S
    with get_client(sync_client=True) as client:
        while True:
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
            runs = client.read_task_runs(flow_run_filter=wanted)
            if len(runs) >= task_runs and all(run.state and run.state.is_final() for run in runs):
                break
            assert time.monotonic() < deadline, [(run.name, run.state_name) for run in runs]
            time.sleep(0.05)
        graph = client.request("GET", "/flow_runs/{id}/graph-v2", path_params={"id": flow_run_id})
    nodes = [node for _, node in graph.json()["nodes"]]
    names = {node["id"]: node["label"].partition("-")[0] for node in nodes}
    states = defaultdict(list)
    for run in runs:
        states[names[str(run.id)]].append(run.state.name)
    return Shown(
        dict(states),
        {(names[one["id"]], names[node["id"]]) for node in nodes for one in node["parents"]},
    )


@task
def write(folder):
    """Write three files."""
    folder.mkdir()
    for letter in "abc":
        (folder / f"{letter}.txt").write_text(letter)
    return str(folder)


@task
def find(folder):
    """Return a dataset by which nobody could tell who made its files."""
    return FileDataset.from_files(Path(folder))


@task
def count(result):
    return len(result.to_pandas())


@task
def look(place):
    return place


@pytest.fixture
def step(here, tmp_path):
    """Return a function that makes a step of a name and inputs."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "last_letter.py").write_text(SCRIPT)
    config = ParallelRunConfig(
        "last_letter.py", source_directory=str(tmp_path / "scripts"), process_count_per_node=1
    )

    def make(name, inputs, **given):
        return ParallelRunStep(name, config, inputs, **given)

    return make


def called(work, *arguments, after=None):
    """Run a task or step here; the one before it has ended then."""
    return work(*arguments)


def submitted(work, *arguments, after=None):
    """Leave a task or step to the flow's task runner."""
    return work.submit(*arguments, wait_for=[after] if after is not None else None)


def result(value):
    return value if isinstance(value, ParallelRunResult | int) else value.result()


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("how", ["called", "threads", "dask"])
def test_a_chain_is_one_task_run_for_each_step_with_its_edges(
    how, asynchronous, step, tmp_path, request
):
    """Whatever runs the tasks, a step is one task run, the graph has an edge from each task whose
    result it takes, and to each that takes its own, and no others, and a second call of the same is
    shown as Cached (R52, R240)."""
    runner = (
        DaskTaskRunner(address=request.getfixturevalue("cluster"))
        if how == "dask"
        else ThreadPoolTaskRunner(max_workers=2)
    )
    run = called if how == "called" else submitted
    flow_runs = []

    def chain():
        flow_runs.append(runtime.flow_run.id)
        files = run(find, run(write, tmp_path / "data"))
        letters = step("letters", [files])
        first = run(letters)
        # Not at the same time: it is to find the first one's result.
        again = run(letters.with_options(task_run_name="again"), after=first)
        second = run(step("lines", [files], side_inputs=[first], arguments=["--first", first]))
        return [result(one) for one in (first, again, run(count, second))]

    async def chain_async():
        return chain() if how == "called" else await asyncio.to_thread(chain)

    made = flow(task_runner=runner)(chain_async if asynchronous else chain)
    first, again, rows = asyncio.run(made()) if asynchronous else made()

    assert (first.reused, again.reused, rows) == (False, True, 3)
    seen = shown(flow_runs[0], 6)
    assert seen.states == {
        "write": ["Completed"],
        "find": ["Completed"],
        "letters": ["Completed"],
        "again": ["Cached"],
        "lines": ["Completed"],
        "count": ["Completed"],
    }
    assert seen.edges == {
        ("write", "find"),
        ("find", "letters"),
        ("find", "again"),
        ("find", "lines"),
        ("letters", "lines"),
        ("lines", "count"),
        *([] if how == "called" else [("letters", "again")]),
    }


def test_paths_that_are_handed_on_draw_edges(step, tmp_path):
    """A dataset of a path that a task returned has an edge from it, and the paths in a result have edges
    to whatever takes them, be it a task or the dataset of another step (R240)."""
    flow_runs = []

    @flow
    def handed_on():
        flow_runs.append(runtime.flow_run.id)
        letters = step("letters", [FileDataset.from_files(write(tmp_path / "data"))])()
        look(letters.output)
        return step("lines", [FileDataset.from_files(letters.append_row_file)])().items.total

    assert handed_on() == 1
    assert shown(flow_runs[0], 4).edges == {
        ("write", "letters"),
        ("letters", "look"),
        ("letters", "lines"),
    }
