from __future__ import annotations

import itertools
import random

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptRecord, Earlier, Outcome
from prefect_parallelrun.output import journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths

ITEMS = 10


def success(
    mini_batch: int, part: tuple[int, int] | None = None, *, items: int = ITEMS, missing: int = 0
) -> AttemptRecord:
    total = items if part is None else part[1] - part[0]
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=1,
        part=part,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=total,
        items_succeeded=total - missing,
        items_failed=missing,
        rows=total - missing,
    )


def failure(
    mini_batch: int,
    part: tuple[int, int] | None = None,
    *,
    items: int = ITEMS,
    final: bool = True,
) -> AttemptRecord:
    total = items if part is None else part[1] - part[0]
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=3,
        part=part,
        final=final,
        outcome=Outcome.FAILED,
        node="node000",
        process="process000",
        items_total=total,
        items_succeeded=0,
        items_failed=total if final else 0,
    )


def rows(mini_batch: int, first: int = 0, stop: int = ITEMS) -> bytes:
    return b"".join(b"%d.%d\n" % (mini_batch, item) for item in range(first, stop))


def whole(mini_batch: int) -> tuple[AttemptRecord, bytes]:
    return success(mini_batch), rows(mini_batch)


def part(mini_batch: int, first: int, stop: int) -> tuple[AttemptRecord, bytes]:
    return success(mini_batch, (first, stop)), rows(mini_batch, first, stop)


def sitting(paths: RunPaths, *added: tuple[AttemptRecord, bytes] | AttemptRecord) -> None:
    with OutputWriter(paths, keep_rows=True) as output:
        for one in added:
            output.add(*(one if isinstance(one, tuple) else (one,)))


def test_a_new_run_has_nothing_earlier(tmp_path):
    """The first sitting of a run begins with nothing done."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True, retry_missing=True) as output:
        assert output.earlier == Earlier()
        assert list(output.done()) == []


def test_what_succeeded_is_not_run_again(tmp_path):
    """Done are whole mini-batches that succeeded; what failed, or was not run, is left (R201)."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, whole(0), whole(3), failure(2), failure(5, final=False))

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0, 3]
        assert output.earlier == Earlier(mini_batches=2, items=20, rows=20)


def test_of_a_split_mini_batch_only_the_rest_is_run(tmp_path):
    """Parts that succeeded hold; what failed, and what was not run, is left of it (R201, R203)."""
    paths = RunPaths(tmp_path / "run")
    sitting(
        paths,
        whole(0),
        failure(1, final=False),
        failure(1, (0, 5), final=False),
        part(1, 0, 2),
        failure(1, (2, 3)),
        part(1, 3, 5),
        part(1, 7, 8),
    )

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0]
        assert output.earlier == Earlier(
            mini_batches=1, items=15, rows=15, parts={1: ((2, 3), (5, 7), (8, 10))}
        )
        before = output.journal.totals()
        for first, stop in output.earlier.parts[1]:
            output.add(*part(1, first, stop))
        published = output.publish(tmp_path, "out.txt", order="input")
        after = output.journal.totals()

    assert published.read_bytes() == rows(0) + rows(1)
    assert (before.mini_batches, before.items_succeeded) == (1, 15)
    assert (after.mini_batches, after.mini_batches_succeeded) == (2, 2)
    assert (after.mini_batches_reused, after.items_succeeded, after.items_reused) == (1, 20, 15)


def test_without_a_good_part_the_whole_is_run_again(tmp_path):
    """A mini-batch of which no part succeeded begins anew, as if it had never been split."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, failure(0, final=False), failure(0, (0, 5)), failure(0, (5, 6)))

    with OutputWriter(paths, keep_rows=True) as output:
        assert (list(output.done()), output.earlier) == ([], Earlier())
        output.add(*whole(0))
        assert output.publish(tmp_path, "out.txt", order="input").read_bytes() == rows(0)


def test_a_mini_batch_whose_parts_all_succeeded_is_done(tmp_path):
    """Once all of its items are settled with success, a split mini-batch is like any other."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, failure(0, final=False), part(0, 5, 10), part(0, 0, 5))

    with OutputWriter(paths, keep_rows=True) as output:
        totals = output.journal.totals()
        assert list(output.done()) == [0]
        assert output.earlier == Earlier(mini_batches=1, items=10, rows=10)

    assert (totals.mini_batches, totals.mini_batches_reused, totals.items_reused) == (1, 1, 10)


