"""Events for Prefect's automations, against a real server."""

from __future__ import annotations

import textwrap
import threading
import time
from datetime import timedelta

import pytest
from prefect import flow, get_client, tags
from prefect.automations import Automation
from prefect.events.actions import CancelFlowRun
from prefect.events.filters import EventFilter, EventNameFilter, EventRelatedFilter
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect_dask import DaskTaskRunner

from prefect_parallelrun import (
    ErrorThresholdExceeded,
    FileDataset,
    ParallelRunConfig,
    ParallelRunStep,
)

SCRIPT = """
import time
from pathlib import Path

def run(mini_batch):
    names = [Path(path).name for path in mini_batch]
    if any(name.startswith("bad") for name in names):
        raise ValueError("no good: " + ", ".join(names))
    if any(name.startswith("slow") for name in names):
        time.sleep(30)
    return names
"""
PATIENCE_S = 30.0

pytestmark = pytest.mark.timeout(180)  # the first test waits for the server to start as well


def make_step(folder, names, *, name="score-files", **config):
    """Return a step that runs one mini-batch after the other over files of these names."""
    data = folder / "data"
    data.mkdir()
    for one in names:
        (data / one).write_text(one)
    script = folder / "source" / "score.py"
    script.parent.mkdir()
    script.write_text(textwrap.dedent(SCRIPT))
    settings = {"mini_batch_size": 1, "process_count_per_node": 1, "run_max_try": 1, **config}
    return ParallelRunStep(
        name, ParallelRunConfig(str(script), **settings), [FileDataset.from_files(str(data))]
    )


def events_of(resource_id, *, until, role=None):
    """Return our events of a task run (or of what is related to it) once there is the last one."""
    wanted = EventFilter(event=EventNameFilter(prefix=["parallelrun."]))
    if role is not None:
        wanted.related = EventRelatedFilter(id=[resource_id], role=[role])
    deadline = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_events(wanted, limit=50).events
            if role is None:
                found = [one for one in found if one.resource.id == resource_id]
            found.sort(key=lambda one: (one.occurred, one.id))
            if until in [one.event for one in found] or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


def test_a_run_in_a_flow_tells_automations_all_that_matters(here, tmp_path):
    """Start, failures, a threshold that is near and the end, each with its payload (R26, R208).

    They are events of the task run, related to the flow run, its flow and its tags as Prefect's own are.
    """
    step = make_step(tmp_path, ["bad1", "bad2", "bad3", "bad4", "good"], error_threshold=5)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def score():
        return step.submit().result()

    with tags("nightly"):
        state = score(return_state=True)
    result = state.result()
    flow_run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    found = events_of(flow_run, until="parallelrun.run.completed", role="flow-run")

    assert [one.event for one in found] == [
        "parallelrun.run.started",
        *["parallelrun.mini-batch.failed"] * 4,
        "parallelrun.run.threshold-near",
        "parallelrun.run.completed",
    ]
    started, *failed, near, completed = found
    # Bundles that end within moments of each other are settled in any order.
    first = min(failed, key=lambda event: event.payload["mini_batch"])
    for one in found:
        assert one.resource.id.startswith("prefect.task-run.")
        assert one.resource.name == "score-files"
        assert {(related.role, related.name) for related in one.related} >= {("flow", "score")}
        assert "prefect.tag.nightly" in [related.id for related in one.related]
    run = {
        "step": "score-files",
        "run_id": result.run_id,
        "run_directory": result.run_directory,
    }
    assert started.payload == {**run, "kind": "file", "mini_batches": 5, "items": 5, "base": None}
    data = tmp_path / "data"
    assert first.payload == {
        **run,
        "mini_batch": 0,
        "part": None,
        "items": [str(data / "bad1")],
        "items_failed": 1,
        "attempt": 1,
        "outcome": "failed",
        "error": {
            "category": "exception",
            "type": "ValueError",
            "message": "no good: bad1",
            "where": "score.py:8 in run",
            "stage": "run",
        },
        "node": "node000",
        "process": "process000",
        "log_file": first.payload["log_file"],
        "not_told": 0,
    }
    assert first.payload["log_file"].startswith(result.logs_directory)
    assert near.payload == {**run, "threshold": "error_threshold", "failed": 4, "tolerated": 5}
    elapsed_s = completed.payload.pop("elapsed_s")
    assert 0 < elapsed_s < 60
    assert completed.payload == {
        **run,
        "state": "Completed with 4 failed items",
        "mini_batches": {"total": 5, "succeeded": 1, "failed": 4, "reused": 0},
        "items": {"total": 5, "succeeded": 1, "failed": 4, "reused": 0},
        "attempts": 5,
        "rows": 1,
        "reused": False,
        "output": result.output,
        "append_row_file": result.append_row_file,
        "report": result.report,
    }


