"""A flow run that is cancelled, of a served flow and of one that a worker runs (R201)."""

from __future__ import annotations

import re
import shutil
import time

import pytest
from deployments import FILES, Project, wait_until
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

GONE_S = 5.0
"""So soon after it is cancelled nothing of a run may be left."""

pytestmark = [
    pytest.mark.timed,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("here"),
]


def cancel_by_api(run):
    """Cancel a flow run as Prefect's pages do."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling(message="as the pages do"))


def cancel_by_cli(run):
    """Cancel a flow run on the command line."""
    run.project.prefect("flow-run", "cancel", str(run.id))


def stopped_and_gone_on_with(project, deployment, cancels):
    """Cancel a run of each flow, look at what is left of it, and run each once more, to its end.

    Args:
        cancels: how the run of each flow is cancelled.
    """
    shutil.rmtree(project.slow, ignore_errors=True)
    project.slow.mkdir()
    runs = {flow: project.run(f"{flow}/{deployment}", flow) for flow in cancels}
    for run in runs.values():
        run.stuck()
    took, ended = {}, {}
    for flow, run in runs.items():
        cancels[flow](run)
        sent = time.monotonic()
        wait_until(lambda run=run: not run.left(), 30, project.said)
        took[flow] = round(time.monotonic() - sent, 1)
        ended[flow] = run.ended().name
    print(f"{deployment}: gone after {took} s")

    assert max(took.values()) < GONE_S, f"took longer: {took}\n{project.said()}"
    assert set(ended.values()) == {"Cancelled"}, ended
    for flow, run in runs.items():
        if flow == "dask":
            continue  # on a busy machine its Dask worker may be killed, after 4 s, before its last word
        assert run.record.state == "Cancelled", project.said()
        wait_until(lambda run=run: task_states(run) == ["Cancelled"], 15, project.said)

    project.slow.rename(project.folder / f"slow-{deployment}")
    again = {flow: project.run(f"{flow}/{deployment}", flow) for flow in cancels}
    for flow, run in again.items():
        assert run.ended().is_completed(), project.said()
        output = project.folder / "out" / flow / "parallel_run_step.txt"
        assert output.read_text().split() == list(FILES)
        assert re.search(r"resumed: [12] mini-batches are done", run.paths.driver_log.read_text())


def task_states(run):
    return [one.state_name for one in run.task_runs()]


def test_a_served_flow_is_cancelled(served):
    """From the click, or the command, every process is gone in 5 seconds; the run is Cancelled and kept.

    Whether the flow calls the step, or submits it to threads or to Dask.
    """
    stopped_and_gone_on_with(
        served,
        "served",
        {"direct": cancel_by_api, "thread": cancel_by_cli, "dask": cancel_by_api},
    )


def test_a_flow_of_a_worker_is_cancelled(server, tmp_path):
    """The same where `prefect worker start` runs it, which signals all processes of the flow run."""
    project = Project(tmp_path, server)
    try:
        project.work("direct", "dask")
        stopped_and_gone_on_with(
            project, "worked", {"direct": cancel_by_api, "dask": cancel_by_api}
        )
    finally:
        project.end()


def test_without_websockets(server, tmp_path):
    """Where the runner has to ask whether a run is cancelled, the step asks more often, and is gone as soon.

    It lets the runner find the flow's process, so that the flow run still ends as Cancelled.
    """
    project = Project(tmp_path, server)
    try:
        project.serve("polled", PREFECT_RUNNER_POLL_FREQUENCY="6")
        stopped_and_gone_on_with(
            project, "polled", {"direct": cancel_by_api, "thread": cancel_by_api}
        )
    finally:
        project.end()
