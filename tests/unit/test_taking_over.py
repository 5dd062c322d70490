from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sqlite3
import tempfile
import tracemalloc
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptError, AttemptRecord, Outcome
from prefect_parallelrun.output import schema, taking_over
from prefect_parallelrun.output.columns import Misfit, admission
from prefect_parallelrun.output.journal import Journal, place
from prefect_parallelrun.output.taking_over import take_over
from prefect_parallelrun.output.trouble import NotTaken
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report import attempt_arrays
from prefect_parallelrun.report.job_report import write_job_report
from prefect_parallelrun.report.summary import summarise
from prefect_parallelrun_runtime import encode

ITEMS = 6
ERROR = AttemptError(category="exception", type="ValueError", message="no", where="s.py:1 in run")


def attempt(
    mini_batch: int,
    part: tuple[int, int] | None = None,
    *,
    missing: int = 0,
    failed: bool = False,
    final: bool = True,
    items: int = ITEMS,
) -> AttemptRecord:
    total = items if part is None else part[1] - part[0]
    done = 0 if failed else total - missing
    return AttemptRecord(
        mini_batch=mini_batch,
        attempt=1,
        part=part,
        final=final,
        outcome=Outcome.FAILED if failed else Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=total,
        items_succeeded=done,
        items_failed=total - done if final else 0,
        rows=done,
        started_at=1.7e9,
        elapsed_s=0.5,
        error=ERROR if failed else None,
    )


def rows(content: int, first: int = 0, stop: int = ITEMS) -> bytes:
    """Return the rows of a mini-batch, by what it is made of and not by its index."""
    return b"".join(b"%d.%d\n" % (content, item) for item in range(first, stop))


def add(output: OutputWriter, index: int, content: int, fate: str) -> None:
    """Settle a mini-batch, or part of it."""
    if fate == "whole":
        output.add(attempt(index), rows(content))
    elif fate == "no rows":
        output.add(attempt(index, missing=ITEMS), b"")
    elif fate == "row missing":
        output.add(attempt(index, missing=1), rows(content, 0, ITEMS - 1))
    elif fate == "failed":
        output.add(attempt(index, failed=True, final=False))
        output.add(attempt(index, failed=True))
    elif fate in ("split", "split, some failed", "split, some left"):
        output.add(attempt(index, failed=True, final=False))
        output.add(attempt(index, (3, ITEMS)), rows(content, 3, ITEMS))
        if fate == "split, some failed":
            output.add(attempt(index, (0, 3), failed=True))
        elif fate == "split":
            output.add(attempt(index, (0, 3)), rows(content, 0, 3))


def folder_of(root: Path) -> RunPaths:
    root.mkdir()
    return RunPaths(root)


def run_of(root: Path, *fates: str) -> RunPaths:
    paths = RunPaths(root)
    with OutputWriter(paths, keep_rows=True) as output:
        for index, fate in enumerate(fates):
            add(output, index, index, fate)
    return paths


