"""The judge itself: each broken promise is seen, and what a fault explains is not held against anybody."""

from __future__ import annotations

import random
import sqlite3

import pytest

from tests.chaos import judge
from tests.chaos.data import make_files
from tests.chaos.faults import SENDING_S, WORK_S, Fault, Kind
from tests.chaos.job import Report
from tests.chaos.trace import Execution


@pytest.fixture
def data(tmp_path):
    """Six files, one of them bad."""
    return make_files(tmp_path / "data", 6, 1, random.Random(1))


@pytest.fixture
def good(data):
    """The items that are not bad."""
    return [item for item in data.items if item not in data.bad]


def execution(*items, began=10.0, took=1.0, how="end", pid=1, supervisor=2, worker=3):
    """One call of run()."""
    return Execution(
        items=items,
        index=0,
        token=str(pid),
        pid=pid,
        supervisor=supervisor,
        worker=worker,
        began=began,
        ended=began + took if how else None,
        how=how,
    )


def judged(data, executions, *faults):
    """What the judge says of calls of run()."""
    verdict = judge.Verdict()
    judge.check_executions(verdict, executions, faults, data)
    return verdict


def fault(kind, at, pid):
    """A fault at a moment."""
    return Fault(kind=kind, at=at, until=at, pid=pid)


def output_of(data, tmp_path, rows):
    """What the judge says of an output with these rows."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_bytes(b"".join(rows))
    report = Report(
        output=str(out / "file"), items={"total": 6, "succeeded": 5, "failed": 1, "reused": 0}
    )
    verdict = judge.Verdict()
    judge.check_output(verdict, report, data)
    return verdict


@pytest.mark.parametrize(
    ("change", "lost", "doubled"),
    [
        (lambda rows: rows, 0, 0),
        (lambda rows: rows[1:], 1, 0),
        (lambda rows: [*rows, rows[0]], 0, 1),
        (lambda rows: [rows[0][:-9], *rows[1:]], 2, 1),  # a torn row spoils the next
        (lambda rows: rows[::-1], 0, 0),
    ],
)
def test_rows_that_are_lost_or_doubled_are_seen(data, tmp_path, change, lost, doubled):
    """R200, R220: compared with bytes that the product has no part in; order counts too."""
    rows = data.expected.splitlines(keepends=True)
    verdict = output_of(data, tmp_path, change(rows))

    assert (verdict.lost, verdict.doubled) == (lost, doubled)
    assert verdict.good == (change(rows) == rows)


def test_each_item_once_is_good(data, good):
    """Nothing ran twice, nothing is to be explained."""
    assert judged(data, [execution(*good)]).good


def test_an_item_that_never_ran_to_its_end_is_seen(data, good):
    """An output cannot have the rows of what was not run."""
    assert not judged(data, [execution(*good[1:])]).good


def test_a_second_run_without_a_fault_is_an_innocent_one(data, good):
    """R207: no fault, no re-run."""
    verdict = judged(data, [execution(*good), execution(good[0], began=20.0)])

    assert (verdict.innocent, verdict.reruns) == (1, 0)


def test_a_call_that_was_cut_off_without_a_fault_is_seen(data, good):
    """R207: somebody killed it, and it was not us."""
    assert judged(data, [execution(*good, how=""), execution(*good, began=20.0)]).innocent == 1


@pytest.mark.parametrize(
    ("kind", "victim", "at", "explained"),
    [
        (Kind.CHILD_KILL, 1, 11.0 + SENDING_S, True),
        (Kind.CHILD_KILL, 1, 11.1 + SENDING_S, False),  # it had long been delivered
        (Kind.CHILD_KILL, 9, 11.0, False),  # another process
        (Kind.SUPERVISOR_KILL, 2, 11.0 + WORK_S, True),
        (Kind.SUPERVISOR_KILL, 2, 11.1 + WORK_S, False),
        (Kind.SUPERVISOR_KILL, 9, 11.0, False),  # another node
        (Kind.WORKER_KILL, 3, 11.0 + WORK_S, True),
        (Kind.WORKER_KILL, 9, 11.0, False),
        (Kind.DRIVER_KILL, 99, 11.0 + WORK_S, True),
        (Kind.DRIVER_KILL, 99, 11.1 + WORK_S, False),  # more than a second of finished work
    ],
)
def test_a_fault_explains_only_those_it_hit_and_only_for_its_window(
    data, good, kind, victim, at, explained
):
    """R201, R207: the process that was hit, the node that was lost, a second of finished work."""
    executions = [execution(*good), execution(*good, began=20.0, pid=7, supervisor=8, worker=9)]
    verdict = judged(data, executions, fault(kind, at, victim))

    assert (verdict.innocent, verdict.reruns) == ((0, 1) if explained else (1, 0))


def test_what_waits_with_a_hanging_neighbour_is_explained_up_to_a_second_of_work(data, good):
    """R201: results travel by the bundle; the amount of finished work counts, not its age."""
    kill = fault(Kind.DRIVER_KILL, 30.0, 99)
    again = execution(*good, began=40.0, pid=7)
    hangs = execution(good[0], began=11.0, how="hang")
    hangs.ended = 27.0

    assert judged(data, [execution(*good), hangs, again], kill).good
    assert judged(data, [execution(*good, took=1.2), hangs, again], kill).innocent == 1
    assert judged(data, [execution(*good), again], kill).innocent == 1


def test_a_good_item_that_fails_is_seen_and_a_bad_one_is_expected_to(data, good):
    """R203: only a mini-batch that holds a bad item may raise."""
    (bad,) = data.bad

    assert judged(data, [execution(bad, how="raise"), execution(*good)]).good
    assert not judged(data, [execution(good[0], how="raise"), execution(*good)]).good


@pytest.mark.parametrize(
    ("at", "charged", "fair"), [(11.01, 1, True), (11.01, 2, False), (10.5, 1, False)]
)
def test_a_kill_between_two_calls_may_be_charged_to_the_next(
    data, good, tmp_path, at, charged, fair
):
    """R207: the next call may have begun, and not have come to its first line; otherwise it is innocent."""
    journal = tmp_path / "journal.sqlite"
    with sqlite3.connect(journal) as connection:
        connection.execute("CREATE TABLE attempts (mini_batch INTEGER, outcome TEXT)")
        connection.executemany("INSERT INTO attempts VALUES (?, 'process_died')", [(7,)] * charged)
    verdict = judge.Verdict()

    judge.check_attempts(
        verdict, journal, [execution(*good)], [fault(Kind.CHILD_KILL, at, 1)], data
    )

    assert verdict.good == fair
