"""Decisions of a run, as tables."""

from __future__ import annotations

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.models import AttemptError
from prefect_parallelrun.output import writer


def limits(**given) -> policy.Limits:
    wanted = {
        "max_attempts": 3,
        "error_threshold": None,
        "allowed_failed_count": None,
        "allowed_failed_percent": None,
        "rows_wanted": True,
    }
    return policy.Limits(**{**wanted, **given})


def tally(succeeded=0, failed=0, items_succeeded=0, items_failed=0) -> policy.Tally:
    return policy.Tally(
        mini_batches_succeeded=succeeded,
        mini_batches_failed=failed,
        items_succeeded=items_succeeded,
        items_failed=items_failed,
    )


@pytest.mark.parametrize(
    ("given", "counts", "planned", "word"),
    [
        ({}, tally(0, 99, 0, 990), 100, None),  # nothing given: every mini-batch is tried (R26)
        ({"error_threshold": 10}, tally(0, 1, 0, 10), None, None),  # as many as tolerated
        ({"error_threshold": 10}, tally(0, 2, 0, 11), None, "error_threshold=10"),  # strictly more
        ({"error_threshold": 0}, tally(0, 1, 0, 1), None, "error_threshold=0"),
        ({"error_threshold": -1}, tally(0, 99, 0, 990), 100, None),  # -1 tolerates all
        ({"allowed_failed_count": 2}, tally(0, 2, 0, 20), None, None),
        ({"allowed_failed_count": 2}, tally(0, 3, 0, 30), None, "allowed_failed_count=2"),
        ({"allowed_failed_percent": 10}, tally(0, 50, 0, 50), None, None),  # not all scheduled yet
        ({"allowed_failed_percent": 10}, tally(90, 10, 90, 10), 100, None),
        ({"allowed_failed_percent": 10}, tally(80, 11, 80, 11), 100, "allowed_failed_percent=10"),
        # each of them aborts, whatever the others allow (R100)
        (
            {"error_threshold": -1, "allowed_failed_count": 0},
            tally(5, 1, 5, 1),
            None,
            "allowed_failed_count",
        ),
    ],
)
def test_a_threshold_aborts_when_strictly_exceeded(given, counts, planned, word):
    """R26, R100: strictly more than a threshold aborts at once; the percentage once all are scheduled."""
    why = policy.exceeded(limits(**given), counts, planned)

    assert (why is None) if word is None else (word in why)


@pytest.mark.parametrize(
    ("given", "counts", "word"),
    [
        ({}, tally(10, 0, 100, 0), None),
        ({}, tally(9, 1, 90, 10), "no threshold is set"),  # R26: none goes unnoticed
        ({}, tally(10, 0, 99, 1), "no threshold is set"),  # a missing row counts (R16)
        ({"error_threshold": 10}, tally(9, 1, 90, 10), None),
        ({"allowed_failed_count": 1}, tally(9, 1, 90, 10), None),
        ({"error_threshold": -1}, tally(0, 10, 0, 100), "no item succeeded"),  # R104
        ({"error_threshold": -1, "rows_wanted": False}, tally(0, 10, 0, 100), None),
        ({}, tally(), None),  # a header-only table completes with 0 items
    ],
)
def test_a_run_that_tried_everything_is_judged_at_its_end(given, counts, word):
    """R26, R104: without a threshold one failed item fails the run; so does not one success."""
    why = policy.verdict(limits(**given), counts)

    assert (why is None) if word is None else (word in why)


def test_a_bundle_lasts_about_half_a_second_and_holds_one_when_mini_batches_are_slow():
    """The size follows the measured duration, grows fourfold at most, and shrinks towards the end."""
    size = policy.bundle_size

    assert size(None, 0, 1, None, 4) == 1  # nothing measured yet
    assert size(0.001, 0, 64, None, 4) == 256  # four times the largest so far
    assert size(0.001, 0, 1024, None, 4) == 500  # half a second
    assert size(0.6, 0, 1024, None, 4) == 1
    assert size(0.001, 0, 1024, 80, 4) == 10  # 80 left over 4 processes, two rounds
    assert size(0.001, 0, 1024, 3, 4) == 1
    assert size(0.001, 1024**2, 1024, None, 4) == 16  # 16 MB of rows


def test_a_process_has_two_seconds_of_work_ahead_and_never_less_than_two_bundles():
    """A busy thread in the flow's process must not starve the worker processes, nor bundles the Dask worker."""
    assert policy.window(None) == 2
    assert policy.window(60.0) == 2
    assert policy.window(1e-6) == 4  # of half a second each


@pytest.mark.parametrize(
    ("age_s", "ever_ready", "failures", "failed"),
    [
        (121.0, False, 16, True),
        (120.0, False, 99, False),  # not older than two minutes
        (500.0, True, 99, False),  # one has come through
        (500.0, False, 15, False),  # 2 * 2 nodes * 4 processes
    ],
)
def test_a_run_fails_when_no_process_ever_gets_ready(age_s, ever_ready, failures, failed):
    """R89: older than 2 minutes, no success ever, and two failed starts per process."""
    why = policy.init_failed(
        age_s=age_s, ever_ready=ever_ready, failures=failures, node_count=2, processes_per_node=4
    )

    assert (why is not None) == failed
    if failed:
        assert "121 seconds" in why
        assert "16 starts" in why


def test_a_run_fails_when_all_processes_are_stuck_in_init():
    """R90: all of them, for more than 3 * run_invocation_timeout + 30 seconds."""
    limit_s = policy.init_limit_s(60.0)

    assert limit_s == 210.0
    assert policy.init_stuck(stuck=0, processes=0, limit_s=limit_s) is None  # none is there
    assert policy.init_stuck(stuck=3, processes=4, limit_s=limit_s) is None
    assert "4 processes" in policy.init_stuck(stuck=4, processes=4, limit_s=limit_s)


@pytest.mark.parametrize(
    ("given", "alike", "processes", "stops"),
    [
        ({}, 9, 1, False),
        ({}, 10, 1, True),
        ({}, 11, 4, False),  # 3 * 4 processes
        ({}, 12, 4, True),
        ({"error_threshold": 5}, 10, 0, True),
        ({"error_threshold": -1}, 10_000, 1, False),
    ],
)
def test_so_many_failures_alike_and_no_success_end_a_run(given, alike, processes, stops):
    """R209: max(10, 3 * processes), and never where every failure is tolerated."""
    error = AttemptError(
        category="exception", type="KeyError", message="'label'\nmore", where="score.py:9 in run"
    )

    why = policy.hopeless(limits(**given), alike=alike, processes=processes, error=error)

    assert (why is not None) == stops
    if stops:
        assert f"{alike:,} mini-batches" in why
        assert "KeyError: 'label' (score.py:9 in run)." in why


def test_a_mini_batch_is_blamed_for_lost_nodes_when_it_ran_on_three_or_was_near_ten():
    """Design 4.3: three on which it was running; ten, where only its being in flight is known."""
    assert not policy.takes_nodes_down(2, 9)
    assert policy.takes_nodes_down(3, 3)
    assert policy.takes_nodes_down(0, 10)


def test_a_kill_costs_a_process_less_than_a_second_of_finished_work():
    """R201: what a bundle holds back, and what the journal does, together."""
    assert policy.BUNDLE_S < policy.BUNDLE_LIMIT_S
    assert policy.BUNDLE_LIMIT_S + writer.COMMIT_EVERY_S < 1.0
