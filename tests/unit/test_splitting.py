"""Bad items are found by halving, and blamed alone; what ends in parts is counted once."""

from __future__ import annotations

import math

import pytest

from prefect_parallelrun.driver import policy, splitting
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import Earlier, MiniBatch, Outcome


def limits(**given) -> policy.Limits:
    wanted = {
        "max_attempts": 3,
        "error_threshold": None,
        "allowed_failed_count": None,
        "allowed_failed_percent": None,
        "rows_wanted": True,
        "isolate": True,
    }
    return policy.Limits(**{**wanted, **given})


def files(index: int, items: int) -> MiniBatch:
    return MiniBatch(index, 0, items, 10, {"files": [f"/in/{index}-{k}" for k in range(items)]})


def table(index: int) -> MiniBatch:
    return MiniBatch(index, 0, None, 10, {"path": "/in/t.csv", "start": 0, "end": 99})


def good(position: int, items: int) -> tuple:
    process = {"position": position, "process": "process000"}
    return {**process, "outcome": "succeeded", "items": items, "rows": items}, b"row\n" * items


def bad(position: int, items: int = -1, category: str = "exception", process="process000") -> tuple:
    error = {
        "category": category,
        "type": "ValueError",
        "message": "bad pixel\nin 3",
        "where": "s:3",
    }
    place = {"position": position, "process": process, "items": items}
    return {**place, "outcome": "failed", "error": error}, b""


def work_off(tracker: Tracker, fails) -> list:
    """Run until all is settled, or it is hopeless; `fails` says which items of a mini-batch do."""
    settled = []
    while not tracker.done and not tracker.hopeless():
        bundles = tracker.next_bundles()
        assert bundles
        for bundle in bundles:
            results = []
            for at, member in enumerate(bundle.members):
                first, stop = member.part or (0, member.mini_batch.items)
                index = member.mini_batch.index
                failing = any(fails(index, item) for item in range(first, stop))
                results.append((bad if failing else good)(at, stop - first))
            settled += tracker.bundle_ended(bundle.number, results)
    return settled


def test_halves_cover_what_they_were_cut_from():
    """R203: no item is lost or doubled by a cut, whether one stands alone or not."""
    for stop in range(2, 20):
        for single in (False, True):
            parts = splitting.cut(0, stop, single=single)
            assert sorted(item for part in parts for item in range(*part)) == list(range(stop))
            assert all(first < last for first, last in parts)


@pytest.mark.parametrize("items", [2, 5, 10, 64, 1000])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_one_bad_item_costs_about_twice_the_logarithm_of_calls(items, place):
    """R203: at most 2 * log2(n) calls beside the attempts of the whole; all other items succeed."""
    tracker = Tracker([files(0, 1), files(1, items)], limits())
    tracker.node_joined("node000", 1)
    culprit = int(place * items)

    settled = work_off(tracker, lambda index, item: index == 1 and item == culprit)

    records = [one.record for one in settled if one.record.mini_batch == 1]
    whole, parts = records[:3], records[3:]
    assert [r.part for r in whole] == [None] * 3
    assert not any(r.final for r in whole)
    assert {r.items_total for r in whole} == {items}  # from which a resumed run knows its size
    assert len(parts) <= 2 * math.ceil(math.log2(items))
    [failed] = [r for r in parts if r.final and r.outcome is Outcome.FAILED]
    assert failed.part == (culprit, culprit + 1)
    assert failed.items_sample == (f"/in/1-{culprit}",)
    assert (failed.items_total, failed.items_failed) == (1, 1)
    assert tracker.tally == policy.Tally(
        mini_batches_succeeded=2, mini_batches_failed=0, items_succeeded=items, items_failed=1
    )
    assert tracker.retries == tracker.attempts - 2  # all but the first of each mini-batch


def test_the_rows_of_good_parts_are_kept_and_bad_parts_settle_nothing():
    """R203: a part that succeeds is final, with its rows; one that is cut further is not."""
    tracker = Tracker([files(0, 1), files(1, 4)], limits(max_attempts=1))
    tracker.node_joined("node000", 1)

    settled = work_off(tracker, lambda index, item: (index, item) == (1, 3))[1:]

    assert {one.record.part: one.data for one in settled if one.record.final} == {
        (0, 2): b"row\n" * 2,
        (2, 3): b"row\n",
        (3, 4): b"",
    }
    assert [one.record.part for one in settled if not one.record.final] == [None, (2, 4)]


