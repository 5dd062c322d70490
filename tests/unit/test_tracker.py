"""The fate of mini-batches, without a cluster, processes or a clock."""

from __future__ import annotations

import dataclasses
import time

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import UNKNOWN_S, Earlier, MiniBatch, Outcome

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


def failure(
    position: int,
    process: str = "process000",
    items: int = 2,
    category: str = "exception",
    where: str = "score.py:3 in run",
) -> tuple:
    return (
        {
            "position": position,
            "process": process,
            "outcome": "failed",
            "items": items,
            "error": {
                "category": category,
                "type": "ValueError",
                "message": "bad pixel",
                "where": where,
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


def test_bundles_are_small_where_their_data_takes_long_to_come():
    """R231: with quick calls and slow fetching, a bundle holds what is fetched in half a second."""
    tracker = Tracker(plan(10_000), LIMITS)
    tracker.node_joined("node000", 2)
    largest = 0
    for _ in range(30):
        for bundle in tracker.next_bundles():
            largest = max(largest, len(bundle.members))
            tracker.bundle_fetched(bundle.number, 0.1 * len(bundle.members))
            tracker.bundle_ended(
                bundle.number, [success(place) for place in range(len(bundle.members))]
            )
    assert 2 <= largest <= policy.BUNDLE_S / 0.1


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
    assert settled[0].record.cpu_s == UNKNOWN_S  # the job report has no figure of it
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


def drain(tracker: Tracker, bundles) -> list:
    """End bundles well, and return what goes out upon it."""
    for bundle in bundles:
        tracker.bundle_ended(bundle.number, [success(k) for k in range(len(bundle.members))])
    return tracker.next_bundles()


def test_a_node_that_was_expected_to_leave_casts_no_suspicion():
    """R214: retired or preempted however often: no attempt, no loss, no failure."""
    tracker = Tracker(plan(1), LIMITS)
    for k in range(3 * policy.MAX_NEAR_LOST):
        tracker.node_joined(f"node{k:03d}", 1)
        [bundle] = tracker.next_bundles()
        tracker.bundle_started(bundle.number)
        assert tracker.node_left(f"node{k:03d}", expected=True) == []

    tracker.node_joined("node999", 1)
    [bundle] = tracker.next_bundles()
    [member] = bundle.members

    assert (member.attempt, member.lost, member.near_lost, bundle.alone) == (1, 0, 0, False)


def test_the_news_of_a_start_may_be_lost_with_the_node_and_the_run_ends_all_the_same():
    """R205: what was in flight on ten lost nodes has failed too, the last of them on its own."""
    tracker = Tracker(plan(3), LIMITS)
    alone, settled = [], []
    for k in range(policy.MAX_NEAR_LOST + 5):
        tracker.node_joined(f"node{k:03d}", 3)
        alone.append([bundle.alone for bundle in tracker.next_bundles()])
        settled += tracker.node_left(f"node{k:03d}")
        if tracker.done:
            break

    assert alone[:9] == [[False] * 3] * 9
    assert alone[9:] == [[True]] * 3
    assert [one.record.outcome for one in settled] == [Outcome.NODE_LOST] * 3


def test_what_was_running_on_two_lost_nodes_runs_alone():
    """Design 4.3: so that an innocent neighbour does not take the blame for the third."""
    tracker = Tracker(plan(2), LIMITS)
    for k in range(2):
        tracker.node_joined(f"node{k:03d}", 2)
        for bundle in tracker.next_bundles():
            tracker.bundle_started(bundle.number)
        assert tracker.node_left(f"node{k:03d}") == []

    tracker.node_joined("node002", 2)
    [first] = tracker.next_bundles()
    assert first.alone
    assert tracker.next_bundles() == []
    tracker.bundle_ended(first.number, [success(0)])
    [second] = tracker.next_bundles()

    assert second.alone
    assert second.members[0].mini_batch.index != first.members[0].mini_batch.index


def test_what_died_of_memory_runs_alone_on_its_node_and_others_go_on():
    """R211: the node gets nothing more until it has drained, then that alone, then it is fed again."""
    tracker = Tracker(plan(100), LIMITS)
    tracker.node_joined("node000", 1)
    tracker.node_joined("node001", 1)
    bundles = tracker.next_bundles()
    first = next(b for b in bundles if b.node == "node000")
    others = [b for b in bundles if b.node == "node001"]
    rest = [b for b in bundles if b.node == "node000" and b is not first]

    tracker.bundle_ended(first.number, [failure(0, category="memory")])

    out = tracker.next_bundles()  # it failed on node000: node001 drains
    assert {b.node for b in out} == {"node000"}
    rest += out
    assert {b.node for b in drain(tracker, others[:1])} <= {"node000"}
    [alone] = [b for b in drain(tracker, others[1:]) if b.node == "node001"]
    assert alone.alone
    assert alone.members == first.members
    assert alone.members[0].attempt == 2
    assert {b.node for b in drain(tracker, rest)} == {"node000"}  # undisturbed
    assert "node001" in {b.node for b in drain(tracker, [alone])}


def test_a_node_that_leaves_while_it_drains_leaves_nothing_behind():
    """R86, R211: what was to run there alone runs alone elsewhere."""
    tracker = Tracker(plan(2), LIMITS)
    tracker.node_joined("node000", 1)
    first, second = tracker.next_bundles()
    tracker.bundle_ended(first.number, [failure(0, category="memory")])
    assert tracker.next_bundles() == []  # it drains

    tracker.node_left("node000", expected=True)
    assert not tracker.done
    tracker.node_joined("node001", 1)
    [alone] = tracker.next_bundles()
    [other] = drain(tracker, [alone])

    assert alone.alone
    assert alone.members == first.members
    assert not other.alone
    assert other.members[0].mini_batch is second.members[0].mini_batch


def test_a_run_is_not_done_while_something_waits_for_its_node_to_drain():
    """R211: the last bundle of the others may end before it has gone out."""
    tracker = Tracker(plan(2), LIMITS)
    tracker.node_joined("node000", 1)
    first, second = tracker.next_bundles()
    tracker.bundle_ended(first.number, [failure(0, category="memory")])
    assert tracker.next_bundles() == []

    tracker.bundle_ended(second.number, [success(0)])

    assert not tracker.done
    [alone] = tracker.next_bundles()
    assert alone.members == first.members


def test_of_several_nodes_the_one_with_least_to_do_drains():
    """R211: so that what must run alone waits as short as can be, and as little as can be stands still."""
    tracker = Tracker(plan(100), LIMITS)
    for node in ("node000", "node001", "node002"):
        tracker.node_joined(node, 1)
    bundles = tracker.next_bundles()
    mine = {node: [b for b in bundles if b.node == node] for node in ("node000", "node002")}

    tracker.bundle_ended(mine["node002"][0].number, [success(0)])
    tracker.bundle_ended(mine["node000"][0].number, [failure(0, category="memory")])
    tracker.next_bundles()
    [alone] = [b for b in drain(tracker, mine["node002"][1:]) if b.alone]

    assert (alone.node, alone.members) == ("node002", mine["node000"][0].members)


def test_several_that_must_run_alone_do_so_one_after_another():
    """R211: each has the node for itself, and none waits for ever."""
    tracker = Tracker(plan(6), LIMITS)
    tracker.node_joined("node000", 3)
    for bundle in tracker.next_bundles():
        tracker.bundle_ended(bundle.number, [failure(0, category="memory")])

    for _ in range(6):
        [bundle] = tracker.next_bundles()
        assert bundle.alone
        tracker.bundle_ended(bundle.number, [success(0)])

    assert tracker.done


def test_a_run_in_which_nothing_succeeds_and_all_fails_alike_is_hopeless():
    """R209: after max(10, 3 * processes) mini-batches that used up their attempts in the same way."""
    tracker = Tracker(plan(100), LIMITS)
    tracker.node_joined("node000", 4)

    while (said := tracker.hopeless()) is None:
        for bundle in tracker.next_bundles():
            tracker.bundle_ended(bundle.number, [failure(k) for k in range(len(bundle.members))])

    assert tracker.mini_batches_failed >= 12
    assert tracker.attempts < 100
    for word in ("mini-batches", "ValueError: bad pixel (score.py:3 in run)", "mend the script"):
        assert word in said


@pytest.mark.parametrize(
    ("threshold", "earlier", "succeeds", "wheres"),
    [
        (-1, Earlier(), False, 1),  # every failure is tolerated
        (None, Earlier(mini_batches=1, items=2), False, 1),  # an earlier sitting had success
        (None, Earlier(parts={99: ((0, 1),)}), False, 1),  # so it had
        (None, Earlier(), True, 1),
        (None, Earlier(), False, 10),  # not alike
    ],
)
def test_a_run_is_not_hopeless(threshold, earlier, succeeds, wheres):
    """R209: where failures are tolerated, where anything has succeeded, where they are not alike."""
    limits = dataclasses.replace(LIMITS, max_attempts=1, error_threshold=threshold)
    tracker = Tracker(plan(60), limits, earlier=earlier)
    tracker.node_joined("node000", 1)

    while not tracker.done and not tracker.hopeless():
        for bundle in tracker.next_bundles():
            results = []
            for at, member in enumerate(bundle.members):
                index = member.mini_batch.index
                where = f"score.py:{index % wheres} in run"
                good = succeeds and index == 0
                results.append(success(at) if good else failure(at, where=where))
            tracker.bundle_ended(bundle.number, results)

    assert tracker.hopeless() is None
    assert tracker.mini_batches_failed == 60 - succeeds


def test_one_success_gives_hope_but_not_a_range_without_rows():
    """R209: where no row begins run() is not called, so that nothing is known of it."""
    limits = dataclasses.replace(LIMITS, max_attempts=1)
    tracker = Tracker(plan(100), limits)
    tracker.node_joined("node000", 10)
    first, second, *others = tracker.next_bundles()
    tracker.bundle_ended(first.number, [success(0, items=0, rows=0)])
    for bundle in others:
        tracker.bundle_ended(bundle.number, [failure(0)])
    while not tracker.hopeless():
        for bundle in tracker.next_bundles():
            tracker.bundle_ended(bundle.number, [failure(0)])

    tracker.bundle_ended(second.number, [success(0)])

    assert tracker.hopeless() is None


def test_thousands_that_wait_to_run_again_are_handed_out_quickly():
    """What comes next costs the same however many wait, also where none of them may run on a node."""
    tracker = Tracker(plan(40_000), LIMITS)
    tracker.node_joined("node000", 64)
    tracker.node_joined("node001", 64)
    failed = 0
    began = time.process_time()

    while failed < 20_000:
        for bundle in tracker.next_bundles():
            if bundle.node == "node001":  # never ends: what failed on node000 waits for it
                continue
            results = [failure(k) for k in range(len(bundle.members))]
            failed += len(results)
            tracker.bundle_ended(bundle.number, results)

    # Measured: 0.4 s; a look at all that wait for each bundle takes minutes.
    assert time.process_time() - began < 20
