"""A run in several sittings: what failed is counted, listed and tried again, whichever sitting it was."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from prefect_parallelrun.errors import ErrorThresholdExceeded
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.verify import verify
from prefect_parallelrun.run_record import RunRecord
from tests.dask.conftest import Runner, lines, write_numbers

ONE_TRY = {"run_max_try": 1, "process_count_per_node": 1}


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """A folder of 20 text files, 00.txt to 19.txt, each with its number."""
    return write_numbers(tmp_path / "twenty", 20)


def script(calls: Path, body: str) -> str:
    """Return a script that writes down the names of each call, and goes on with `body`."""
    head = f"""\
    import os
    def run(mini_batch):
        names = [os.path.basename(path)[:2] for path in mini_batch]
        with open({str(calls)!r}, "a") as log:
            log.write(" ".join(names) + "\\n")
    """
    return textwrap.dedent(head) + textwrap.indent(textwrap.dedent(body), "    ")


def called(calls: Path) -> list[list[str]]:
    """Return the names of each call since the last look."""
    found = [line.split() for line in calls.read_text().splitlines()] if calls.exists() else []
    calls.unlink(missing_ok=True)
    return found


def failed_items(paths: RunPaths) -> list[tuple[str, int]]:
    """Return reason and count of each record of the list of failed items."""
    if not paths.failed_items.exists():
        return []
    records = map(json.loads, paths.failed_items.read_text().splitlines())
    return [(record["reason"], record["count"]) for record in records]


def test_missing_rows_of_parts_count_in_every_sitting(run: Runner, twenty: Path, tmp_path: Path):
    """A run with more failed items than its threshold never completes, however often it is run: parts
    of which rows are missing are tried again, and count (R16, R26, R203)."""
    folder, calls = tmp_path / "run", tmp_path / "calls"
    text = script(
        calls,
        """\
        if len(names) > 5: raise ValueError("too many")
        return names[:-1]
        """,
    )
    settings = dict(ONE_TRY, mini_batch_size=20, isolate_failures=True, error_threshold=3)

    for sitting in range(3):
        with pytest.raises(ErrorThresholdExceeded, match="4 items failed; error_threshold=3"):
            run(text, twenty, run_folder=folder, **settings)
        assert RunRecord.read(RunPaths(folder)).state == "Failed", sitting
        assert called(calls)
    result = run(text, twenty, run_folder=folder, **{**settings, "error_threshold": 9})
    again = [names for names in called(calls) if len(names) <= 5]

    assert result.items.succeeded + result.items.failed == 20
    assert len(again) == result.items.failed  # one row is missing of each part
    assert verify(RunPaths(folder)).findings == ()


def test_the_journal_has_the_last_word_on_thresholds(run: Runner, twenty: Path, tmp_path: Path):
    """R100: a sitting that has nothing left to run does not complete a run that failed for its totals."""
    folder, calls = tmp_path / "run", tmp_path / "calls"
    text = script(
        calls,
        """\
        if "00" in names and len(names) > 1: raise ValueError("too many")
        return [name for name in names if name >= "02"]
        """,
    )
    settings = dict(
        ONE_TRY,
        mini_batch_size=2,
        isolate_failures=True,
        error_threshold=-1,
        allowed_failed_count=0,
    )

    tried = []
    for _ in range(3):
        with pytest.raises(
            ErrorThresholdExceeded, match="1 mini-batch failed; allowed_failed_count"
        ):
            run(text, twenty, run_folder=folder, **settings)
        assert RunRecord.read(RunPaths(folder)).state == "Failed"
        tried.append(called(calls))

    assert all(names in tried[0] for names in (["00", "01"], ["00"], ["01"]))
    assert not any("00" in names for names in tried[1])
    assert tried[2] == []


def test_a_missing_row_is_tried_again_beside_an_item_that_fails(
    run: Runner, twenty: Path, tmp_path: Path
):
    """R203, R204: parts are tried again one by one; a bad item keeps no other from being mended."""
    folder, calls, mended = tmp_path / "run", tmp_path / "calls", tmp_path / "mended"
    text = script(
        calls,
        f"""\
        if "07" in names: raise ValueError("poison")
        return [name for name in names if name != "12" or os.path.exists({str(mended)!r})]
        """,
    )
    settings = dict(ONE_TRY, mini_batch_size=20, isolate_failures=True, error_threshold=5)

    first = run(text, twenty, run_folder=folder, **settings)
    called(calls)
    mended.touch()
    second = run(text, twenty, run_folder=folder, **settings)
    tried = called(calls)

    assert (first.items.failed, second.items.failed) == (2, 1)
    assert len(tried) == 2
    assert ["07"] in tried
    assert all("12" in names or names == ["07"] for names in tried)
    assert lines(second) == [f"{n:02d}" for n in range(20) if n != 7]
    assert failed_items(RunPaths(folder)) == [("exception", 1)]
    assert verify(RunPaths(folder)).findings == ()


def test_failures_stay_listed_when_a_sitting_ends_before_they_ran(
    run: Runner, twenty: Path, tmp_path: Path
):
    """R201, R204: a sitting that is ended early loses nothing: not the rows, nor what failed, and why."""

    folder, calls, mended = tmp_path / "run", tmp_path / "calls", tmp_path / "mended"
    paths = RunPaths(folder)
    text = script(
        calls,
        f"""\
        if names[0] in ("02", "05") and not os.path.exists({str(mended)!r}): raise ValueError("bad")
        return names
        """,
    )
    settings = dict(ONE_TRY, mini_batch_size=1, error_threshold=3)

    first = run(text, twenty, run_folder=folder, **settings)
    before = paths.failed_items.read_bytes()
    called(calls)
    looks = iter([None])

    def later() -> None:
        next(looks)  # the first look is before the journal is opened, the second after

    for watch in (lambda: next(iter([])), later):
        with pytest.raises(StopIteration):
            run(text, twenty, run_folder=folder, watch=watch, **settings)
        assert paths.failed_items.read_bytes() == before
        assert verify(paths).findings == ()
        assert verify(paths).closing == "in 20 = out 18 + failed 2 (items)"
        listed = first.failed_items()
        assert listed is not None
        names = [Path(file.path).name for file in listed.list_files()]
        assert names == ["02.txt", "05.txt"]

    calls.unlink(missing_ok=True)
    mended.touch()
    last = run(text, twenty, run_folder=folder, **settings)

    assert sorted(called(calls)) == [["02"], ["05"]]
    assert (last.state, last.items.reused) == ("Completed", 18)
    assert lines(last) == [f"{n:02d}" for n in range(20)]
    assert failed_items(paths) == []


def test_what_failed_as_a_whole_may_be_settled_in_parts(run: Runner, twenty: Path, tmp_path: Path):
    """R203: with `isolate_failures` given later on, the good items of a failed mini-batch are found."""
    folder, calls = tmp_path / "run", tmp_path / "calls"
    text = script(calls, 'if "07" in names: raise ValueError("poison")\nreturn names\n')
    settings = dict(ONE_TRY, mini_batch_size=10, error_threshold=10)

    whole = run(text, twenty, run_folder=folder, **settings)
    parts = run(text, twenty, run_folder=folder, isolate_failures=True, **settings)

    assert (whole.items.failed, parts.items.failed) == (10, 1)
    assert lines(parts) == [f"{n:02d}" for n in range(20) if n != 7]
    assert failed_items(RunPaths(folder)) == [("exception", 1)]
    assert verify(RunPaths(folder)).findings == ()


def test_a_worse_retry_of_missing_rows_takes_nothing_away(
    run: Runner, twenty: Path, tmp_path: Path
):
    """R16, R204: where the next attempt returns even fewer rows, those there were hold."""
    folder, calls, worse = tmp_path / "run", tmp_path / "calls", tmp_path / "worse"
    text = script(
        calls,
        f"""\
        if "12" not in names: return names
        return names[:2] if os.path.exists({str(worse)!r}) else names[:4]
        """,
    )
    settings = dict(ONE_TRY, mini_batch_size=5, error_threshold=5)

    first = run(text, twenty, run_folder=folder, **settings)
    rows = lines(first)
    worse.touch()
    second = run(text, twenty, run_folder=folder, **settings)

    assert (first.items.failed, second.items.failed) == (1, 1)
    assert second.attempts == first.attempts + 1
    assert lines(second) == rows
    assert verify(RunPaths(folder)).findings == ()
