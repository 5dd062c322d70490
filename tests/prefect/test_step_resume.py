"""A step that is run again goes on with its run, whatever ended that; only the task run is a new one."""

from __future__ import annotations

import re
import time

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import FlowRunContext

from prefect_parallelrun import OutputError, ParallelRunError
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import RunRecord

SLOW = """
import os, time
def run(mini_batch):
    open({flag!r}, "w").close()
    time.sleep(2.5)
    return mini_batch
"""


@pytest.mark.timeout(150)
@pytest.mark.parametrize("mode", ["main", pytest.param("thread", marks=[pytest.mark.slow])])
def test_a_flow_that_was_killed(started, mode):
    """`kill -9` of the flow's process leaves nothing running, and the next process goes on (R200, R201)."""
    flow = started(mode)
    flow.process.kill()
    flow.process.wait()

    assert flow.gone(time.monotonic()) < 5
    assert flow.record.state == "Running"
    assert flow.run_again().state == "Completed"

    log = flow.paths.driver_log.read_text()
    assert f"from a driver that is gone: process {flow.killed}" in log
    assert re.search(r"resumed: [12] mini-batches are done", log)


@pytest.fixture
def slow(files, tmp_path):
    """A step of which each mini-batch takes 2.5 seconds, and a function that waits until it runs."""
    flag = tmp_path / "flag"
    files.script.write_text(SLOW.format(flag=str(flag)))

    def wait():
        deadline = time.monotonic() + 30
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert flag.exists()

    return files.step(config={"mini_batch_size": 100}), wait


@pytest.mark.parametrize("ends", ["completes", "fails"])
def test_a_result_that_nobody_waited_for(slow, files, ends):
    """A flow that ends by itself lets a submitted step finish, as Prefect does with any task (R240)."""
    step, wait = slow

    @flow
    def score():
        step.submit()
        wait()
        if ends == "fails":
            raise ValueError("no more")
        return 1

    score(return_state=True)

    (run,) = files.runs()
    assert RunRecord.read(RunPaths(run)).state == "Completed"


def test_a_server_that_does_not_answer(slow, monkeypatch):
    """A run does not end, nor wait, because Prefect cannot be asked about the flow run."""
    step, _ = slow
    asked = []

    def refuse(self, flow_run_id):
        asked.append(flow_run_id)
        raise ConnectionError("no server")

    @flow
    def score():
        monkeypatch.setattr(SyncPrefectClient, "read_flow_run", refuse)
        try:
            return step(), FlowRunContext.get().flow_run.id
        finally:
            monkeypatch.undo()

    result, flow_run_id = score()

    assert result.items.succeeded == 3
    assert flow_run_id in asked


def test_the_same_step_twice_at_once(slow):
    """Two drivers never work on one run: the second is told who does, and what to do (R200)."""
    step, wait = slow

    @flow
    def score():
        first = step.submit()
        wait()
        with pytest.raises(
            OutputError, match=r"another driver: process \d+ on .*allow_reuse=False"
        ):
            step()
        return first.result()

    assert score().items.succeeded == 3


def test_another_run_of_its_own(slow, files):
    """With allow_reuse=False a step runs beside the other, in a folder of its own."""
    step, wait = slow

    @flow
    def score():
        first = step.submit()
        wait()
        second = files.step(config={"mini_batch_size": 100}, allow_reuse=False)()
        return first.result().run_id, second.run_id

    assert len(set(score())) == len(files.runs()) == 2


def test_how_to_go_on_without_reuse(files):
    """Without reuse running the step again is a new run, so its error says what to change (R206)."""
    files.script.write_text(
        "def run(mini_batch):\n"
        "    if mini_batch[0].endswith('c.txt'):\n"
        "        raise ValueError('bad file')\n"
        "    return mini_batch\n"
    )
    for allow_reuse, how in [(False, "set allow_reuse=True and run the step again"), (True, "run")]:
        step = files.step(config={"run_max_try": 1}, allow_reuse=allow_reuse)
        with pytest.raises(
            ParallelRunError, match=f"1 of 2 mini-batches are done and kept, with .* items: {how}"
        ):
            step()
    assert len(files.runs()) == 1  # with reuse it went on with what there was


def test_a_run_that_cannot_be_gone_on_with(files, read_rows):
    """Where the run of a fingerprint turns out to be another one, a new one begins (design 5)."""
    files.step()()
    (run,) = files.runs()
    (run / "output" / "parallel_run_step.txt").unlink()
    record = RunRecord.read(RunPaths(run))
    record.model_copy(update={"mini_batches": 7}).write(RunPaths(run))

    assert read_rows(files.step()()) == files.rows()
    assert len(files.runs()) == 2
