"""What must be left of a run so that it is gone on with, and what a sitting leaves that did nothing."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from prefect_parallelrun import reuse
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import retry_failed as retrying
from prefect_parallelrun.driver.reopening import NotResumable
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.errors import (
    ConfigError,
    EntryScriptError,
    OutputError,
    ParallelRunError,
    RunCancelled,
)
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.verify import verify
from prefect_parallelrun.run_record import RUNNING, RunRecord

FILES = 6
LOG = logging.getLogger("test")
ROWS = """
import os

def run(mini_batch):
    name = os.path.basename(mini_batch[0])
    if name == "3.txt":
        {then}
    return [name]
"""
WRITES = """
import os

def run(mini_batch):
    name = os.path.basename(mini_batch[0])
    if name == "3.txt":
        {then}
    with open(os.path.join({folder!r}, name), "w") as file:
        file.write(name)
    return mini_batch
"""
BAD = "raise ValueError('no such number')"


class Step:
    """A step over six files, one a mini-batch, that is found again by its real fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.data, self.source = folder / "data", folder / "source"
        self.data.mkdir()
        self.source.mkdir()
        for n in range(FILES):
            (self.data / f"{n}.txt").write_text(str(n))
        self.paths = RunPaths(folder / "runs" / "one")
        self.output = folder / "out"
        self.settings = {"mini_batch_size": 1, "process_count_per_node": 1, "run_max_try": 1}

    def rows(self, then="pass"):
        (self.source / "score.py").write_text(ROWS.format(then=then))

    def writes(self, then="pass", folder=None):
        self.settings["output_action"] = "summary_only"
        text = WRITES.format(then=then, folder=str(folder or self.output))
        (self.source / "score.py").write_text(text)

    def run(self, **settings):
        definition = StepDefinition(
            name="test-step",
            config=ParallelRunConfig(
                "score.py", source_directory=str(self.source), **self.settings, **settings
            ),
            inputs=(FileDataset.from_files(str(self.data)),),
            output=OutputFileDatasetConfig(destination=str(self.output)),
        )
        source = snapshot.digest(definition.config, leave_out=definition.left_out)
        parts = reuse.fingerprint_parts(
            definition,
            source_sha256=source.sha256,
            seen=reuse.data(definition, definition.list_inputs()),
        )
        return run_step(
            definition,
            run_folder=self.paths.root,
            run_id="one",
            fingerprint=reuse.step_fingerprint(definition.name, parts),
            source_sha256=source.sha256,
            log=LOG,
        )

    def run_in_vain(self):
        with pytest.raises(ParallelRunError, match="no such number"):
            self.run()

    def retry(self):
        return retrying.retry_failed(self.paths, log=LOG)

    @property
    def record(self):
        return RunRecord.read(self.paths)

    @property
    def findings(self):
        return verify(self.paths).findings

    def as_killed(self):
        """Make the run folder what `kill -9` leaves: nothing was noted at the end."""
        self.record.model_copy(update={"state": RUNNING}).write(self.paths)
        self.paths.manifest.unlink(missing_ok=True)


@pytest.fixture
def step(tmp_path):
    return Step(tmp_path)


# -- what a script itself wrote ------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda out: (out / "1.txt").unlink(),
        lambda out: (out / "1.txt").write_text(""),
    ],
    ids=["all gone", "one gone", "one changed"],
)
def test_files_of_the_script_that_are_lost(step, damage):
    """Nobody but the script can make them again, so such a run is not gone on with (R200, R201)."""
    step.writes(then=BAD)
    step.run_in_vain()
    before = step.record, step.paths.manifest.read_bytes()
    damage(step.output)
    left = sorted(os.listdir(step.output)) if step.output.exists() else None

    for again in (step.run, step.retry):
        with pytest.raises(
            NotResumable, match=r"gone or changed: .*Put it back, or start a new run"
        ):
            again()

    assert (step.record, step.paths.manifest.read_bytes()) == before
    assert (sorted(os.listdir(step.output)) if step.output.exists() else None) == left
    assert "not as they were" in step.findings[0]


def test_files_of_the_script_that_are_there(step):
    """With all of them in place, and some more, the run goes on, and only what failed runs (R201)."""
    step.writes(then=BAD)
    step.run_in_vain()
    assert step.findings == ()
    (step.output / "of somebody.txt").write_text("")
    first = (step.output / "1.txt").stat().st_mtime_ns

    step.writes()
    result = step.retry()

    assert (result.mini_batches.reused, result.items.failed) == (FILES - 1, 0)
    assert (step.output / "1.txt").stat().st_mtime_ns == first
    assert step.findings == ()


def test_files_lost_after_a_kill(step):
    """What a killed driver left is not known, but not nothing, where the script wrote something (R200)."""
    step.writes(then=BAD)
    step.run_in_vain()
    step.as_killed()
    for file in step.output.iterdir():
        file.unlink()

    with pytest.raises(NotResumable, match="there is no file"):
        step.run()


