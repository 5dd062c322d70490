"""What is said of the nodes of a run, and how its figures come about: from events and times alone."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.driver.bundle import Bundle, Pending
from prefect_parallelrun.driver.outlook import WAITING, Outlook
from prefect_parallelrun.driver.starts import Starts
from prefect_parallelrun.driver.waits import NODES_SHOWN, Waits
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.options import RunOptions

SETTINGS: Any = {
    "load_timeout_s": 10.0,
    "run_timeout_s": 5.0,
    "kill_grace_s": 1.0,
    "init_timeout_s": 4.0,
}


class Run:
    """A schedule's parts, without a schedule."""

    def __init__(self) -> None:
        self.tracker: Any = SimpleNamespace(
            planned=0,
            mini_batches_succeeded=0,
            mini_batches_failed=0,
            retries=0,
            rows=0,
            items_succeeded=0,
            items_failed=0,
        )
        self.starts = Starts("score.py", node_count=2, limit_s=30.0)
        self.waits = Waits(RunOptions(), SETTINGS, max_attempts=3, now=0.0)
        self.outlook = Outlook(self.tracker, self.starts, self.waits, began=0.0)

    def joined(self, node, processes):
        self.starts.node_joined(node, processes)
        self.waits.node_joined(node, 0.0)

    def heard(self, name, node, process, now):
        self.starts.heard({"name": name, "node": node, "process": process}, now)

    def submits(self, number, node, indices, now=0.0):
        members = [Pending(MiniBatch(index, 0, 1, 1, {"files": ["a"]})) for index in indices]
        self.waits.submitted(Bundle(number=number, node=node, members=members), now)

    def runs(self, number, node, indices, now):
        self.submits(number, node, indices, now)
        self.waits.begun(number, now)

    def standing(self, now, planned=100, joining=()):
        return self.outlook.standing(now, planned=planned, joining=joining)


def test_what_the_processes_of_a_node_are_at_is_said_with_since_when():
    """R54: in init() for how long and since which time of day, ready, running which mini-batch."""
    run = Run()
    run.joined("node000", 4)
    for process in ("process000", "process001", "process002", "process003"):
        run.heard("process_started", "node000", process, 10.0)
    for process in ("process002", "process003"):
        run.heard("process_ready", "node000", process, 20.0)
    run.runs(1, "node000", [17], 21.0)
    (said,) = run.standing(61.0).doing
    assert re.fullmatch(
        r"node000: 2 processes in import or init\(\) for 51 s \(since \d\d:\d\d:\d\d UTC\), "
        r"1 ready, 1 running mini-batch 17 for 40 s",
        said,
    )


def test_of_many_mini_batches_at_once_the_oldest_is_named():
    """R54: that is the one that may be stuck; of a bundle its first."""
    run = Run()
    run.joined("node000", 2)
    for process in ("process000", "process001"):
        run.heard("process_ready", "node000", process, 1.0)
    run.runs(1, "node000", [5, 6, 7], 2.0)
    run.runs(2, "node000", [8], 9.0)
    assert run.standing(12.0).doing == ("node000: 2 running mini-batch 5 and 2 more for 10 s",)


def test_what_waits_on_a_node_does_not_run():
    """R54: of a bundle one mini-batch runs, of a bundle that no process has begun none."""
    run = Run()
    run.joined("node000", 2)
    for process in ("process000", "process001"):
        run.heard("process_ready", "node000", process, 1.0)
    run.submits(1, "node000", [9, 10, 11, 12])
    assert run.standing(2.0).running == 0
    run.runs(2, "node000", [5, 6, 7], 2.0)
    run.runs(3, "node000", [8], 2.0)
    assert run.standing(3.0).running == 2
    run.waits.begun(1, 4.0)  # heard before the end of the one that its process had
    assert run.standing(4.0).running == 2
    run.waits.ended(2)
    run.waits.ended(3)
    assert run.standing(5.0).running == 1


def test_a_process_that_died_is_not_counted_any_more():
    """R54: neither as one that starts nor as one that is ready."""
    run = Run()
    run.joined("node000", 1)
    run.heard("process_started", "node000", "process000", 1.0)
    run.heard("process_ended", "node000", "process000", 2.0)
    assert run.standing(3.0).doing == ("node000: 0 ready",)


def test_without_a_node_it_is_said_what_is_waited_for():
    """R54: a Dask worker, or nodes that are being started and what they fetch."""
    run = Run()
    assert run.standing(1.0).doing == (WAITING,)
    run.outlook.node_fetches("node001", "fetches side inputs: 3 of 9 files", 0.0)
    assert run.standing(1.0, joining=["node000", "node001"]).doing == (
        "node000: is being started",
        "node001: fetches side inputs: 3 of 9 files",
    )
    run.outlook.node_known("node001")
    assert run.standing(1.0, joining=["node001"]).doing == ("node001: is being started",)


def test_a_long_build_makes_no_long_log():
    """It is logged when it begins, when it becomes another thing, and else at doubling intervals."""
    run = Run()
    build, fetch = (
        "builds environment 'scoring': Collecting p{}",
        "fetches side input /a: 9 files, {} MB",
    )

    def logged(node, told, times):
        return [at for at in times if run.outlook.node_fetches(node, told.format(at), at)]

    assert logged("node000", build, range(100, 3700, 2)) == [
        100, 106, 112, 124, 148, 196, 292, 484, 868, 1468, 2068, 2668, 3268,
    ]  # fmt: skip
    assert run.standing(3700.0, joining=["node000"]).doing == (
        "node000: builds environment 'scoring': Collecting p3698",
    )
    assert logged("node000", fetch, range(3700, 3712, 2)) == [3700, 3706]
    assert logged("node001", build, range(3700, 3712, 2)) == [3700, 3706]
    run.outlook.node_known("node000")
    assert logged("node000", fetch, [3712]) == [3712]  # it was lost, and begins again


def test_of_many_nodes_only_the_first_are_described():
    """A line of a log has an end."""
    run = Run()
    for number in range(300):
        run.joined(f"node{number:03d}", 1)
    doing = run.standing(1.0, joining=[f"node{n}" for n in range(400, 420)]).doing
    assert len(doing) == 2 * (NODES_SHOWN + 1)
    assert doing[NODES_SHOWN] == "and 295 nodes more"


def test_the_time_left_is_at_the_rate_since_the_first_mini_batch_began():
    """R54: import and init() are over; None as long as nobody can tell."""
    run = Run()
    run.joined("node000", 1)
    assert run.outlook.bundle_started(600.0)
    assert not run.outlook.bundle_started(601.0)
    assert run.standing(602.0).left_s is None
    run.tracker.mini_batches_succeeded, run.tracker.mini_batches_failed = 19, 1
    standing = run.standing(610.0)
    assert (standing.rate, standing.left_s, standing.elapsed_s) == (2.0, 40.0, 610.0)
    assert run.standing(610.0, planned=None).left_s is None
    run.tracker.mini_batches_succeeded = 99
    assert run.standing(620.0).left_s == 0.0


def test_what_earlier_sittings_did_is_no_part_of_the_rate():
    """R54: else a resumed run would seem to be over in a moment."""
    run = Run()
    run.tracker.mini_batches_succeeded = 90
    outlook = Outlook(run.tracker, run.starts, run.waits, began=0.0)
    outlook.bundle_started(0.0)
    run.tracker.mini_batches_succeeded = 92
    standing = outlook.standing(10.0, planned=100, joining=())
    assert (standing.rate, standing.left_s) == (0.2, 40.0)