@pytest.mark.parametrize(
    ("added", "settled", "succeeded", "failed_whole", "reason"),
    [
        ([part(7, 0, 9), failure(7, (9, 10))], 1, 1, (), "one bad item does not fail a mini-batch"),
        ([failure(7, (0, 5)), failure(7, (5, 10))], 1, 0, (7,), "nothing of it succeeded"),
        ([part(7, 0, 5)], 0, 0, (), "the rest of it is not settled"),
        ([failure(7, (0, 5))], 0, 0, (7,), "as far as it is known, nothing of it succeeded"),
    ],
)
def test_a_split_mini_batch_counts_once(tmp_path, added, settled, succeeded, failed_whole, reason):
    """It is settled when its parts are all of it, and has succeeded if any of its items has (R203)."""
    paths = RunPaths(tmp_path / "run")

    with OutputWriter(paths, keep_rows=True) as output:
        output.add(failure(7, final=False))
        for one in added:
            output.add(*(one if isinstance(one, tuple) else (one,)))
        output.flush()
        totals = output.journal.totals()
        failed = output.journal.failed_mini_batches(10)

    assert (totals.mini_batches, totals.mini_batches_succeeded) == (settled, succeeded), reason
    assert failed == failed_whole, reason


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_in_input_order_however_items_were_split(tmp_path, seed):
    """Whole or in parts, in any order, in several sittings: the output has each item once (R220)."""
    chance = random.Random(seed)
    paths = RunPaths(tmp_path / "run")
    pieces: list[tuple[AttemptRecord, bytes]] = []
    split: list[AttemptRecord] = []
    for index in range(300):
        cuts = sorted({0, ITEMS, *chance.sample(range(ITEMS), chance.choice([0, 0, 1, 3]))})
        if len(cuts) == 2:
            pieces.append(whole(index))
        else:
            split.append(failure(index, final=False))
            pieces += [part(index, a, b) for a, b in itertools.pairwise(cuts)]
    chance.shuffle(pieces)

    sitting(paths, *split)
    for start in range(0, len(pieces), 200):
        sitting(paths, *pieces[start : start + 200])
    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == list(range(300))
        assert output.earlier == Earlier(mini_batches=300, items=3000, rows=3000)
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == b"".join(map(rows, range(300)))


@pytest.mark.parametrize("page", [1, 2, 3, 7])
def test_parts_are_whole_where_a_page_of_the_journal_ends(tmp_path, monkeypatch, page):
    """Rows, failures and what is done are read in pages; none is lost or doubled between two."""
    monkeypatch.setattr(journal, "_PAGE", page)
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        for index in range(5):
            output.add(failure(index, final=False))
            for item in reversed(range(ITEMS)):
                if item % 3:
                    output.add(*part(index, item, item + 1))
                else:
                    output.add(failure(index, (item, item + 1)))
        published = output.publish(tmp_path, "out.txt", order="input")
        streamed = output.publish(tmp_path, "streamed.txt", order="completion")
        failed = [(each.mini_batch, each.first) for each in output.journal.failures()]
        done = list(output.done())

    good = [(index, item) for index in range(5) for item in range(ITEMS) if item % 3]
    assert published.read_bytes() == b"".join(rows(i, item, item + 1) for i, item in good)
    assert sorted(streamed.read_bytes()) == sorted(published.read_bytes())
    assert failed == [(index, item) for index in range(5) for item in range(ITEMS) if not item % 3]
    assert done == list(range(5))


def test_a_part_is_settled_once(tmp_path):
    """The journal refuses the same part a second time (R200)."""
    output = OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True)
    output.add(*part(0, 0, 5))
    output.flush()
    output.add(*part(0, 0, 3))

    with pytest.raises(OutputError, match="UNIQUE"):
        output.flush()
    output.close()


def test_missing_rows_are_tried_again_if_asked(tmp_path):
    """A success with rows missing is run again, and stays until it succeeds again (R16, R204)."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, whole(0), (success(1, missing=4), rows(1, 0, 6)), whole(2))

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0, 1, 2]
        assert output.earlier == Earlier(mini_batches=3, items=26, rows=26, items_failed=4)
    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        assert list(output.done()) == [0, 2]
        assert output.earlier == Earlier(
            mini_batches=2, items=20, rows=20, missing={(1, None): (6, 4)}
        )


def test_a_retry_of_missing_rows_that_fails_changes_nothing(tmp_path):
    """Where a mini-batch does not succeed again, its earlier rows and counts hold."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, (success(0, missing=4), rows(0, 0, 6)), whole(1))

    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        output.add(failure(0, final=False))
        published = output.publish(tmp_path, "out.txt", order="input")
        totals = output.journal.totals()

    assert published.read_bytes() == rows(0, 0, 6) + rows(1)
    assert (totals.mini_batches_succeeded, totals.mini_batches_reused) == (2, 2)
    assert (totals.items_succeeded, totals.items_failed, totals.missing_rows) == (16, 4, 4)