FATES = ["whole", "no rows", "row missing", "failed", "split", "split, some failed", "split, some left", "open"]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(
    fates=st.lists(st.sampled_from(FATES), max_size=12),
    order=st.randoms(use_true_random=False),
    edit=st.data(),
    retry_missing=st.booleans(),
)
def test_what_still_holds_is_taken_and_the_rest_runs(fates, order, edit, retry_missing):
    """However a plan was changed, the output has the rows as if all had run, and what was done is not
    run again: whole, or the parts of it that succeeded (R202)."""
    with tempfile.TemporaryDirectory() as folder:
        base, paths = folder_of(Path(folder, "base")), folder_of(Path(folder, "new"))
        with OutputWriter(base, keep_rows=True) as output:
            for index in order.sample(range(len(fates)), len(fates)):
                add(output, index, index, fates[index])
        # The new plan: for each mini-batch what it is made of; what is not below 100 is new.
        plan = []
        for index in range(len(fates) + 1):
            plan += [100 + len(plan)] * edit.draw(st.integers(0, 1))
            if index < len(fates) and edit.draw(st.booleans()):
                plan.append(index)
        kept = [(content, here) for here, content in enumerate(plan) if content < 100]

        take_over(base, paths, kept, keep_rows=True)

        with OutputWriter(paths, keep_rows=True, retry_missing=retry_missing) as output:
            done = set(output.done())
            whole = {"whole", "split"} | (set() if retry_missing else {"no rows", "row missing"})
            assert done == {here for there, here in kept if fates[there] in whole}
            assert output.earlier.mini_batches == len(done)
            split = {here for there, here in kept if fates[there].startswith("split, some")}
            assert output.earlier.parts.keys() == split
            before = summarise(output.journal)
            assert (before.attempts, before.errors_counted) == (0, 0)
            for here, content in enumerate(plan):
                if here in split:
                    assert output.earlier.parts[here] == ((0, 3),)
                    output.add(attempt(here, (0, 3)), rows(content, 0, 3))
                elif here not in done:
                    output.add(attempt(here), rows(content))
            found = output.publish(Path(folder), "out", order="input").read_bytes()
            after = summarise(output.journal)

        missing = {"no rows": ITEMS, "row missing": 1} if not retry_missing else {}
        left_out = {here: missing.get(fates[there], 0) for there, here in kept}
        assert found == b"".join(
            rows(content, 0, ITEMS - left_out.get(here, 0)) for here, content in enumerate(plan)
        )
        assert after.mini_batches.succeeded == len(plan)
        assert after.mini_batches.reused == len(done)
        assert after.items.succeeded + after.items.failed == ITEMS * len(plan)
        assert after.attempts == len(plan) - len(done)


VALUES = {
    "a": [None, 1, 0.5],
    "b": [None, 1, 2**60],
    "c": [None, "text"],
    "d": [None, {"x": 1}, {"x": None, "y": 0.5}, {}],
    "e": [None, [], [1], [None, 0.5]],
}


NO_ROWS = pd.DataFrame({"a": pd.Series([], dtype="float64"), "c": pd.Series([], dtype="object")})


def returned():
    """Return what `run()` may return: rows of dicts, rows with pandas' own types, or frames without rows."""
    row = st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}
    ).filter(bool)
    frames = [
        pd.DataFrame({"f": pd.array([1, None], "Int64")}),
        NO_ROWS,
        pd.DataFrame({"g": pd.to_datetime(["2026-01-01"])}),
        [],
    ]
    return st.one_of(st.lists(row, min_size=1, max_size=2), st.sampled_from(frames))


def parquet(
    paths: RunPaths, results: dict[int, object], folder: Path, order: list[int]
) -> pq.ParquetFile:
    """Run what is not done yet in this order, and publish."""
    with OutputWriter(paths, keep_rows=True) as output:
        admit = admission("parquet", output.journal)
        assert admit is not None
        done = set(output.done())
        for index in order:
            if index in done:
                continue
            _, data, columns = encode.encode(
                results[index], "append_row", {"header": False, "to_csv": {}}, "parquet"
            )
            if columns is not None:
                columns = admit(columns, place(index), data)
            output.add(attempt(index), data, columns)
        target = output.publish(
            folder / "out", paths.root.name, order="input", output_format="parquet"
        )
    return pq.ParquetFile(target)


