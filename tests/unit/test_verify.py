from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from prefect_parallelrun import FileDataset, ParallelRunConfig, manifest, reuse
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.models import AttemptError, AttemptRecord, Outcome
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.writer import OutputWriter
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.failed_items import write_failed_items
from prefect_parallelrun.report.verify import Verification, verify
from prefect_parallelrun.run_record import RunRecord, keep_definition

ITEMS = 10
MINI_BATCHES = 4


def success(
    mini_batch: int, part: tuple[int, int] | None = None, *, missing: int = 0
) -> AttemptRecord:
    total = ITEMS if part is None else part[1] - part[0]
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
    )


def failure(
    mini_batch: int, part: tuple[int, int] | None = None, *, final: bool = True
) -> AttemptRecord:
    total = ITEMS if part is None else part[1] - part[0]
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
        error=AttemptError(category="exception", type="ValueError", message="bad"),
    )


def rows(mini_batch: int, part: tuple[int, int] | None = None) -> bytes:
    return b"".join(b"%d.%d\n" % (mini_batch, item) for item in range(*(part or (0, ITEMS))))


def record_of(paths: RunPaths, **changes) -> RunRecord:
    fields = {
        "step": "predict",
        "run_id": paths.root.name,
        "fingerprint": "f" * 40,
        "started_at": datetime(2026, 8, 4, tzinfo=UTC),
        "state": "Completed with 11 failed items",
        "kind": "file",
        "mini_batches": MINI_BATCHES,
        "items": MINI_BATCHES * ITEMS,
        "output": str(paths.root.parent / "out"),
        "append_row_file_name": "out.txt",
    }
    return RunRecord(**(fields | changes))


def items_of(indices: Iterator[int]) -> Iterator[tuple[int, list[str]]]:
    for index in indices:
        yield index, [f"/data/{index}-{item}.png" for item in range(ITEMS)]


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A run of two sittings that holds: whole mini-batches, one that was split, one that failed."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(3), rows(3))
        output.add(failure(1, final=False))
        output.add(success(1, (5, 10)), rows(1, (5, 10)))
        output.add(failure(2))
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), rows(0))
        output.add(success(1, (0, 4)), rows(1, (0, 4)))
        output.add(failure(1, (4, 5)))
        output.add(failure(2))
        published = output.publish(tmp_path / "out", "out.txt", order="input")
        write_failed_items(paths, output.journal, items_of, kind="file")
    manifest.write(paths.root, tmp_path / "out", published)
    record_of(paths).write(paths)
    return paths


