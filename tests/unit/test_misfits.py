"""Rows that cannot stand in one file with the others, as the tracker sees them (R221)."""

from __future__ import annotations

import decimal
import itertools

import numpy as np
import pyarrow as pa
import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import Earlier, MiniBatch, Outcome
from prefect_parallelrun.output.columns import Misfit
from prefect_parallelrun.output.journal import place
from prefect_parallelrun.output.parquet_types import fitted, join

LIMITS = policy.Limits(
    max_attempts=2,
    error_threshold=None,
    allowed_failed_count=None,
    allowed_failed_percent=None,
    rows_wanted=True,
)


class Admission:
    """Refuses columns called `bad`; notes what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, columns, where, data):
        self.asked.append((columns, where, data))
        if columns == "bad":
            raise Misfit("they are bad")
        return f"noted {columns}"


def result(position, columns, rows=2):
    fields = {"position": position, "process": "process000", "outcome": "succeeded"}
    return {**fields, "items": 2, "rows": rows, "columns": columns}, b"rows"


def tracker_of(count, admit, **more):
    plan = [MiniBatch(n, 0, 2, 10, {"files": [f"{n}-0", f"{n}-1"]}) for n in range(count)]
    tracker = Tracker(plan, LIMITS, lambda node, process: f"{node}.{process}", admit=admit, **more)
    tracker.node_joined("node000", 1)
    return tracker


def test_a_misfit_is_a_failed_attempt_like_any_other():
    """It is tried again, and then has failed; it never counts as a success (R38)."""
    admit = Admission()
    tracker = tracker_of(1, admit)
    settled = []
    while not tracker.done:
        for bundle in tracker.next_bundles():
            settled += tracker.bundle_ended(bundle.number, [result(0, "bad")])

    assert [one.record.outcome for one in settled] == [Outcome.FAILED, Outcome.FAILED]
    assert [one.record.final for one in settled] == [False, True]
    assert [one.data for one in settled] == [b"", b""]
    error = settled[0].record.error
    assert (error.category, error.type, error.message) == ("bad_return", "Misfit", "they are bad")
    assert settled[0].record.log_file == "node000.process000"
    assert (tracker.mini_batches_failed, tracker.items_succeeded) == (1, 0)


def test_what_is_admitted_is_kept_with_its_note():
    """The admission is told the place in input order, and says what the journal keeps."""
    admit = Admission()
    tracker = tracker_of(2, admit)
    settled = []
    while not tracker.done:
        for bundle in tracker.next_bundles():
            settled += tracker.bundle_ended(
                bundle.number, [result(n, "good") for n in range(len(bundle.members))]
            )

    assert [one.columns for one in settled] == ["noted good"] * 2
    assert sorted(admit.asked) == [("good", place(0), b"rows"), ("good", place(1), b"rows")]


def test_what_is_not_kept_is_not_admitted():
    """A bundle that nobody waits for, and rows that are worse than those of before, decide nothing."""
    admit = Admission()
    tracker = tracker_of(1, admit, earlier=Earlier(items=0, missing={(0, None): (1, 1)}))
    assert tracker.bundle_ended(99, [result(0, "good")]) == []
    [bundle] = tracker.next_bundles()
    [settled] = tracker.bundle_ended(bundle.number, [result(0, "good", rows=0)])

    assert not settled.record.final
    assert admit.asked == []


TYPES = [
    pa.null(),
    pa.bool_(),
    *[pa.int8(), pa.int16(), pa.int32(), pa.int64()],
    *[pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()],
    *[pa.float16(), pa.float32(), pa.float64()],
    *[pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal256(60, 30)],
    *[pa.string(), pa.binary(), pa.date32(), pa.time64("us"), pa.time64("ns")],
    *[pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.duration("us")],
    *[pa.list_(pa.null()), pa.list_(pa.int8()), pa.list_(pa.float64())],
    *[pa.struct([("a", pa.null())]), pa.struct([("a", pa.uint64())])],
    *[pa.struct([]), pa.struct([("b", pa.int8()), ("a", pa.int8())])],
]


def fold(kinds):
    found = pa.null()
    for kind in kinds:
        found = None if found is None else join(found, kind, wide=(False, False))
    return found


@pytest.mark.parametrize("first", TYPES, ids=str)
def test_types_join_alike_in_any_order(first):
    """Which mini-batch is done first changes no type; what the type holds, it holds in any order (R220)."""
    for others in itertools.combinations(TYPES, 2):
        orders = itertools.permutations((first, *others))
        assert len({fold(order) for order in orders}) == 1


SAMPLES = [
    *[pa.array([1, None], kind) for kind in TYPES if pa.types.is_integer(kind)],
    *[pa.array([0.5, None], kind) for kind in (pa.float32(), pa.float64())],
    pa.array(np.array([0.5], "f2")),
    *[pa.array([decimal.Decimal("1.5"), None], pa.decimal128(5, 2))],
    pa.array([decimal.Decimal(10**37)], pa.decimal128(38, 0)),
    pa.array([decimal.Decimal("1.5")], pa.decimal256(60, 30)),
    *[pa.array([1, None], pa.timestamp(unit)) for unit in ("us", "ns")],
    *[pa.array([1, None], pa.duration(unit)) for unit in ("us", "ns")],
    *[pa.array([1, None], pa.time64(unit)) for unit in ("us", "ns")],
    pa.array([[], None], pa.list_(pa.null())),
    *[pa.array([[1], None], pa.list_(kind)) for kind in (pa.int8(), pa.uint64(), pa.float64())],
    pa.array([{"a": None}, None], pa.struct([("a", pa.null())])),
    *[pa.array([{"a": 1}, None], pa.struct([("a", kind)])) for kind in (pa.int8(), pa.float64())],
]


@pytest.mark.parametrize("one", SAMPLES, ids=lambda array: str(array.type))
def test_what_was_accepted_can_be_written(one):
    """The values of either type survive the step to the common one: publishing cannot fail on them."""
    for other in SAMPLES:
        kind = join(one.type, other.type, wide=(False, False))
        if kind is not None:
            assert fitted(one, kind).to_pylist() == one.to_pylist()
            assert fitted(one[1:], kind).to_pylist() == one[1:].to_pylist()
