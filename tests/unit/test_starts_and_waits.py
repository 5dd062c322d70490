"""When a run gives up waiting: decisions from events and times alone."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import Bundle, Pending
from prefect_parallelrun.driver.schedule import _to_run
from prefect_parallelrun.driver.starts import Starts
from prefect_parallelrun.driver.waits import REST_S, Waits
from prefect_parallelrun.errors import ClusterError, InitFailed, NoProgress
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.options import RunOptions

SETTINGS: Any = {
    "load_timeout_s": 10.0,
    "run_timeout_s": 5.0,
    "kill_grace_s": 1.0,
    "init_timeout_s": 4.0,
}
LONGEST_S = 2 * (10 + 10 + 10 + 5 + 1 + 4) + REST_S
"""Of two attempts with those time-outs."""


def starts(**nodes: int) -> Starts:
    made = Starts("score.py", node_count=len(nodes), limit_s=30.0)
    for node, processes in nodes.items():
        made.node_joined(node, processes)
    return made


def failed(node: str, process: str, category: str = "exception") -> Any:
    error = {"category": category, "stage": "init", "where": "score.py:3 in init"}
    return {"name": "start_failed", "node": node, "process": process, "error": error}


def event(name: str, node: str, process: str) -> Any:
    return {"name": name, "node": node, "process": process}


def test_only_when_every_process_was_stuck_is_there_no_progress():
    """R90: over all nodes; not after three times the limit."""
    made = starts(node000=1, node001=2)
    for node, process in (("node000", "process000"), ("node001", "process000")):
        made.heard(failed(node, process, "timeout"), 0.0)
    assert made.verdict(60) is None

    made.heard(failed("node001", "process001", "timeout"), 0.0)
    verdict = made.verdict(60)
    assert isinstance(verdict, NoProgress)
    assert "One of them hung at score.py:3 in init" in str(verdict)


def test_a_process_that_is_ready_is_progress_whatever_the_others_do():
    """R90: others may hang one after the other beside it; once it has ended, only those since count."""
    made = starts(node000=2)
    made.heard(event("process_ready", "node000", "process000"), 0.0)
    for number in range(1, 5):
        made.heard(failed("node000", f"process{number:03d}", "timeout"), 0.0)
    assert made.verdict(1e6) is None

    made.heard(event("process_ended", "node000", "process000"), 0.0)
    assert isinstance(made.verdict(1e6), NoProgress)
    made.heard(event("process_ready", "node000", "process009"), 0.0)
    made.heard(event("process_ended", "node000", "process009"), 0.0)
    assert made.verdict(1e6) is None


def test_a_node_that_left_takes_its_ready_processes_along():
    """R90: what was ready on a node that is lost is ready no more."""
    made = starts(node000=1, node001=1)
    made.heard(event("process_ready", "node000", "process000"), 0.0)
    made.heard(failed("node001", "process000", "timeout"), 0.0)
    assert made.verdict(60) is None
    made.node_left("node000")
    assert isinstance(made.verdict(60), NoProgress)


@pytest.mark.parametrize(
    ("failures", "age_s", "ends"),
    [(3, 1e6, False), (4, policy.STARTUP_S, False), (4, policy.STARTUP_S + 1, True)],
)
def test_an_old_run_without_any_successful_start_fails(failures, age_s, ends):
    """R89: twice as many failures as processes are wanted, and older than two minutes."""
    made = starts(node000=2)
    for number in range(failures):
        made.heard(failed("node000", f"process{number:03d}"), 0.0)
    assert isinstance(made.verdict(age_s), InitFailed) is ends


def test_starts_are_to_blame_for_no_node_only_where_one_gave_up():
    """R89: failed starts that were followed by others explain nothing."""
    made = starts(node000=1)
    made.heard(failed("node000", "process000"), 0.0)
    assert made.given_up() is None
    made.heard(event("gave_up", "node000", ""), 0.0)
    assert "init() failed, 1 times" in str(made.given_up())


def waits(**options: Any) -> Waits:
    return Waits(RunOptions(**options), SETTINGS, max_attempts=2, now=0.0)


def bundle(number: int, node: str, *indices: int) -> Bundle:
    members = [
        Pending(MiniBatch(index, 0, 1, 1, {"files": [f"/{index}.txt"]}), 2) for index in indices
    ]
    return Bundle(number=number, node=node, members=members)


def test_without_a_node_the_first_task_creation_timeout_counts_from_the_last_one():
    """R86, R105: at the start, and each time that all nodes are gone."""
    made = waits(first_task_creation_timeout=100)
    assert made.verdict(100) is None
    assert isinstance(made.verdict(101), ClusterError)
    made.node_joined("node000", 90)
    made.node_joined("node001", 91)
    made.node_left("node000", 95)
    made.node_left("node001", 150)
    assert made.verdict(250) is None
    assert "--first_task_creation_timeout 100" in str(made.verdict(251))


def test_a_progress_limit_that_was_asked_for_counts_from_the_last_mini_batch_done():
    """R105: nothing else is progress: no node, no bundle, no attempt."""
    made = waits(progress_update_timeout=20)
    made.node_joined("node000", 5)
    made.submitted(bundle(1, "node000", 7, 8), 6)
    made.begun(1, 7)
    assert made.verdict(20) is None
    text = str(made.verdict(21))
    assert "No progress update in 21 seconds (--progress_update_timeout 20)" in text
    assert "node000 had 2 mini-batches and was at mini-batch 7 (/7.txt) for 14 seconds" in text
    made.done(19)
    assert made.verdict(39) is None


def test_without_one_the_limit_is_what_the_longest_mini_batch_may_take():
    """R205: every attempt timing out, with a start before each; not while there is no node."""
    made = waits()
    assert made.verdict(599) is None
    made.node_joined("node000", 500)
    assert made.verdict(500 + LONGEST_S) is None
    assert isinstance(made.verdict(501 + LONGEST_S), NoProgress)


def test_a_node_that_gets_on_with_its_side_inputs_is_waited_for():
    """R205: what a node tells of its fetching puts off the limit for there being no node, and only that."""
    made = waits()
    made.node_fetches(500)
    assert made.verdict(1099) is None
    assert isinstance(made.verdict(1101), ClusterError)
    made.node_joined("node000", 1099)
    made.node_fetches(1100)
    made.node_left("node000", 1105)
    assert made.verdict(1704) is None
    assert isinstance(made.verdict(1706), ClusterError)


def test_what_is_done_is_left_out_of_the_plan_lazily():
    """R201: both are ascending; what is done may name mini-batches that the plan has no more."""
    plan = iter([MiniBatch(index, 0, 1, 1, {}) for index in range(6)])
    left = _to_run(plan, iter([0, 2, 3, 9]))
    assert next(left).index == 1
    assert next(plan).index == 2  # nothing was read ahead
    assert [mini_batch.index for mini_batch in left] == [4, 5]