def change(paths: RunPaths, *statements: str) -> None:
    connection = sqlite3.connect(paths.journal, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def the_finding(paths: RunPaths) -> str:
    (finding,) = verify(paths).findings
    return finding


def test_a_run_that_holds_has_no_findings(run):
    """Nothing is found where all is as it should be, and every item is accounted for (R208)."""
    assert verify(run) == Verification(findings=(), closing="in 40 = out 29 + failed 11 (items)")


def test_a_run_that_goes_on_or_failed_need_not_be_whole(run, tmp_path):
    """What is not settled, or not published, is no fault of a run that has not completed."""
    (tmp_path / "out" / "out.txt").unlink()
    change(run, "DELETE FROM attempts WHERE mini_batch = 2")
    with Journal(run.journal) as journal:
        write_failed_items(run, journal, items_of, kind="file")
    for state in ("Running", "Failed", "Cancelled"):
        record_of(run, state=state).write(run)

        assert verify(run) == Verification(
            findings=(), closing="in 40 = out 29 + failed 1 + not run 10 (items)"
        )


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (
            ["DELETE FROM attempts WHERE mini_batch = 2"],
            "Not settled, though the run completed: mini-batch 2.",
        ),
        (
            ["DELETE FROM attempts WHERE mini_batch IN (2, 3)"],
            "Not settled, though the run completed: mini-batch 2 to 3.",
        ),
        (
            ["DELETE FROM attempts WHERE mini_batch = 1 AND first = 4"],
            "Not settled in part, though the run completed: mini-batch 1 (items 4 to 4).",
        ),
        (
            ["UPDATE attempts SET stop = 6 WHERE mini_batch = 1 AND first = 0 AND stop = 4"],
            "Settled twice in part: mini-batch 1 (items 4 to 5).",
        ),
        (
            ["UPDATE attempts SET final = 1, first = 7 WHERE mini_batch = 1 AND stop IS NULL"],
            "Settled as a whole and in parts as well: mini-batch 1.",
        ),
        (
            ["UPDATE attempts SET mini_batch = 9 WHERE mini_batch = 3"],
            "Mini-batch 9 is settled, but the plan has 4",
        ),
        (
            ["UPDATE attempts SET items_succeeded = 9 WHERE mini_batch = 0"],
            "Counted wrongly, items in all not being those that succeeded and failed: mini-batch 0.",
        ),
        (
            ["UPDATE attempts SET items_total = 9, items_succeeded = 9 WHERE mini_batch = 0"],
            "Not every item is accounted for: in 40 = out 28 + failed 11 + not run 1 (items)",
        ),
        (
            ["UPDATE attempts SET offset = NULL, length = NULL WHERE mini_batch = 0"],
            "Settled with success, but without rows: mini-batch 0.",
        ),
        (
            ["UPDATE attempts SET offset = offset + 1 WHERE mini_batch = 0"],
            "Rows that do not begin where those before them end: mini-batch 0, 1.",
        ),
        (
            ["UPDATE attempts SET items_failed = 8, items_succeeded = 2 WHERE mini_batch = 3"],
            "does not have the failures of the journal: they differ from mini-batch 3 on",
        ),
    ],
)
def test_a_journal_that_does_not_account_for_everything_is_found(run, statements, expected):
    """Every mini-batch once, parts without gap or overlap, items in as out and failed, rows in place."""
    change(run, *statements)

    assert any(expected in finding for finding in verify(run).findings), verify(run).findings


