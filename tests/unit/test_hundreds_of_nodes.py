"""What hundreds of nodes and millions of mini-batches cost the driver, counted and not timed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import MiniBatch

LIMITS = policy.Limits(
    max_attempts=3,
    error_threshold=-1,
    allowed_failed_count=None,
    allowed_failed_percent=None,
    rows_wanted=True,
)


def plan(count: int) -> Iterator[MiniBatch]:
    return (MiniBatch(rank, -1, 1, 0, {"rank": rank}) for rank in range(count))


def ended(elapsed_s: float) -> tuple:
    result = {
        "position": 0,
        "process": "process000",
        "outcome": "succeeded",
        "items": 1,
        "rows": 1,
        "elapsed_s": elapsed_s,
    }
    return result, b"row\n"


def steps(work: Callable[[], object]) -> int:
    """Return how many calls, of C functions too, some work takes."""
    count = 0

    def note(_frame, event, _what):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("waits", [0, 10_000], ids=["nothing is left", "much is left"])
def test_what_a_bundle_costs_does_not_grow_with_the_nodes(waits):
    """Where one ends and the next goes out, the other nodes are not looked at; at the end neither."""

    def one_more(nodes: int) -> int:
        tracker = Tracker(plan(2 * 4 * nodes + waits), LIMITS)
        for node in range(nodes):
            tracker.node_joined(f"node{node:03d}", 4)
        first, second, *_ = tracker.next_bundles()

        def end(bundle):
            tracker.bundle_ended(bundle.number, [ended(1.0)])
            assert len(tracker.next_bundles()) == bool(waits)
            assert not tracker.done

        end(first)  # from now on it is known what one takes, and the plan is looked ahead in
        return steps(lambda: end(second))

    assert one_more(500) < one_more(5) + 20


def test_the_plan_is_held_in_memory_only_so_far_as_the_end_needs():
    """With 4,000 processes as with 4: what is not in flight is mostly still to be made (R216)."""
    tracker = Tracker(plan(1_000_000), LIMITS)
    for node in range(500):
        tracker.node_joined(f"node{node:03d}", 8)
    bundles = tracker.next_bundles()
    tracker.bundle_ended(bundles[0].number, [ended(1.0)])
    tracker.next_bundles()
    assert tracker.planned <= 2 * 4_000 + 1 + policy.AHEAD_MOST


def test_of_many_nodes_the_one_with_the_most_room_gets_the_next_bundle():
    """Those that joined late, and larger ones, are filled alike: none idles while another's queue is long."""
    tracker = Tracker(plan(10_000), LIMITS)
    processes = {f"node{node:03d}": 1 + node % 4 for node in range(100)}
    for node, many in processes.items():
        tracker.node_joined(node, many)
    bundles = tracker.next_bundles()
    assert Counter(bundle.node for bundle in bundles) == {n: 2 * p for n, p in processes.items()}
    # Each of the first round goes to a node that has nothing yet.
    assert [bundle.node for bundle in bundles[:100]] == list(processes)
    for bundle in bundles:
        if bundle.node in ("node003", "node050"):
            tracker.bundle_ended(bundle.number, [ended(1.0)])
    tracker.node_joined("late", 2)
    again = [bundle.node for bundle in tracker.next_bundles()]
    assert again[:3] == ["node003", "node050", "late"]
    assert Counter(again) == {"node003": 8, "node050": 6, "late": 4}


def test_a_window_that_widens_is_filled_on_every_node():
    """Once it is known how quick they are, also where nothing has come back yet."""
    tracker = Tracker(plan(10_000), LIMITS)
    for node in range(10):
        tracker.node_joined(f"node{node:03d}", 2)
    first, *_ = tracker.next_bundles()
    tracker.bundle_ended(first.number, [ended(0.5)])

    more = policy.window(0.5) - policy.window(None)
    assert more > 0
    sent = Counter(bundle.node for bundle in tracker.next_bundles())
    assert sent - Counter([first.node]) == {f"node{node:03d}": 2 * more for node in range(10)}


def test_what_is_left_is_spread_over_the_processes_that_are_left():
    """A large node that is gone counts no more: else the bundles would stay small for nothing."""
    tracker = Tracker(plan(60), LIMITS)
    tracker.node_joined("small", 1)
    first, _ = tracker.next_bundles()
    tracker.node_joined("large", 100)
    tracker.node_left("large", expected=True)
    tracker.bundle_ended(first.number, [ended(0.01)])

    assert len(tracker.next_bundles()[0].members) == 4


def test_a_node_that_joins_late_gets_the_next_bundles():
    """Before those that have something to do, whoever was there first."""
    tracker = Tracker(plan(100), LIMITS)
    tracker.node_joined("first", 2)
    one, *_ = tracker.next_bundles()
    tracker.bundle_ended(one.number, [ended(1.0)])
    tracker.node_joined("late", 2)

    sent = [bundle.node for bundle in tracker.next_bundles()]
    assert sent == ["late", "late", "late", "first", "late"]
