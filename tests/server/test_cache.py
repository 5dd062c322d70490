"""What Prefect's cache answers, and when, as its server shows it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow, get_client, task
from prefect.cache_policies import INPUTS, RUN_ID
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from prefect_parallelrun import (
    FileDataset,
    ParallelRunConfig,
    ParallelRunError,
    ParallelRunStep,
    ReusePolicy,
)
from prefect_parallelrun.driver.resume import resume
from prefect_parallelrun.paths import RunPaths

pytestmark = pytest.mark.timeout(180)

RECORDED_S = 20.0
"""Prefect's server learns of task runs by events, a moment after they end."""
SCRIPT = "def run(mini_batch):\n    return [path[-5] for path in mini_batch]\n"
STEP = """
import sys
from prefect.cache_policies import INPUTS
from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep, ReusePolicy

def make(folder):
    return ParallelRunStep(
        "cached-step",
        ParallelRunConfig(f"{folder}/scripts/score.py", process_count_per_node=1),
        [FileDataset.from_files(f"{folder}/data")],
        output=f"{folder}/out",
        task_options={"cache_policy": ReusePolicy() + INPUTS},
    )

if __name__ == "__main__":
    print("state:", make(sys.argv[1])(return_state=True).name)
"""

NEW = ("Completed", False)
CACHED = ("Cached", True)
AS_IT_LIES = ("Completed", True)
"""Nothing had to run, but Prefect had no result of that."""


@pytest.fixture
def make(here, tmp_path):
    """Return a function that makes a step over three files, or others."""
    (tmp_path / "data").mkdir()
    for name in "abc":
        (tmp_path / "data" / f"{name}.txt").write_text(name)
    script = tmp_path / "scripts" / "score.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)

    def step(name="cached-step", inputs=None, config=None, **settings):
        return ParallelRunStep(
            name,
            ParallelRunConfig(str(script), **{"process_count_per_node": 1, **(config or {})}),
            inputs or [FileDataset.from_files(str(tmp_path / "data"))],
            **{"output": tmp_path / "out", **settings},
        )

    return step


def called(step):
    """Run a step and return how: the name of its state, and whether nothing had to run."""
    state = step(return_state=True)
    return state.name, state.result().reused


def test_what_the_server_shows_of_reuse(make, tmp_path):
    """Cached where nothing changed; a lost output, allow_reuse=False and refresh_cache run (R52)."""

    @flow
    def again():
        seen = [called(make()), called(make())]
        (tmp_path / "out" / "parallel_run_step.txt").unlink()
        seen += [called(make()), called(make())]
        seen += [called(make(allow_reuse=False)), called(make())]
        seen += [called(make(task_options={"refresh_cache": True})), called(make())]
        return seen

    state = again(return_state=True)

    expected = [NEW, CACHED, AS_IT_LIES, CACHED, NEW, CACHED, NEW, CACHED]
    assert state.result() == expected
    shown = _shown(state.state_details.flow_run_id, len(expected))
    assert shown == [name for name, _ in expected]
    assert (tmp_path / "out" / "parallel_run_step.txt").read_text().split() == ["a", "b", "c"]


def test_it_composes_with_prefects_own_policies(make, tmp_path, server):
    """ReusePolicy can be added to others, reduced and given a storage for keys, in any process."""
    options = {
        "inputs": ReusePolicy() + INPUTS,
        "less": INPUTS + ReusePolicy() - "config",
        "flow run": ReusePolicy() + RUN_ID,
        "keys": ReusePolicy().configure(key_storage=str(tmp_path / "keys")),
    }

    @flow
    def call(*names, **config):
        return [
            called(make(config=config, task_options={"cache_policy": options[name]}))
            for name in names
        ]

    assert call("inputs", "less", "keys") == [NEW, AS_IT_LIES, AS_IT_LIES]
    # A setting that changes no rows changes what the task is called with.
    assert call("inputs", "less", "keys", run_max_try=1) == [AS_IT_LIES, CACHED, CACHED]
    assert call("flow run", "flow run") == [AS_IT_LIES, CACHED]
    assert call("flow run") == [AS_IT_LIES]
    assert [path.name[:12] for path in (tmp_path / "keys").iterdir()] == ["parallelrun-"]

    (tmp_path / "step.py").write_text(STEP)
    assert _in_a_process(tmp_path, server) == "state: Cached"