def test_a_retry_of_missing_rows_that_succeeds_replaces_them(tmp_path):
    """The new rows take the place of the old ones, in order, once, also after a restart (R200)."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, (success(0, missing=4), rows(0, 0, 6)), whole(1))

    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        output.add(*whole(0))
        output.flush()
        totals = output.journal.totals()
        output.add(*whole(0))
        with pytest.raises(OutputError, match="UNIQUE"):
            output.flush()
    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        assert output.earlier == Earlier(mini_batches=2, items=20, rows=20)
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == rows(0) + rows(1)
    assert (totals.items_succeeded, totals.items_failed) == (20, 0)
    assert (totals.mini_batches_reused, totals.items_reused) == (1, 10)


def test_missing_rows_of_a_part_are_tried_again_with_that_part(tmp_path):
    """Of a split mini-batch no more is tried again than the parts of which rows are missing (R204)."""
    paths = RunPaths(tmp_path / "run")
    short = (success(0, (5, 10), missing=2), rows(0, 5, 8))
    sitting(paths, failure(0, final=False), part(0, 0, 5), short)

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0]
        assert output.earlier == Earlier(mini_batches=1, items=8, rows=8, items_failed=2)
    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        assert list(output.done()) == []
        assert output.earlier == Earlier(
            items=5, rows=5, parts={0: ((5, 10),)}, missing={(0, (5, 10)): (3, 2)}
        )
        output.add(*part(0, 5, 10))
        published = output.publish(tmp_path, "out.txt", order="input")
        totals = output.journal.totals()

    assert published.read_bytes() == rows(0)
    assert (totals.mini_batches, totals.items_succeeded, totals.items_failed) == (1, 10, 0)


def test_missing_rows_are_tried_again_beside_what_is_left(tmp_path):
    """That other items of the mini-batch fail, or were not run, keeps no missing row from it (R204)."""
    paths = RunPaths(tmp_path / "run")
    short = (success(0, (3, 7), missing=2), rows(0, 3, 5))
    sitting(paths, failure(0, final=False), part(0, 0, 2), failure(0, (2, 3)), short)

    with OutputWriter(paths, keep_rows=True, retry_missing=True) as output:
        assert output.earlier == Earlier(
            items=2,
            rows=2,
            parts={0: ((2, 3), (3, 7), (7, 10))},
            missing={(0, (3, 7)): (2, 2)},
        )
        output.add(failure(0, (2, 3)))
        output.add(*part(0, 3, 7))
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == rows(0, 0, 2) + rows(0, 3, 7)


@pytest.mark.parametrize(
    ("before", "meanwhile", "then"),
    [
        ([failure(0)], [], [(0, 10)]),
        ([failure(0)], [failure(0, final=False)], [(0, 10)]),
        ([failure(0)], [whole(0)], []),
        ([failure(0)], [success(0, missing=1)], [(0, 1)]),
        # A whole one that is split this time: with its first part it is not settled as a whole.
        ([failure(0)], [failure(0, final=False), part(0, 5, 10)], []),
        ([failure(0)], [failure(0, final=False), part(0, 5, 10), failure(0, (0, 5))], [(0, 5)]),
        # One in parts, of which nothing has succeeded, runs as a whole, and may be split otherwise.
        ([failure(0, (0, 5)), failure(0, (5, 10))], [], [(0, 5), (5, 5)]),
        ([failure(0, (0, 5)), failure(0, (5, 10))], [whole(0)], []),
        ([failure(0, (0, 5)), failure(0, (5, 10))], [failure(0)], [(0, 10)]),
        ([failure(0, (0, 5)), failure(0, (5, 10))], [part(0, 3, 4)], [(5, 5)]),
        ([failure(0, (0, 5)), failure(0, (5, 10))], [failure(0, (4, 6))], [(4, 2)]),
        # Failed parts that are neighbours run as one.
        ([part(0, 0, 8), failure(0, (8, 9)), failure(0, (9, 10))], [part(0, 8, 10)], []),
        ([part(0, 0, 8), failure(0, (8, 9)), failure(0, (9, 10))], [part(0, 9, 10)], [(8, 1)]),
    ],
)
def test_a_failure_stays_listed_until_its_items_are_settled_anew(tmp_path, before, meanwhile, then):
    """An item that failed is tried again, and is a failed one until then, however it was split (R201)."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, failure(0, final=False), *before)
    sitting(paths)  # ended before anything ran
    sitting(paths, *meanwhile)

    with OutputWriter(paths, keep_rows=True) as output:
        listed = [(each.first, each.items_failed) for each in output.journal.failures()]
        totals = output.journal.totals()
        settled = [each for each in output.journal.attempts() if each.final]

    assert listed == then
    assert totals.items_failed == sum(count for _, count in then)
    assert len({each.part is None for each in settled}) <= 1
    items = [item for each in settled for item in range(*(each.part or (0, ITEMS)))]
    assert len(items) == len(set(items))


