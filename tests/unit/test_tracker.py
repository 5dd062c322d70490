"""The fate of mini-batches, without a cluster, processes or a clock."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import MiniBatch, Outcome

LIMITS = policy.Limits(
    max_attempts=3,
    error_threshold=None,
    allowed_failed_count=None,
    allowed_failed_percent=None,
    rows_wanted=True,
)


def plan(count: int, items: int = 2) -> list[MiniBatch]:
    return [
        MiniBatch(i, 0, items, 10, {"files": [f"/in/{i}-{k}.png" for k in range(items)]})
        for i in range(count)
    ]


def success(position: int, items: int = 2, rows: int = 2, process: str = "process000") -> tuple:
    return (
        {
            "position": position,
            "process": process,
            "outcome": "succeeded",
            "items": items,
            "rows": rows,
            "started_at": 1.0,
            "elapsed_s": 0.001,
            "cpu_s": 0.001,
            "run_s": 0.001,
        },
        b"row\n" * rows,
    )


def failure(position: int, process: str = "process000", items: int = 2) -> tuple:
    return (
        {
            "position": position,
            "process": process,
            "outcome": "failed",
            "items": items,
            "error": {
                "category": "exception",
                "type": "ValueError",
                "message": "bad pixel",
                "where": "score.py:3 in run",
                "traceback": "…",
                "stage": "run",
            },
        },
        b"",
    )


def test_a_plan_without_mini_batches_is_done_at_once():
    """An empty input completes: no node is needed to see it."""
    assert Tracker([], LIMITS).done


def test_a_failed_attempt_is_tried_again_elsewhere_up_to_run_max_try():
    """R38: three attempts, each avoiding the processes of the earlier ones; then failed for good."""
    tracker = Tracker(plan(1), LIMITS)
    tracker.node_joined("node000", 2)
    seen = []

    for process in ("process000", "process001", "process000"):
        [bundle] = tracker.next_bundles()
        seen.append((bundle.members[0].attempt, bundle.avoid))
        [settled] = tracker.bundle_ended(bundle.number, [failure(0, process)])

    assert seen == [(1, []), (2, ["process000"]), (3, ["process000", "process001"])]
    assert settled.record.final
    assert settled.record.items_failed == 2
    assert settled.record.items_sample == ("/in/0-0.png", "/in/0-1.png")
    assert tracker.done
    assert (tracker.attempts, tracker.retries) == (3, 2)
    assert tracker.mini_batches_failed == 1


def test_a_retry_goes_to_another_node_where_there_is_one():
    """A node may be what is wrong."""
    tracker = Tracker(plan(1), LIMITS)
    tracker.node_joined("node000", 1)
    tracker.node_joined("node001", 1)

    [first] = tracker.next_bundles()
    tracker.bundle_ended(first.number, [failure(0)])
    [second] = tracker.next_bundles()

    assert {first.node, second.node} == {"node000", "node001"}


def test_missing_rows_are_failed_items_of_a_mini_batch_that_succeeded():
    """R16: fewer elements than items: the gap has failed, the mini-batch is not retried."""
    tracker = Tracker(plan(1, items=5), LIMITS)
    tracker.node_joined("node000", 1)

    [bundle] = tracker.next_bundles()
    [settled] = tracker.bundle_ended(bundle.number, [success(0, items=5, rows=3)])

    assert settled.record.outcome is Outcome.SUCCEEDED
    assert (settled.record.items_succeeded, settled.record.items_failed) == (3, 2)
    assert tracker.done


def test_more_rows_than_items_count_as_all_done_and_are_noted():
    """R16: more elements than items: all done; the first such mini-batch is named for the warning."""
    tracker = Tracker(plan(1), LIMITS)
    tracker.node_joined("node000", 1)

    [bundle] = tracker.next_bundles()
    [settled] = tracker.bundle_ended(bundle.number, [success(0, rows=7)])

    assert (settled.record.items_succeeded, settled.record.rows) == (2, 7)
    assert tracker.overlong is not None
    assert tracker.overlong.index == 0


def test_what_was_not_started_in_a_bundle_runs_again_at_no_cost():
    """R207: the neighbours of a mini-batch whose process died keep their attempt number."""
    tracker = Tracker(plan(40), LIMITS)
    tracker.node_joined("node000", 1)
    for bundle in tracker.next_bundles():  # one each, to learn that they are quick
        tracker.bundle_ended(bundle.number, [success(0)])
    first, *others = tracker.next_bundles()
    assert len(first.members) >= 3

    tracker.bundle_ended(first.number, [success(0), failure(1)])
    for bundle in others:
        tracker.bundle_ended(bundle.number, [success(k) for k in range(len(bundle.members))])
    again = {m.mini_batch.index: m.attempt for b in tracker.next_bundles() for m in b.members}

    assert again[first.members[1].mini_batch.index] == 2
    assert all(again[m.mini_batch.index] == 1 for m in first.members[2:])


def test_a_lost_node_costs_no_attempt_and_its_mini_batches_run_alone_elsewhere():
    """R86: what was in flight runs again with the same attempt number, one to a bundle."""
    tracker = Tracker(plan(4), LIMITS)
    tracker.node_joined("node000", 2)
    for bundle in tracker.next_bundles():
        tracker.bundle_started(bundle.number)

    assert tracker.node_left("node000") == []
    tracker.node_joined("node001", 2)
    again = tracker.next_bundles()

    assert [len(b.members) for b in again] == [1] * 4
    assert all(b.members[0].attempt == 1 for b in again)


def test_a_mini_batch_that_was_running_on_three_lost_nodes_has_failed():
    """It takes its nodes down, so it is not tried for ever."""
    tracker = Tracker(plan(1), LIMITS)
    for k in range(3):
        tracker.node_joined(f"node{k:03d}", 1)
        [bundle] = tracker.next_bundles()
        tracker.bundle_started(bundle.number)
        settled = tracker.node_left(f"node{k:03d}")

    assert [s.record.outcome for s in settled] == [Outcome.NODE_LOST]
    assert tracker.done
    assert tracker.items_failed == 2


def test_a_result_of_a_node_thought_lost_changes_nothing():
    """A result counts once: its mini-batch has been given to another node."""
    tracker = Tracker(plan(1), LIMITS)
    tracker.node_joined("node000", 1)
    [old] = tracker.next_bundles()
    tracker.node_left("node000")
    tracker.node_joined("node001", 1)
    [new] = tracker.next_bundles()

    assert tracker.bundle_ended(old.number, [success(0)]) == []
    assert len(tracker.bundle_ended(new.number, [success(0)])) == 1
    assert tracker.mini_batches_succeeded == 1


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_order_of_events_settles_every_mini_batch_exactly_once(data):
    """R38, R200: whatever happens, one final record each, and never more attempts than allowed."""
    count = data.draw(st.integers(0, 20))
    tracker = Tracker(iter(plan(count)), LIMITS)
    final: Counter[int] = Counter()
    attempts: Counter[int] = Counter()
    flying: list[Bundle] = []
    nodes, named = [], 0

    def settle(settled):
        for one in settled:
            final[one.record.mini_batch] += one.record.final
            attempts[one.record.mini_batch] += one.record.outcome != Outcome.NODE_LOST

    for _ in range(600):
        if tracker.done:
            break
        if not nodes or data.draw(st.integers(0, 9)) == 0:
            nodes.append(f"node{named:03d}")
            tracker.node_joined(nodes[-1], data.draw(st.integers(1, 3)))
            named += 1
        flying += tracker.next_bundles()
        if len(nodes) > 1 and data.draw(st.integers(0, 9)) == 0:
            settle(tracker.node_left(nodes.pop(0)))
        if not flying:
            continue
        bundle = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        if data.draw(st.booleans()):
            tracker.bundle_started(bundle.number)
        results = [
            success(place) if data.draw(st.booleans()) else failure(place)
            for place in range(data.draw(st.integers(0, len(bundle.members))))
        ]
        if results:
            settle(tracker.bundle_ended(bundle.number, results))
        else:
            tracker.bundle_returned(bundle.number)

    if tracker.done:
        assert final == Counter(range(count))
        assert tracker.mini_batches_succeeded + tracker.mini_batches_failed == count
    assert all(n <= 1 for n in final.values())
    assert all(n <= LIMITS.max_attempts for n in attempts.values())
