"""Which run folders are removed, and what never is."""

from __future__ import annotations

import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.housekeeping import Rules, judge, remove
from prefect_parallelrun.models import AttemptRecord, Outcome
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.lock import RunLock
from prefect_parallelrun.output.recorder import Entry, Recorder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.run_record import CANCELLED, FAILED, RUNNING, RunRecord

ALL = Rules(keep=0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(folder))
    return folder


@pytest.fixture
def make(root):
    """Return a function that makes a run folder: `make("02", "Failed", done=True)`."""

    def one(day, state="Completed", *, fingerprint=None, done=False, step="score-files"):
        run_id = f"202601{day}T000000000-aaaaaaaa-0000"
        paths = RunPaths(root / step / run_id)
        paths.logs.mkdir(parents=True)
        paths.driver_log.write_text("x" * 10_000)
        paths.token.write_text(run_id)
        paths.lock.touch()
        RunRecord(
            step=step,
            run_id=run_id,
            fingerprint=day if fingerprint is None else fingerprint,
            started_at=datetime.now(UTC),
            state=state,
            output="out",
        ).write(paths)
        if done:
            recorder = Recorder(paths.journal)
            recorder.record([Entry(_attempt(), None, None, None)])
            recorder.close()
        return paths

    return one


def _attempt() -> AttemptRecord:
    return AttemptRecord(
        mini_batch=0,
        attempt=1,
        final=True,
        outcome=Outcome.SUCCEEDED,
        node="node000",
        process="process000",
        items_total=1,
        items_succeeded=1,
        items_failed=0,
    )


def days(verdicts) -> list[str]:
    """Return the days of those that go, in order."""
    return [one.run_id[6:8] for one in verdicts if one.kept is None]


def test_the_newest_completed_stays(make):
    """Whatever came after it: it is what the next run is compared with, and reused from."""
    for day in ("01", "02"):
        make(day)
    make("03", FAILED)

    assert days(judge(ALL)) == ["03", "01"]
    assert days(judge(Rules(keep=0, everything=True))) == ["03", "02", "01"]


@pytest.mark.parametrize("state", [FAILED, CANCELLED, RUNNING, "Completed with 2 failed items"])
def test_what_can_be_resumed_stays(make, state):
    """Only the newest of a fingerprint can be, and only if something in it is done."""
    make("01", state, fingerprint="f", done=True)
    make("02", state, fingerprint="f", done=True)
    make("03", state, fingerprint="g")
    make("04")

    assert days(judge(ALL)) == ["03", "01"]
    assert days(judge(Rules(keep=0, everything=True))) == ["04", "03", "02", "01"]


def test_what_a_driver_works_on_stays(make):
    """It is never removed, whatever was asked for, nor one that a driver takes in the meantime."""
    first, other = make("01", RUNNING), make("02", RUNNING)
    everything = Rules(keep=0, everything=True)
    with RunLock(first):
        verdicts = list(judge(everything))
        assert days(verdicts) == ["02"]
        assert verdicts[1].kept == "a driver works on it"
        with RunLock(other), pytest.raises(OutputError, match="being worked on"):
            remove(verdicts[0])
    assert other.record.exists()
    assert days(judge(everything)) == ["02", "01"]


def test_the_newest_ones_and_young_ones_stay(make):
    """`--keep` counts runs of each step; `--older-than` counts from when a run ended."""
    for day in ("01", "02", "03", "04"):
        make(day)
    old = make("01", step="other-step")
    make("02", step="other-step")

    assert days(judge(Rules(keep=2))) == ["02", "01"]
    assert days(judge(Rules(keep=0), "score-files")) == ["03", "02", "01"]
    month = Rules(keep=0, older_than=timedelta(days=30))
    assert days(judge(month)) == []
    moment = time.time() - 31 * 86400
    for file in (old.record, old.lock):
        os.utime(file, (moment, moment))
    assert days(judge(month)) == ["01"]


def test_only_the_run_folder_is_removed(make, tmp_path):
    """What links in it lead to stays, as does an output that lies elsewhere; what is no run stays too."""
    elsewhere = tmp_path / "out"
    elsewhere.mkdir()
    (elsewhere / "rows.txt").write_text("rows")
    paths, kept = make("01"), make("02")
    (paths.root / "link").symlink_to(elsewhere)
    (paths.logs / "file").symlink_to(elsewhere / "rows.txt")
    step = paths.root.parent
    (step / "of-a-user").mkdir()
    (step / "20260103T000000000-linked").symlink_to(kept.root)
    (step.parent / "linked-step").symlink_to(step)

    (verdict,) = [one for one in judge(ALL) if one.kept is None]
    remove(verdict)

    assert verdict.folder == paths.root
    assert 10_000 <= verdict.bytes < 200_000
    assert (elsewhere / "rows.txt").read_text() == "rows"
    assert sorted(one.name for one in step.iterdir()) == sorted(
        [kept.root.name, "of-a-user", "20260103T000000000-linked"]
    )