@pytest.mark.parametrize(
    ("mini_batch", "works"),
    [
        (files(0, 2), [{"files": ["/in/0-0"]}, {"files": ["/in/0-1"]}]),
        (
            table(0),
            [
                {"path": "/in/t.csv", "start": 0, "end": 99, "part": [0, 1]},
                {"path": "/in/t.csv", "start": 0, "end": 99, "part": [1, 2]},
            ],
        ),
    ],
)
def test_a_worker_process_gets_the_files_of_its_part_and_for_a_table_its_rows(mini_batch, works):
    """The part's files are cut off by the driver; a table's rows by whoever loads them."""
    tracker = Tracker([mini_batch], limits(max_attempts=1))
    tracker.node_joined("node000", 1)
    [whole] = tracker.next_bundles()

    tracker.bundle_ended(whole.number, [bad(0, 2)])

    tasks = [bundle.tasks() for bundle in tracker.next_bundles()]
    assert tasks == [[[0, 2, 0, work]] for work in works]


def test_a_table_of_which_nobody_has_counted_the_rows_fails_as_a_whole():
    """R203: what never came so far that its rows were counted cannot be cut; it stands as one item."""
    tracker = Tracker([table(0)], limits(max_attempts=1))
    tracker.node_joined("node000", 1)
    [whole] = tracker.next_bundles()

    [settled] = tracker.bundle_ended(whole.number, [bad(0, -1, "load")])

    assert (settled.record.part, settled.record.final) == (None, True)
    assert settled.record.items_failed == 1
    assert tracker.done


def test_rows_that_one_attempt_has_counted_count_for_those_that_could_not():
    """R203: a process that dies says nothing of the rows; an earlier attempt has."""
    tracker = Tracker([table(0)], limits(max_attempts=2))
    tracker.node_joined("node000", 1)

    for result in (bad(0, 8), bad(0, -1)):
        [bundle] = tracker.next_bundles()
        [settled] = tracker.bundle_ended(bundle.number, [result])

    assert not settled.record.final
    assert settled.record.items_total == 8
    parts = {m.part for bundle in tracker.next_bundles() for m in bundle.members}
    assert (4, 5) in parts


def test_a_part_goes_where_it_has_not_failed():
    """R203: another node, and on the same node another process, where there is one."""
    tracker = Tracker([files(0, 2)], limits(max_attempts=1))
    tracker.node_joined("node000", 2)
    [first] = tracker.next_bundles()
    tracker.bundle_ended(first.number, [bad(0, 2, process="process001")])

    alone = tracker.next_bundles()
    assert {b.node: b.avoid for b in alone} == {"node000": ["process001"]}
    assert [len(b.members) for b in alone] == [1, 1]

    tracker.node_joined("node001", 2)
    for bundle in alone:
        tracker.bundle_returned(bundle.number)
    assert {b.node for b in tracker.next_bundles()} == {"node001"}


def test_a_mini_batch_has_failed_when_none_of_its_items_succeeded():
    """R203: it is settled with its last part; its items count against a threshold as they are found."""
    tracker = Tracker([files(0, 2)], limits(max_attempts=1, error_threshold=0))
    tracker.node_joined("node000", 1)
    [whole] = tracker.next_bundles()
    tracker.bundle_ended(whole.number, [bad(0, 2)])
    assert tracker.exceeded() is None

    first, second = tracker.next_bundles()
    tracker.bundle_ended(first.number, [bad(0, 1)])
    assert "error_threshold=0" in tracker.exceeded()
    assert tracker.mini_batches_failed == 0
    tracker.bundle_ended(second.number, [bad(0, 1)])

    assert (tracker.mini_batches_failed, tracker.items_failed, tracker.done) == (1, 2, True)


def test_missing_rows_of_a_part_are_failed_items():
    """R16: fewer elements than items: the gap has failed, the part has not."""
    tracker = Tracker([files(0, 4)], limits(max_attempts=1))
    tracker.node_joined("node000", 2)
    [whole] = tracker.next_bundles()
    tracker.bundle_ended(whole.number, [bad(0, 4)])

    for bundle in tracker.next_bundles():
        first, stop = bundle.members[0].part
        tracker.bundle_ended(bundle.number, [({**good(0, stop - first)[0], "rows": 0}, b"")])

    assert (tracker.done, tracker.items_failed, tracker.mini_batches_failed) == (True, 4, 1)


def test_how_long_a_part_takes_says_nothing_of_the_mini_batches_to_come():
    """Those are as quick as they were, and go out many to a bundle."""
    tracker = Tracker((files(k, 2) for k in range(50_000)), limits(max_attempts=1))
    tracker.node_joined("node000", 1)

    def end(bundle, seconds):
        results = [good(at, 2) for at in range(len(bundle.members))]
        tracker.bundle_ended(bundle.number, [({**r, "elapsed_s": seconds}, d) for r, d in results])

    for _ in range(10):
        for bundle in tracker.next_bundles():
            end(bundle, 0.001)
    first, *others = tracker.next_bundles()
    tracker.bundle_ended(first.number, [bad(0, 2)])
    for bundle in others:
        end(bundle, 0.001)

    parts = [bundle for bundle in tracker.next_bundles() if bundle.members[0].part]
    for bundle in parts:
        end(bundle, 1000.0)

    assert len(parts) == 2
    assert min(len(bundle.members) for bundle in tracker.next_bundles()) > 50