def test_a_damaged_journal_is_found(run):
    """Of a journal that contradicts itself nothing else is said, since it may be wrong."""
    with Journal(run.journal) as journal:
        ((page,),) = journal.select("SELECT rootpage FROM sqlite_master WHERE name = 'settled'")
    data = bytearray(run.journal.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
    run.journal.write_bytes(data)

    assert "journal.sqlite is damaged" in the_finding(run)
    assert "nothing can be counted" in verify(run).closing


def test_a_journal_that_is_gone_is_found(run):
    """A run folder that lost its journal does not hold."""
    run.journal.unlink()

    assert "there is no journal" in the_finding(run)


def test_many_faults_of_one_kind_are_one_sentence(tmp_path):
    """A thousand mini-batches that are not settled do not make a thousand lines."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=False) as output:
        for index in range(0, 400, 2):
            output.add(success(index))
    record_of(paths, state="Completed", mini_batches=500, items=2_000).write(paths)

    assert verify(paths).findings[0] == (
        "Not settled, though the run completed: mini-batch 1, 3, 5, 7, 9 and 195 more."
    )


def test_other_bytes_in_the_output_are_found(run, tmp_path):
    """The output is compared with the rows of the run byte for byte, up to its end."""
    output = tmp_path / "out" / "out.txt"
    whole = output.read_bytes()
    for changed, said in [
        (whole[:50] + b"X" + whole[51:], "differs from the rows of the run at byte 50."),
        (whole[:-1], f"differs from the rows of the run at byte {len(whole) - 1}."),
        (whole + b"X", f"goes on after the rows of the run, at byte {len(whole)}."),
        (b"", "differs from the rows of the run at byte 0."),
    ]:
        output.write_bytes(changed)
        assert said in the_finding(run)

    output.unlink()
    assert "cannot be compared with the rows of the run: [Errno 2]" in the_finding(run)
    output.write_bytes(whole)
    assert verify(run).findings == ()


def test_the_order_of_the_output_is_the_one_that_was_asked_for(run):
    """With another order recorded, the same rows are in the wrong place."""
    record_of(run, output_order="completion").write(run)

    assert "differs from the rows of the run at byte 0" in the_finding(run)


def test_a_header_belongs_to_the_output(tmp_path):
    """The header line at the top of the output is expected there."""
    paths = RunPaths(tmp_path / "run")
    with OutputWriter(paths, keep_rows=True) as output:
        output.add(success(0), rows(0), "x y\n")
        output.publish(tmp_path / "out", "out.txt", order="input")
    record_of(paths, state="Completed", mini_batches=1, items=10).write(paths)

    assert verify(paths).findings == ()


@pytest.mark.parametrize(("change_by", "reason"), [(-1, "too short"), (1, "too long")])
def test_a_partial_file_of_another_length_is_found(run, change_by, reason):
    """After a run the partial file ends where the journal says."""
    size = run.partial.stat().st_size
    os.truncate(run.partial, size + change_by)

    assert f"has {size + change_by} bytes; the journal has rows up to {size}" in (
        " ".join(verify(run).findings)
    ), reason


def test_a_changed_output_folder_is_found(run, tmp_path):
    """With summary_only the output must be as the manifest has it."""
    record_of(run, append_row_file_name=None).write(run)
    manifest.write(run.root, tmp_path / "out", None)
    assert verify(run).findings == ()

    (tmp_path / "out" / "more.txt").write_text("new")

    assert "are not as they were when the run ended" in the_finding(run)


def test_a_failed_item_that_is_listed_twice_is_found(run):
    """The list of failed items has each once, with the counts of the journal."""
    lines = run.failed_items.read_text().splitlines()
    again = json.loads(lines[-1]) | {"count": 0}
    run.failed_items.write_text("\n".join([*lines, json.dumps(again)]) + "\n")

    assert "has /data/2-9.png more than once" in the_finding(run)


@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_list_of_failed_items_that_lacks_some_is_found(run, left):
    """Failures that nobody is told of are found, and so is a list that is gone."""
    lines = run.failed_items.read_text().splitlines(keepends=True)
    run.failed_items.write_text("".join(lines[:left]))

    assert "does not have the failures of the journal" in the_finding(run)
    run.failed_items.unlink()
    assert "does not have the failures of the journal" in the_finding(run)


def test_a_list_of_failures_of_another_sitting_is_found(run):
    """A list that names what has not failed is stale."""
    change(run, "UPDATE attempts SET final = 0 WHERE outcome <> 'succeeded'")
    record_of(run, state="Failed").write(run)

    assert "they differ from mini-batch 1 on" in the_finding(run)


def test_a_list_of_failed_items_that_is_torn_is_found(run):
    """A line that is cut off is a finding, not a crash."""
    run.failed_items.write_text(run.failed_items.read_text()[:-20])

    assert "cannot be read: JSONDecodeError" in the_finding(run)


def test_a_state_that_hides_failures_is_found(run):
    """Failures that were tolerated end in a state that says so (R208)."""
    record_of(run, state="Completed").write(run)

    assert "The state is 'Completed', though some failed" in the_finding(run)


def test_an_input_that_changed_is_found(run, tmp_path):
    """The files of the input are listed again: those that are gone, and other numbers of them."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(MINI_BATCHES * ITEMS):
        (data / f"{number}.png").touch()
    (tmp_path / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    definition = StepDefinition(
        name="predict",
        config=ParallelRunConfig(entry_script=str(tmp_path / "score.py")),
        inputs=(FileDataset.from_files(data),),
    )
    keep_definition(run, definition)
    record_of(run, grouping=reuse.grouping(definition, definition.list_inputs())).write(run)
    assert verify(run).findings == ()

    (data / "0.png").rename(data / "other.png")
    assert "The input has other files" in the_finding(run)
    (data / "other.png").unlink()
    assert "The input has 39 files now; the run had 40." in the_finding(run)
    for path in data.iterdir():
        path.unlink()
    assert "The input is not as it was" in the_finding(run)


def test_a_definition_that_cannot_be_read_is_no_fault_of_the_run(run, caplog):
    """What another version wrote down is left out, and the log says so."""
    run.definition.write_bytes(b"not a pickle")

    assert verify(run).findings == ()
    assert "The input was not checked" in caplog.text


def test_what_is_no_run_folder_is_refused(tmp_path):
    """A folder without a record is named."""
    with pytest.raises(OutputError, match="no run folder"):
        verify(RunPaths(tmp_path))