def test_a_script_that_writes_elsewhere_after_a_kill(step, tmp_path):
    """An output folder in which nothing ever was tells nothing: the run goes on (R201)."""
    (tmp_path / "elsewhere").mkdir()
    step.writes(then=BAD, folder=tmp_path / "elsewhere")
    step.run_in_vain()
    step.as_killed()

    with pytest.raises(ParallelRunError, match=f"{FILES - 1} of {FILES} mini-batches are done"):
        step.run()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_journal_without_rows_that_is_lost(step, damage):
    """Without the journal nobody knows what is done: it is not begun anew in silence (R200)."""
    step.writes()
    step.run()
    damage(step.paths.journal)

    with pytest.raises(OutputError, match=r"journal.sqlite is damaged: it is (gone|empty)"):
        step.run()
    assert not step.paths.journal.exists() or not step.paths.journal.stat().st_size


# -- sittings that did nothing -------------------------------------------------------------------


def test_a_typo_in_a_retry(step):
    """A script that cannot work is refused before anything, and the run is its step's still (R2, R204)."""
    step.rows(then=BAD)
    step.run_in_vain()
    before = step.record
    (step.source / "score.py").write_text("def run(mini_batch) return []")

    with pytest.raises(EntryScriptError, match="line 1"):
        step.retry()

    assert step.record == before


def test_a_retry_of_which_nothing_ran(step):
    """No row of the changed script is in the run, so it is its step's still, and can be retried (R204)."""
    step.rows(then=BAD)
    step.run_in_vain()
    before = step.record
    (step.source / "score.py").write_text("raise OSError('no model')\ndef run(mini_batch): pass")

    with pytest.raises(ParallelRunError, match="no model"):
        step.retry()
    after = step.record
    assert (after.fingerprint, after.source_sha256) == (before.fingerprint, before.source_sha256)

    step.rows()
    assert step.retry().items.failed == 0
    assert step.record.fingerprint == ""


@pytest.mark.parametrize("changed", [False, True])
def test_a_retry_that_is_interrupted(step, monkeypatch, changed):
    """It says what goes on: the step while the run is its own, else the retry; and that does (R204)."""
    mended, once = step.data.parent / "mended", step.data.parent / "once"
    step.settings["run_max_try"] = 2  # the first attempt of the retry settles nothing
    then = (
        f"open({str(once)!r}, 'a').close()\n        if not os.path.exists({str(mended)!r}): {BAD}"
    )
    step.rows(then=then)
    step.run_in_vain()
    once.unlink()
    if changed:
        (step.source / "more.py").write_text("")

    def stop():
        if once.exists():
            raise RunCancelled("enough")

    real = retrying.run_step
    monkeypatch.setattr(retrying, "run_step", lambda *a, **k: real(*a, watch=stop, **k))
    with pytest.raises(RunCancelled) as error:
        step.retry()
    monkeypatch.setattr(retrying, "run_step", real)
    mended.write_text("")

    says_retry = "run `parallelrun retry-failed one` again to go on" in str(error.value)
    says_step = "run the step again to go on" in str(error.value)
    assert (says_retry, says_step) == (changed, not changed)
    result = step.retry() if changed else step.run()
    assert result.items.failed == 0
    assert (result.mini_batches.reused, result.mini_batches.total) == (FILES - 1, FILES)


def test_a_sitting_that_fails_before_it_runs_anything(step):
    """It tells of its own trouble alone, and leaves reports and record as they were (R206)."""
    step.rows(then=BAD)
    assert step.run(error_threshold=-1).state == "Completed with 1 failed item"
    kept = step.paths.record, step.paths.job_result, step.paths.failed_items, step.paths.source
    before = [path.read_bytes() for path in kept]
    shutil.rmtree(step.output)
    step.output.write_text("a file")

    with pytest.raises(ConfigError, match="5 of 6 mini-batches are done and kept") as error:
        step.run(error_threshold=-1)

    assert "no such number" not in str(error.value)
    assert error.value.first_errors == ()
    assert [path.read_bytes() for path in kept] == before


def test_a_disk_that_is_full_when_a_sitting_begins(step, monkeypatch):
    """It says what is kept and how to go on, and leaves the run as it was (R206)."""
    step.rows(then=BAD)
    step.run_in_vain()
    before = step.record, step.paths.token.stat().st_mtime_ns, step.paths.source.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "take", full)
        with pytest.raises(OutputError, match="Free some space and run the step again"):
            step.run()
    with monkeypatch.context() as patch:
        patch.setattr("prefect_parallelrun.output.lock._write", full)
        with pytest.raises(OutputError, match="Free some space and run the step again"):
            step.run()

    after = step.record, step.paths.token.stat().st_mtime_ns, step.paths.source.read_bytes()
    assert after == before


# -- what a run is ------------------------------------------------------------------------------


def test_an_input_that_was_edited(step):
    """`verify` says so, although the files are the same ones (R208)."""
    step.rows()
    step.run()
    assert step.findings == ()
    (step.data / "2.txt").write_text("something else")

    assert step.findings == ("A file of the input, or of a side input, was changed since the run.",)


def test_an_output_folder_whose_name_is_no_text(step, tmp_path):
    """File names are bytes: a run with such an output completes, and is found whole (R208)."""
    step.output = tmp_path / os.fsdecode(b"out \xff")
    step.rows()
    step.run()

    assert (step.output / "parallel_run_step.txt").read_text().startswith("0.txt\n")
    assert step.record.output == str(step.output)
    assert step.findings == ()
    assert step.run().reused