def test_one_that_was_half_removed(make, monkeypatch):
    """It is no run any more, and goes with the next call."""
    paths = make("01")
    make("02")
    (verdict,) = [one for one in judge(ALL) if one.kept is None]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", _refuses)
        with pytest.raises(OutputError, match=r"could not be removed: .*no space"):
            remove(verdict)
    assert not paths.root.exists()

    (left,) = [one for one in judge(Rules(keep=5)) if one.kept is None]
    assert left.state == "half removed"
    remove(left)
    assert [one.name for one in paths.root.parent.iterdir()] == ["20260102T000000000-aaaaaaaa-0000"]


def _refuses(path: Path) -> None:
    raise OSError(28, "no space", str(path))


def test_a_run_that_never_began(root):
    """Its driver was killed before it wrote anything down: there is nothing to keep."""
    folder = root / "score-files" / "20260101T000000000-aaaaaaaa-0000"
    folder.mkdir(parents=True)
    (folder / "token").write_text(folder.name)
    (folder / "lock").write_text("")

    (verdict,) = judge(ALL)
    assert (verdict.kept, verdict.state) == (None, "never begun")

    # What it had taken over is of another run.
    journal = RunPaths(folder).journal
    with closing(schema.open_for_writing(journal)) as connection:
        connection.execute(
            "INSERT INTO attempts (mini_batch, attempt, final, outcome, node, process, items_total,"
            " items_succeeded, items_failed, rows, started_at, elapsed_s, cpu_s, load_s, run_s)"
            " VALUES (0, 0, 1, 'succeeded', '', '', 1, 1, 0, 1, 0, 0, 0, 0, 0)"
        )
    (verdict,) = judge(ALL)
    assert (verdict.kept, verdict.state) == (None, "never begun")

    journal.write_bytes(b"no database" * 1000)
    (verdict,) = judge(ALL)
    assert (verdict.kept, verdict.state) == ("its record cannot be read", "unreadable")


@pytest.mark.parametrize("name", ["run.json", "lock", "token"])
def test_a_folder_of_somebody_else(root, name):
    """A file of a plain name is no sign of a run, whatever was asked for."""
    folder = root / "project" / "experiment-1"
    folder.mkdir(parents=True)
    (folder / name).write_text('{"lr": 1}')

    assert list(judge(Rules(keep=0, everything=True))) == []


def test_a_record_that_cannot_be_read(make):
    """Nobody knows what such a run is, be it the newest that completed, so it goes with all others only."""
    make("01")
    damaged, lost = make("02"), make("03", done=True)
    damaged.record.write_text('{"lr": 1}')
    lost.record.unlink()
    foreign = make("04")
    foreign.record.write_text('{"lr": 1}')
    foreign.lock.unlink()

    why = {one.run_id[6:8]: (one.state, one.kept) for one in judge(ALL)}

    unreadable = ("unreadable", "its record cannot be read")
    assert why == {
        "04": unreadable,
        "03": unreadable,
        "02": unreadable,
        "01": ("Completed", "the newest completed run of its step"),
    }
    assert days(judge(Rules(keep=0, everything=True))) == ["03", "02", "01"]


def test_runs_that_no_step_takes_for_its_own(make):
    """After `resume --with-current-script` they have no fingerprint, and each can be gone on with."""
    make("01", FAILED, fingerprint="", done=True)
    make("02", RUNNING, fingerprint="", done=True)
    make("03", FAILED, fingerprint="")

    why = {one.run_id[6:8]: (one.state, one.kept) for one in judge(ALL)}

    assert why == {
        "03": (FAILED, None),
        "02": ("Interrupted", "it can be resumed"),
        "01": (FAILED, "it can be resumed"),
    }


def test_a_journal_that_cannot_be_read(make):
    """What is in it may be worth a repair."""
    paths = make("01", FAILED, done=True)
    paths.journal.write_bytes(b"no database" * 1000)

    (verdict,) = judge(ALL)

    assert verdict.kept == "it can be resumed"


def test_a_step_that_is_not_there(root):
    """It is named, and so is where it was looked for."""
    with pytest.raises(OutputError, match=r"'other' has no runs below .*runs"):
        list(judge(ALL, "other"))
