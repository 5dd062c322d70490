"""Tracker and journal over many sittings, each ended anywhere: they agree on what holds."""

from __future__ import annotations

import random

import pytest

from prefect_parallelrun.driver import policy
from prefect_parallelrun.driver.tracker import Tracker
from prefect_parallelrun.models import MiniBatch
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

MINI_BATCHES, ITEMS = 12, 7


def one_sitting(paths: RunPaths, chance: random.Random, *, bundles: int, isolate: bool) -> bool:
    """Run so many bundles, of which calls fail and leave out rows at random; return if all is done."""
    limits = policy.Limits(
        max_attempts=chance.randint(1, 2),
        error_threshold=None,
        allowed_failed_count=None,
        allowed_failed_percent=None,
        rows_wanted=True,
        isolate=isolate,
    )
    fails = chance.choice([0.0, 0.2, 0.5])
    with OutputWriter(paths, keep_rows=True, retry_missing=chance.random() < 0.8) as output:
        done = set(output.done())
        plan = (
            MiniBatch(k, 0, ITEMS, 10, {"files": [f"/in/{k}-{item}" for item in range(ITEMS)]})
            for k in range(MINI_BATCHES)
            if k not in done
        )
        tracker = Tracker(plan, limits, earlier=output.earlier)
        tracker.node_joined("node000", 1)
        waiting = tracker.next_bundles()
        while waiting and bundles:
            bundles -= 1
            bundle = waiting.pop(chance.randrange(len(waiting)))
            results = []
            for position, member in enumerate(bundle.members):
                first, stop = member.part or (0, ITEMS)
                told = {"position": position, "process": "process000", "items": stop - first}
                if chance.random() < fails:
                    error = {"category": "exception", "type": "E", "message": "m", "where": "s"}
                    results.append(({**told, "outcome": "failed", "error": error}, b""))
                    continue
                least = first if member.part is None else first + 1
                last = chance.choice([stop, chance.randint(least, stop)])
                rows = b"".join(
                    b"%d.%d\n" % (member.mini_batch.index, k) for k in range(first, last)
                )
                told |= {"outcome": "succeeded", "rows": last - first}
                results.append((told, rows))
            for one in tracker.bundle_ended(bundle.number, results):
                output.add(one.record, one.data)
            waiting += tracker.next_bundles()
        if tracker.done:
            output.flush()
            totals = output.journal.totals()
            assert tracker.tally == policy.Tally(
                mini_batches_succeeded=totals.mini_batches_succeeded,
                mini_batches_failed=totals.mini_batches - totals.mini_batches_succeeded,
                items_succeeded=totals.items_succeeded,
                items_failed=totals.items_failed,
            )
            assert totals.items_succeeded + totals.items_failed == MINI_BATCHES * ITEMS  # R208
        return tracker.done


@pytest.mark.parametrize("seed", range(60))
def test_what_holds_is_settled_once_and_only_grows(tmp_path, seed):
    """No item is settled twice or lost its row, whatever failed, was split, or gave way (R200, R201)."""
    chance = random.Random(seed)
    paths = RunPaths(tmp_path / "run")
    rows_before = 0
    for _ in range(6):
        one_sitting(
            paths, chance, bundles=chance.choice([0, 3, 20, 999]), isolate=chance.random() < 0.7
        )
        with Journal(paths.journal) as journal:
            final = [record for record in journal.attempts() if record.final]
            rows = journal.totals().rows
            published = [
                paths.partial.read_bytes()[offset : offset + length].decode().split()
                for offset, length in journal.segments("input")
            ]
        settled = [
            (record.mini_batch, item)
            for record in final
            for item in range(*(record.part or (0, ITEMS)))
        ]
        assert len(settled) == len(set(settled))
        names = [tuple(map(int, name.split("."))) for part in published for name in part]
        assert names == sorted(set(names))
        assert set(names) <= set(settled)
        assert rows == len(names)
        assert rows >= rows_before
        rows_before = rows
    assert one_sitting(paths, chance, bundles=99_999, isolate=True)
