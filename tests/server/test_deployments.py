"""Deployed flows with other parameters, from Prefect's pages and its command line (R39)."""

from __future__ import annotations

import json
import re
from uuid import UUID

import pytest
from deployments import FILES, Started


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("here")
def test_a_deployment_takes_other_parameters(served):
    """What a flow run of a deployment is given stands in place of each PipelineParameter (R39).

    A value that cannot be used fails the flow, which says which parameter it is, and no task is run.
    """
    more = served.folder / "more"
    more.mkdir()
    for letter in "xyz":
        (more / f"{letter}.txt").touch()
    chosen = {"name": "from-cli", "size": 3, "data": {"files": str(more / "[xy].txt")}}
    words = [
        word for name, value in chosen.items() for word in ("-p", f"{name}={json.dumps(value)}")
    ]

    default = served.run("score/served", "by-default", name="by-default")
    other = served.run("score/served", "by-pages", name="by-pages", size=4, data=str(more))
    wrong = served.run("score/served", "wrong-tries", name="wrong-tries", tries=0)
    said = served.prefect("deployment", "run", "score/served", *words)
    from_cli = Started(
        UUID(re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)[0]), "from-cli", served
    )

    for run, mini_batches, rows in ((default, 3, FILES), (other, 1, "xyz"), (from_cli, 1, "xy")):
        assert run.ended().is_completed(), served.said()
        assert (
            served.folder / "out" / run.name / "parallel_run_step.txt"
        ).read_text().split() == list(rows)
        assert run.record.mini_batches == mini_batches
    state = wrong.ended()
    assert state.is_failed()
    assert "run_max_try=0 cannot be used: it must be a whole number, 1 or more" in state.message
    assert "(run_max_try is the flow's parameter 'tries')" in state.message
    assert not wrong.task_runs()
    assert not (served.folder / "runs" / "wrong-tries").exists()