def test_what_dies_of_memory_is_halved_at_once():
    """R211: with less to hold it may live; the halves get the attempts that were left."""
    tracker = Tracker([files(0, 1), files(1, 2)], limits())
    tracker.node_joined("node000", 1)
    first, second = tracker.next_bundles()
    tracker.bundle_ended(first.number, [good(0, 1)])

    [settled] = tracker.bundle_ended(second.number, [bad(0, 2, "memory")])
    left, right = tracker.next_bundles()
    tracker.bundle_ended(left.number, [bad(0, 1, "memory")])  # alone already: alone on its node
    tracker.bundle_ended(right.number, [good(0, 1)])
    [again] = tracker.next_bundles()
    [last] = tracker.bundle_ended(again.number, [bad(0, 1, "memory")])

    assert not settled.record.final
    assert [m.part for b in (left, right) for m in b.members] == [(0, 1), (1, 2)]
    assert again.alone
    assert (last.record.attempt, last.record.final) == (3, True)
    assert tracker.done


@pytest.mark.parametrize(("again", "failed"), [(good(0, 1), 0), (bad(0, 1, "signal"), 1)])
def test_an_item_alone_that_a_signal_ended_gets_one_attempt_more(again, failed):
    """R203, R207: the signal may have come from outside; a second one did not come by chance."""
    tracker = Tracker([files(0, 1), files(1, 4)], limits(max_attempts=1))
    tracker.node_joined("node000", 4)
    first, second = tracker.next_bundles()
    tracker.bundle_ended(first.number, [good(0, 1)])
    tracker.bundle_ended(second.number, [bad(0, 4, "signal")])
    for bundle in tracker.next_bundles():  # more than one item: no mercy, they are cut at once
        tracker.bundle_ended(bundle.number, [bad(0, 2, "signal")])
    left, right, *others = tracker.next_bundles()
    assert [b.members[0].items for b in (left, right, *others)] == [1] * 4
    for bundle in others:
        tracker.bundle_ended(bundle.number, [good(0, 1)])
    tracker.bundle_ended(right.number, [bad(0, 1, "exit")])  # its own doing

    [killed] = tracker.bundle_ended(left.number, [bad(0, 1, "signal")])
    [retry] = tracker.next_bundles()
    [last] = tracker.bundle_ended(retry.number, [again])

    assert not killed.record.final
    assert (last.record.part, last.record.attempt, last.record.final) == ((0, 1), 4, True)
    assert tracker.done
    assert tracker.items_failed == 1 + failed


def test_no_item_is_spared_as_long_as_nothing_has_succeeded():
    """R209: where all die alike, a second attempt of each would only put off the end."""
    tracker = Tracker([files(0, 2)], limits(max_attempts=1))
    tracker.node_joined("node000", 1)
    settled = []
    while not tracker.done:
        for bundle in tracker.next_bundles():
            member = bundle.members[0]
            settled += tracker.bundle_ended(bundle.number, [bad(0, member.items or 2, "signal")])

    assert [one.record.attempt for one in settled] == [1, 2, 2]


def test_what_is_left_of_a_resumed_mini_batch_runs_in_its_parts():
    """R201, R203: not what has succeeded; each part with all attempts, and halved after them."""
    parts = {1: ((0, 2), (3, 4))}
    tracker = Tracker(
        [files(0, 4), files(1, 4)],
        limits(max_attempts=2),
        earlier=Earlier(mini_batches=5, items=21, parts=parts),
    )
    tracker.node_joined("node000", 1)

    settled = work_off(tracker, lambda index, item: (index, item) == (1, 1))

    ended = [(r.part, r.attempt, r.final) for r in (s.record for s in settled) if r.mini_batch == 1]
    assert sorted(ended) == [
        ((0, 1), 3, True),
        ((0, 2), 1, False),
        ((0, 2), 2, False),
        ((1, 2), 3, True),
        ((3, 4), 1, True),
    ]
    assert (tracker.planned, tracker.mini_batches_succeeded) == (7, 7)
    assert (tracker.items_succeeded, tracker.items_failed) == (21 + 4 + 2, 1)


def test_a_plan_of_nothing_but_parts_is_not_done_before_they_are():
    """R201: they are work too, though they come from another queue."""
    tracker = Tracker([files(0, 4)], limits(), earlier=Earlier(parts={0: ((1, 2),)}))

    assert not tracker.done
    tracker.node_joined("node000", 1)
    [bundle] = tracker.next_bundles()
    tracker.bundle_ended(bundle.number, [bad(0, 1)])
    assert not tracker.done


