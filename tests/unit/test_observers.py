"""Who watches a run costs it nothing, and is told of a threshold before it is exceeded."""

from __future__ import annotations

import logging

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.models import Counts, RunSummary
from prefect_parallelrun.report.observer import Observer, Observers

SUMMARY = RunSummary(mini_batches=Counts(), items=Counts(), attempts=0, rows=0)


class Noting(Observer):
    def __init__(self):
        self.told = []

    def progress(self, stage, standing):
        self.told.append(("progress", stage, standing))

    def cluster(self, dashboard):
        self.told.append(("cluster", dashboard))

    def ended(self, record, summary, *, result, failure):
        self.told.append(("ended", record, summary, result, failure))


class Failing(Noting):
    def progress(self, stage, standing):
        super().progress(stage, standing)
        raise ZeroDivisionError("in the bar")


class Stopping(Observer):
    def progress(self, stage, standing):
        raise KeyboardInterrupt


def test_who_watches_and_fails_is_told_no_more(caplog):
    """What is only watched never costs the run: others are told as before, and the log says it once."""
    first, failing, last = Noting(), Failing(), Noting()
    observers = Observers([first, failing, last], logging.getLogger("test-observers"))
    observers.progress("planning", None)
    observers.progress("running", None)
    observers.cluster("http://there")
    observers.ended("record", SUMMARY, result=None, failure="why")

    told = [
        ("progress", "planning", None),
        ("progress", "running", None),
        ("cluster", "http://there"),
        ("ended", "record", SUMMARY, None, "why"),
    ]
    assert first.told == last.told == told
    assert failing.told == told[:1]
    said = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.getMessage() for one in said] == [
        "Failing is told no more of the run: ZeroDivisionError('in the bar')"
    ]


def test_what_ends_the_program_passes():
    """A signal that comes while somebody is told is no fault of theirs: it ends the run."""
    observers = Observers([Stopping()], logging.getLogger("test-observers"))
    with pytest.raises(KeyboardInterrupt):
        observers.progress("planning", None)


def near(failed_items=0, failed_mini_batches=0, planned=100, **thresholds):
    limits = policy.Limits(
        **{
            "max_attempts": 3,
            "error_threshold": None,
            "allowed_failed_count": None,
            "allowed_failed_percent": None,
            "rows_wanted": True,
            **thresholds,
        }
    )
    tally = policy.Tally(
        mini_batches_succeeded=0,
        mini_batches_failed=failed_mini_batches,
        items_succeeded=0,
        items_failed=failed_items,
    )
    found = policy.near(limits, tally, planned)
    return {one.threshold: (one.failed, one.tolerated) for one in found}


@pytest.mark.parametrize(
    ("threshold", "failed", "is_near"),
    [(10, 7, False), (10, 8, True), (10, 11, True), (1, 0, False), (1, 1, True), (3, 2, False)],
)
def test_a_threshold_is_near_at_four_fifths_of_what_is_tolerated(threshold, failed, is_near):
    """So many failures are worth a warning before the run fails by them (R26, R100)."""
    told = {"error_threshold": (failed, threshold)} if is_near else {}
    assert near(failed, error_threshold=threshold) == told
    told = {"allowed_failed_count": (failed, threshold)} if is_near else {}
    assert near(1000, failed, allowed_failed_count=threshold) == told


def test_a_percentage_is_near_as_a_number_of_mini_batches():
    """5 % of 90 mini-batches are 4; as long as nobody knows of how many, nobody can say (R100)."""
    assert near(9, 3, planned=90, allowed_failed_percent=5.0) == {}
    assert near(9, 4, planned=90, allowed_failed_percent=5.0) == {"allowed_failed_percent": (4, 4)}
    assert near(9, 4, planned=None, allowed_failed_percent=5.0) == {}


@pytest.mark.parametrize("threshold", [0, -1, None])
def test_what_tolerates_nothing_or_everything_is_never_near(threshold):
    """With 0 the first failure ends the run, with -1 none ever does (R26)."""
    assert near(50, 50, error_threshold=threshold, allowed_failed_count=threshold) == {}


def test_a_warning_says_how_many_failed_and_how_many_may():
    """For the flow's log, in words."""
    found = policy.Near(threshold="error_threshold", failed=8, tolerated=10, noun="item")
    assert str(found) == "8 items failed, and error_threshold tolerates 10"