def test_a_failure_of_before_is_no_success_of_before(tmp_path):
    """What failed before runs again: it is neither done nor counted, though it stays listed (R201)."""
    paths = RunPaths(tmp_path / "run")
    sitting(
        paths,
        whole(0),
        failure(1),
        failure(2, final=False),
        part(2, 0, 9),
        failure(2, (9, 10)),
        failure(3, final=False),
        failure(3, (0, 10)),
    )

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0]
        assert output.earlier == Earlier(mini_batches=1, items=19, rows=19, parts={2: ((9, 10),)})
        totals = output.journal.totals()

    assert (totals.mini_batches, totals.mini_batches_succeeded) == (4, 2)
    assert (totals.items_succeeded, totals.items_failed) == (19, 21)


def test_a_failure_of_this_sitting_is_settled_once(tmp_path):
    """Only what an earlier sitting left gives way (R200)."""
    paths = RunPaths(tmp_path / "run")
    sitting(paths, failure(0))
    output = OutputWriter(paths, keep_rows=True)
    output.add(failure(0))
    output.flush()
    output.add(*whole(0))

    with pytest.raises(OutputError, match="UNIQUE"):
        output.flush()
    output.close()


def test_reused_is_what_holds_of_all_sittings_before(tmp_path):
    """With each sitting, what was settled before it counts as reused."""
    paths = RunPaths(tmp_path / "run")
    reused = []

    for index in range(3):
        with OutputWriter(paths, keep_rows=True) as output:
            output.add(*whole(index))
            output.flush()
            reused.append(output.journal.totals().mini_batches_reused)

    assert reused == [0, 1, 2]


def test_errors_are_those_of_this_sitting(tmp_path):
    """What went wrong before a run was resumed is in the journal, but in no report of this sitting."""
    from prefect_parallelrun.models import AttemptError

    def why(kind: str) -> AttemptError:
        return AttemptError(category="exception", type=kind, message="bad", where="score.py:1")

    def failed(index: int, kind: str) -> AttemptRecord:
        return AttemptRecord(
            mini_batch=index,
            attempt=1,
            final=True,
            outcome=Outcome.FAILED,
            node="node000",
            process="process000",
            items_total=1,
            items_succeeded=0,
            items_failed=1,
            error=why(kind),
        )

    paths = RunPaths(tmp_path / "run")
    sitting(paths, failed(0, "ValueError"), failed(1, "KeyError"))

    with OutputWriter(paths, keep_rows=True) as output:
        output.add(failed(1, "KeyError"))
        output.flush()
        groups = output.journal.error_groups()
        attempts = sum(1 for _ in output.journal.attempts())

    assert [(group.type, group.count, group.first_mini_batch) for group in groups] == [
        ("KeyError", 1, 1)
    ]
    assert attempts == 3


def test_the_header_is_that_of_the_first_part(tmp_path):
    """Where parts disagree on the columns, those of the first items are taken (R103)."""
    with OutputWriter(RunPaths(tmp_path / "run"), keep_rows=True) as output:
        output.add(success(1), b"1\n", "b\n")
        output.add(success(0, (5, 10)), b"2\n", "b\n")
        output.add(success(0, (0, 5)), b"0\n", "a\n")
        published = output.publish(tmp_path, "out.txt", order="input")

    assert published.read_bytes() == b"a\n0\n2\n1\n"