def test_missing_rows_hold_what_they_have_until_they_succeed_again():
    """R204: what fails again changes nothing, is never split, and counts as it did before."""
    earlier = Earlier(missing={(0, None): (3, 1), (1, None): (2, 2)})
    tracker = Tracker([files(0, 4), files(1, 4)], limits(max_attempts=2), earlier=earlier)
    tracker.node_joined("node000", 1)

    settled = work_off(tracker, lambda index, item: index == 0)

    ended = [(r.mini_batch, r.part, r.final) for r in (one.record for one in settled)]
    assert sorted(ended) == [(0, None, False), (0, None, False), (1, None, True)]
    assert tracker.tally == policy.Tally(
        mini_batches_succeeded=2, mini_batches_failed=0, items_succeeded=3 + 4, items_failed=1
    )


def test_missing_rows_of_a_part_hold_like_those_of_a_whole():
    """R203, R204: the part is tried again as it is; what is left beside it is split as ever."""
    earlier = Earlier(items=2, parts={0: ((0, 2), (2, 6))}, missing={(0, (2, 6)): (3, 1)})
    tracker = Tracker([files(0, 8)], limits(max_attempts=1), earlier=earlier)
    tracker.node_joined("node000", 1)

    settled = work_off(tracker, lambda index, item: item in (1, 4))

    ended = [(one.record.part, one.record.final) for one in settled]
    assert sorted(ended) == [((0, 1), True), ((0, 2), False), ((1, 2), True), ((2, 6), False)]
    assert tracker.done
    assert tracker.tally == policy.Tally(
        mini_batches_succeeded=1,
        mini_batches_failed=0,
        items_succeeded=2 + 1 + 3,
        items_failed=1 + 1,
    )


@pytest.mark.parametrize(("rows", "holds"), [(2, 3), (3, 3), (4, 4)])
def test_of_two_results_with_rows_missing_the_better_holds(rows, holds):
    """R16, R204: what was held before is given up only for as many rows, or more."""
    tracker = Tracker([files(0, 4)], limits(), earlier=Earlier(missing={(0, None): (3, 1)}))
    tracker.node_joined("node000", 1)
    [bundle] = tracker.next_bundles()

    result = {"position": 0, "process": "p", "outcome": "succeeded", "items": 4, "rows": rows}
    [settled] = tracker.bundle_ended(bundle.number, [(result, b".")])

    assert settled.record.final == (rows >= 3)
    assert tracker.done
    assert (tracker.items_succeeded, tracker.items_failed) == (holds, 4 - holds)
    assert tracker.rows == holds


def test_missing_rows_that_are_not_tried_again_count_from_the_start():
    """R26: what is settled with failed items, and does not run again, has failed all the same."""
    tracker = Tracker(
        [files(0, 4)],
        limits(max_attempts=1, error_threshold=3, isolate=False),
        earlier=Earlier(mini_batches=2, items=5, rows=5, items_failed=3),
    )
    assert tracker.rows == 5
    tracker.node_joined("node000", 1)
    assert tracker.exceeded() is None

    work_off(tracker, lambda index, item: True)

    assert "7 items failed; error_threshold=3" in tracker.exceeded()


@pytest.mark.parametrize("processes", [1, 4, 16])
@pytest.mark.parametrize("items", [1, 4, 20_000])
def test_a_run_in_which_every_item_fails_alike_ends_soon(processes, items):
    """R209: also where mini-batches are split, however large they are: items that stood alone tell."""
    tracker = Tracker((files(k, items) for k in range(1000)), limits())
    tracker.node_joined("node000", processes)

    work_off(tracker, lambda index, item: True)

    said = tracker.hopeless()
    assert "ValueError: bad pixel (s:3)" in said
    assert "error_threshold=-1" in said
    limit = max(policy.ALIKE_LEAST, policy.ALIKE_PER_PROCESS * processes)
    assert tracker.items_failed >= limit
    assert tracker.attempts <= 10 * limit


@pytest.mark.parametrize("every", [20, 100])
@pytest.mark.parametrize("processes", [1, 4, 16])
def test_a_bad_item_in_every_mini_batch_is_not_hopeless(processes, every):
    """R203, R209: no mini-batch succeeds as a whole; what matters is that items do."""
    tracker = Tracker((files(k, 1000) for k in range(20)), limits(max_attempts=1))
    tracker.node_joined("node000", processes)

    work_off(tracker, lambda index, item: item % every == 7)

    assert tracker.hopeless() is None
    assert tracker.done
    assert tracker.items_failed == 20 * 1000 / every