@pytest.mark.slow
def test_a_run_within_a_dask_worker_tells_the_same(here, tmp_path):
    """With prefect-dask's task runner the worker that has the step emits them, also related (R240)."""
    step = make_step(tmp_path, ["good1", "good2"], name="score-within-dask")
    cluster = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}

    @flow(task_runner=DaskTaskRunner(cluster_kwargs=cluster))
    def score():
        return step.submit().result()

    state = score(return_state=True)
    flow_run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    found = events_of(flow_run, until="parallelrun.run.completed", role="flow-run")
    assert [one.event for one in found] == ["parallelrun.run.started", "parallelrun.run.completed"]
    assert {related.role for related in found[0].related} == {"flow-run", "flow"}


def test_a_run_outside_of_a_flow_tells_that_it_failed(here, tmp_path):
    """Without a flow there is the task run alone, and the same events (R240)."""
    step = make_step(tmp_path, ["bad1", "fine"], name="score-alone", error_threshold=0)
    with pytest.raises(ErrorThresholdExceeded) as raised:
        step()
    ended = _newest("parallelrun.run.failed", run_id=raised.value.run_id)

    assert ended.resource.name == "score-alone"
    assert ended.related == []
    payload = ended.payload
    assert payload["state"] == "Failed"
    assert payload["items"]["failed"] >= 1
    assert "error_threshold=0" in payload["failure"]
    assert len(payload["failure"]) <= 1000
    assert payload["errors"][0]["type"] == "ValueError"
    assert payload["errors"][0]["first_mini_batch"] == 0


@pytest.mark.timed
def test_an_automation_cancels_the_flow_run_of_a_run_that_fails_too_often(here, tmp_path):
    """Three mini-batches that fail within a minute cancel the flow run, and with it the run."""
    names = ["bad1", "bad2", "bad3", "slow"]
    step = make_step(tmp_path, names, name="score-watched", error_threshold=-1)
    automation = Automation(
        name="too many failures",
        trigger=EventTrigger(
            expect={"parallelrun.mini-batch.failed"},
            match={"prefect.resource.name": "score-watched"},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=3,
            within=timedelta(seconds=60),
        ),
        actions=[CancelFlowRun()],
    ).create()
    try:

        @flow
        def score():
            return step(return_state=True)

        began = time.monotonic()
        state = score(return_state=True)
        took_s = time.monotonic() - began
    finally:
        automation.delete()

    assert took_s < 25, "took longer"  # the slow one would have gone on for longer
    flow_run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    found = events_of(flow_run, until="parallelrun.run.cancelled", role="flow-run")
    assert found[-1].event == "parallelrun.run.cancelled"
    assert found[-1].payload["state"] == "Cancelled"
    assert "was cancelled" in found[-1].payload["failure"]
    for thread in threading.enumerate():
        if thread.name == "parallelrun-events":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def _newest(name, *, run_id):
    wanted = EventFilter(event=EventNameFilter(name=[name]))
    deadline = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            for one in client.read_events(wanted, limit=50).events:
                if one.payload["run_id"] == run_id:
                    return one
            time.sleep(0.1)
    raise TimeoutError(name)