@settings(max_examples=15, deadline=None)
@given(
    before=st.lists(returned(), min_size=1, max_size=6),
    edits=st.lists(st.one_of(st.none(), returned()), min_size=6, max_size=6),
    gone=st.sets(st.integers(0, 5)),
    order=st.randoms(use_true_random=False),
)
@example(before=[[{"a": 1, "b": 1}], [{"b": 1, "a": 1}]], edits=[None] * 6, gone={0}, order=None)
@example(before=[[{"a": 0.5}], [{"a": 1}], [{"c": 1}]], edits=[None] * 6, gone={0, 2}, order=None)
@example(
    before=[[{"a": 2**60}], [{"a": 1}]], edits=[[{"a": 0.5}], *[None] * 5], gone={0}, order=None
)
@example(before=[NO_ROWS, NO_ROWS], edits=[None] * 6, gone={0}, order=None)
def test_a_parquet_output_is_the_one_of_a_whole_run(before, edits, gone, order):
    """Columns, their order and their types are those of the rows that are there, and nothing is left of
    rows that are not, though the journal kept what they told of the columns (R202, R221)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def shuffled(count: int) -> list[int]:
            return list(range(count)) if order is None else order.sample(range(count), count)

        plan: list[tuple[int | None, object]] = []
        for index, result in enumerate(before):
            if edits[index] is not None:
                plan.append((None, edits[index]))
            if index not in gone:
                plan.append((index, result))
        base, paths = folder_of(folder / "base"), folder_of(folder / "new")
        results = {here: result for here, (_, result) in enumerate(plan)}
        try:
            parquet(base, dict(enumerate(before)), folder, shuffled(len(before)))
            whole = parquet(RunPaths(folder / "whole"), results, folder, list(results))
        except Misfit:
            assume(False)

        kept = [(there, here) for here, (there, _) in enumerate(plan) if there is not None]
        take_over(base, paths, kept, keep_rows=True, output_format="parquet")
        found = parquet(paths, results, folder, shuffled(len(plan)))

        assert found.schema_arrow.equals(whole.schema_arrow, check_metadata=True)
        assert found.read().equals(whole.read())


def test_of_the_other_run_only_what_it_did_counts(tmp_path):
    """What was taken over is no attempt of this run, took none of its time and has no node of it: the job
    report tells of which run it is (R120, R202)."""
    base = run_of(tmp_path / "base", "whole", "split", "failed", "whole")
    paths = folder_of(tmp_path / "new")
    take_over(base, paths, [(0, 0), (1, 2), (2, 3)], keep_rows=True)
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(attempt(1), rows(101))

    with Journal(paths.journal) as journal:
        summary = summarise(journal)
        pages = list(attempt_arrays.pages(journal, 1.7e9))
        write_job_report(paths, journal, base="the-base")
        journal.check()

    assert (summary.attempts, summary.errors) == (1, ())
    assert [len(page.process) for page in pages] == [1]
    with paths.processed_mini_batches.open(newline="") as file:
        table = list(csv.DictReader(file))
    told = [
        (row["Mini-batch Id"], row["Picked Count"], row["Node"], row["Succeeded"], row["Status"])
        for row in table
    ]
    assert told == [
        ("0", "0", "", "6", "succeeded"),
        ("2", "0", "", "3", "succeeded"),
        ("2", "0", "", "3", "succeeded"),
        ("1", "1", "node000", "6", "succeeded"),
    ]
    details = [json.loads(row["Mini-batch Detail"]).get("taken_over_of") for row in table]
    assert details == ["the-base", "the-base", "the-base", None]
    with paths.node_summary.open(newline="") as file:
        assert [(row["Node"], row["Attempts"]) for row in csv.DictReader(file)] == [
            ("node000", "1")
        ]


def test_a_base_may_have_a_base(tmp_path):
    """What was taken over once is taken over again, and the runs before may be gone (R202)."""
    first = run_of(tmp_path / "0", "whole", "split", "whole")
    second, third = folder_of(tmp_path / "1"), folder_of(tmp_path / "2")
    take_over(first, second, [(0, 0), (1, 2)], keep_rows=True)
    first.journal.unlink()
    with OutputWriter(second, keep_rows=True) as output:
        output.add(attempt(1), rows(101))
    take_over(second, third, [(2, 0), (1, 1)], keep_rows=True)

    with OutputWriter(third, keep_rows=True) as output:
        assert list(output.done()) == [0, 1]
        published = output.publish(tmp_path, "out", order="input").read_bytes()

    assert published == rows(1) + rows(101)


def test_rows_are_copied_by_the_system_and_else_in_order(tmp_path, monkeypatch):
    """Large rows and thousands of small ones between them come whole, also where the file system cannot
    copy by itself, as between two of them (R202)."""
    base = RunPaths(tmp_path / "base")
    contents = [b"%d " % k * (400_000 if k % 50 == 0 else k % 7) + b"\n" for k in range(400)]
    with OutputWriter(base, keep_rows=True) as output:
        for index, content in enumerate(contents):
            output.add(attempt(index), content)
    kept = [(there, here) for here, there in enumerate(k for k in range(400) if k % 3)]
    calls = []

    def copied(name: str) -> bytes:
        paths = folder_of(tmp_path / name)
        take_over(base, paths, kept, keep_rows=True)
        with OutputWriter(paths, keep_rows=True) as output:
            return output.publish(tmp_path / "out", name, order="input").read_bytes()

    assert copied("one") == b"".join(contents[there] for there, _ in kept)

    def refuse(*args: object, **_: object) -> int:
        calls.append(args)
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert copied("two") == b"".join(contents[there] for there, _ in kept)
    assert calls


@pytest.mark.parametrize(
    "damage", ["rows lost", "journal damaged", "journal gone", "older version"]
)
def test_of_a_damaged_run_nothing_is_taken(tmp_path, damage):
    """A run that cannot be trusted is no base, and says why; the new run begins with nothing (R202)."""
    base = run_of(tmp_path / "base", *["whole"] * 300)
    if damage == "rows lost":
        os.truncate(base.partial, base.partial.stat().st_size - 1)
    elif damage == "journal damaged":
        with base.journal.open("r+b") as file:
            file.seek(2 * 4096)
            file.write(b"\xff" * 4096)
    elif damage == "journal gone":
        base.journal.unlink()
    else:
        with sqlite3.connect(base.journal) as connection:
            connection.execute(
                "UPDATE meta SET value = ? WHERE key = 'version'", (schema.VERSION - 1,)
            )
        connection.close()
    paths = folder_of(tmp_path / "new")

    with pytest.raises(NotTaken, match="base"):
        take_over(base, paths, [(0, 0)], keep_rows=True)

    assert list(paths.root.iterdir()) == []


def test_one_that_is_ended_on_the_way_leaves_nothing(tmp_path):
    """Cancelled half-way, there is nothing in the journal, and no rows that take space (R202)."""
    base = run_of(tmp_path / "base", "whole", "whole")
    paths = folder_of(tmp_path / "new")

    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == ends_at:
            raise KeyboardInterrupt

    for ends_at in (1, 2, 3):  # noqa: B007  (`look` uses it)
        looks = 0
        with pytest.raises(KeyboardInterrupt):
            take_over(base, paths, [(0, 0), (1, 1)], keep_rows=True, look=look)
        assert not paths.partial.exists()
        with Journal(paths.journal) as journal:
            assert journal.totals().mini_batches == 0

    take_over(base, paths, [(0, 1)], keep_rows=True)
    taking_over.discard(paths)
    assert list(paths.root.iterdir()) == []
    take_over(base, paths, [(0, 0), (1, 1)], keep_rows=True)
    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0, 1]


def test_a_run_that_goes_on_is_read_as_it_is(tmp_path):
    """Of a run that another driver is working on, what is in its journal is taken; it notices nothing."""
    base = RunPaths(tmp_path / "base")
    with OutputWriter(base, keep_rows=True) as output:
        add(output, 0, 0, "whole")
        output.flush()
        paths = folder_of(tmp_path / "new")
        take_over(base, paths, [(0, 0), (1, 1)], keep_rows=True)
        add(output, 1, 1, "whole")
        output.flush()
        assert list(output.done()) == [0, 1]

    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == [0]
        assert output.publish(tmp_path, "out", order="input").read_bytes() == rows(0)


def test_a_script_that_writes_by_itself_left_no_rows(tmp_path):
    """Of `summary_only` there is nothing to copy but what the journal says (R202)."""
    base = RunPaths(tmp_path / "base")
    with OutputWriter(base, keep_rows=False) as output:
        output.add(attempt(0))
    paths = folder_of(tmp_path / "new")

    take_over(base, paths, [(0, 0)], keep_rows=False)

    assert not paths.partial.exists()
    with OutputWriter(paths, keep_rows=False) as output:
        assert list(output.done()) == [0]


def test_the_disk_that_is_full_is_told(tmp_path, monkeypatch):
    """Where the rows cannot be written, it is an error of the run folder, and the copy is removed."""
    base = run_of(tmp_path / "base", "whole")
    paths = folder_of(tmp_path / "new")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(taking_over, "write_all", full)
    with pytest.raises(OutputError, match="Free some space") as caught:
        take_over(base, paths, [(0, 0)], keep_rows=True)

    assert not isinstance(caught.value, NotTaken)
    assert not paths.partial.exists()


def test_memory_does_not_grow_with_the_mini_batches(tmp_path):
    """Forty thousand mini-batches are taken over in three megabytes of Python's memory (R202)."""
    count = 40_000
    base = RunPaths(tmp_path / "base")
    with OutputWriter(base, keep_rows=True) as output:
        for index in range(count):
            output.add(attempt(index), b"row\n")
    paths = folder_of(tmp_path / "new")

    tracemalloc.start()
    take_over(base, paths, ((k, k) for k in range(count)), keep_rows=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 3 << 20
    assert paths.partial.stat().st_size == count * len(b"row\n")


def test_a_base_that_is_removed_on_the_way(tmp_path, monkeypatch):
    """Once its journal was read, the other run may be removed: its rows are held open (R202)."""
    base = run_of(tmp_path / "base", "whole", "whole")
    paths = folder_of(tmp_path / "new")
    real = taking_over._read

    def removed(*args):
        told = real(*args)
        shutil.rmtree(base.root)
        return told

    monkeypatch.setattr(taking_over, "_read", removed)
    take_over(base, paths, [(0, 0), (1, 1)], keep_rows=True)

    with OutputWriter(paths, keep_rows=True) as output:
        assert output.publish(tmp_path, "out", order="input").read_bytes() == rows(0) + rows(1)


@pytest.mark.parametrize("large", [False, True])
def test_rows_that_cannot_be_read(tmp_path, monkeypatch, large):
    """What is wrong with reading is wrong with the other run: nothing is taken, and this run begins (R202)."""
    base = RunPaths(tmp_path / "base")
    with OutputWriter(base, keep_rows=True) as output:
        output.add(attempt(0), b"row\n" * (500_000 if large else 1))
    paths = folder_of(tmp_path / "new")

    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    monkeypatch.setattr(os, "copy_file_range", fails)
    with pytest.raises(NotTaken, match="Input/output error"):
        take_over(base, paths, [(0, 0)], keep_rows=True)

    assert not paths.partial.exists()
    with OutputWriter(paths, keep_rows=True) as output:
        assert list(output.done()) == []


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\xff" * 40, None])
def test_parquet_rows_that_are_damaged(tmp_path, damage):
    """Bytes that are no rows any more are no rows to take, whatever Arrow makes of them (R202)."""
    base, paths = folder_of(tmp_path / "base"), folder_of(tmp_path / "new")
    parquet(base, {0: pd.DataFrame({"n": ["a"]})}, tmp_path, [0])
    content = base.partial.read_bytes()
    if damage is None:
        content = b"\xff" * len(content)
    else:
        content = content[:20] + damage + content[20 + len(damage) :]
    base.partial.write_bytes(content)

    with pytest.raises(NotTaken, match="its rows are damaged"):
        take_over(base, paths, [(0, 0)], keep_rows=True, output_format="parquet")

    assert not paths.partial.exists()
    with Journal(paths.journal) as journal:
        assert journal.totals().mini_batches == 0