def test_a_run_that_was_gone_on_with_elsewhere(make, tmp_path):
    """What `parallelrun resume` completed stands for the step, and is Cached from the second call on."""
    flag = tmp_path / "mended"
    (tmp_path / "scripts" / "score.py").write_text(
        f"import os\ndef run(mini_batch):\n    assert os.path.exists({str(flag)!r})\n    return mini_batch\n"
    )
    step = make(config={"run_max_try": 1})
    with pytest.raises(ParallelRunError):
        step()
    flag.touch()
    (run,) = (tmp_path / "runs" / "cached-step").iterdir()
    resume(RunPaths(run), log=logging.getLogger("test"))

    assert [called(step) for _ in range(3)] == [AS_IT_LIES, CACHED, CACHED]


def test_what_prefect_keeps_of_a_run_is_small(make, tmp_path):
    """Of 20,000 rows none is in Prefect's storage, and steps and tasks downstream get all they need."""
    script = tmp_path / "scripts" / "score.py"
    script.write_text("def run(mini_batch): return ['a rather long row of output'] * 20_000\n")
    (tmp_path / "scripts" / "next.py").write_text(
        "import sys\ndef run(mini_batch): return [sum(1 for path in mini_batch for _ in open(path)), *sys.argv[1:]]"
    )
    before = set(PREFECT_LOCAL_STORAGE_PATH.value().glob("*"))

    @task(persist_result=False)
    def rows(result, place):
        return len(result.to_pandas(sep="|")), _lines(Path(place, "rows.txt"))

    @flow
    def chain():
        first = make(config={"mini_batch_size": 3, "append_row_file_name": "rows.txt"})()
        config = ParallelRunConfig(str(tmp_path / "scripts" / "next.py"), process_count_per_node=1)
        given = {
            "inputs": [FileDataset.from_files(first.output)],
            "arguments": ["--run", first.run_id],
        }
        by_path = ParallelRunStep("by-path", config, **given)
        by_result = ParallelRunStep(
            "by-result",
            config,
            [FileDataset.from_files(str(script))],
            side_inputs=[first],
            arguments=["--words", first],
        )
        told = [Path(one().append_row_file).read_text().split() for one in (by_path, by_result)]
        return first, *rows(first, first.output), *told

    first, in_pandas, in_file, by_path, by_result = chain()

    assert (in_pandas, in_file) == (20_000, 20_000)
    assert by_path == ["20000", "--run", first.run_id]
    assert by_result == ["1", "--words", first.output]
    kept = set(PREFECT_LOCAL_STORAGE_PATH.value().glob("*")) - before
    assert len(kept) == 3
    assert max(path.stat().st_size for path in kept) < 3_000


@pytest.mark.slow
def test_a_hundred_thousand_files(make, tmp_path):
    """An unchanged step over 100,000 files is Cached within a second, beyond listing them (R52)."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(100_000):
        (many / f"{number:06d}.txt").touch()
    dataset = FileDataset.from_files(str(many))
    step = make(inputs=[dataset], config={"mini_batch_size": 1000})

    @flow
    def score():
        assert called(step) == NEW
        beyond = []
        for _ in range(3):
            began = time.monotonic()
            dataset.list_files()
            listed = time.monotonic()
            assert called(step) == CACHED
            beyond.append(time.monotonic() - listed - (listed - began))
        return beyond

    assert min(score()) < 1


def _shown(flow_run_id, task_runs):
    """Return the names of the states of a flow run's task runs, in order, once the API has them all."""
    deadline = time.monotonic() + RECORDED_S
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(flow_run_filter=wanted)
            if len(runs) == task_runs and all(run.state and run.state.is_final() for run in runs):
                return [run.state.name for run in sorted(runs, key=lambda run: run.start_time)]
            assert time.monotonic() < deadline, [(run.name, run.state_name) for run in runs]
            time.sleep(0.05)


def _lines(path):
    return len(path.read_text().splitlines())


def _in_a_process(folder, server):
    done = subprocess.run(
        [sys.executable, str(folder / "step.py"), str(folder)],
        env={**server.environment(folder / "runs"), "PYTHONHASHSEED": str(os.getpid())},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]
