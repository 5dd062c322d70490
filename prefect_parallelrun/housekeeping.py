"""Removing old run folders (`parallelrun clean`), and never what somebody still needs."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prefect_parallelrun import settings
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output import schema
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.lock import RunLock, driver_of
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.report.status import INTERRUPTED
from prefect_parallelrun.run_record import RUNNING, RunRecord

_REMOVING = ".removing-"
"""Begins the name of a folder that is being removed: nobody takes it for a run any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one run folder."""

    folder: Path
    step: str
    run_id: str
    state: str
    bytes: int
    """What its files take, without those that lie elsewhere."""
    kept: str | None
    """Why it stays; None: it is removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which run folders stay."""

    keep: int
    """So many of the newest runs of each step stay, whatever they are."""
    older_than: timedelta | None = None
    """Runs that ended more recently stay."""
    everything: bool = False
    """Whether the newest completed run of a step, and runs that can be resumed or not be read, go too."""


def judge(rules: Rules, step: str | None = None) -> Iterator[Verdict]:
    """Yield what becomes of each run folder, newest first; removes nothing.

    Args:
        rules: which stay.
        step: of this step alone; None: of all.

    Raises:
        OutputError: there is no such step.
    """
    folders = settings.step_folders()
    if step is not None:
        folders = [one for one in folders if one.name == step]
        if not folders:
            raise OutputError(f"step {step!r} has no runs below {settings.run_root()}")
    for folder in folders:
        # What a link leads to lies elsewhere, and is somebody else's.
        if not folder.is_symlink():
            yield from _of_step(folder, rules)


def remove(verdict: Verdict) -> None:
    """Remove a run folder that `judge` said goes; what links in it lead to stays.

    Raises:
        OutputError: a driver has begun to work on it, or the file system refuses.
    """
    folder = verdict.folder
    try:
        if folder.name.startswith(_REMOVING):
            shutil.rmtree(folder)
            return
        # In one step it is no run any more; half a run folder is left to nobody.
        with RunLock(RunPaths(folder)):
            doomed = folder.rename(folder.with_name(f"{_REMOVING}{folder.name}"))
        shutil.rmtree(doomed)
    except OSError as error:
        raise OutputError(f"{folder} could not be removed: {error}") from error


def _of_step(folder: Path, rules: Rules) -> Iterator[Verdict]:
    newest_completed = False
    seen: set[str] = set()
    place = 0
    for run in sorted(_folders(folder), key=lambda one: one.name, reverse=True):
        if run.name.startswith(_REMOVING):
            yield _verdict(run, None, "half removed", None)
            continue
        if not settings.is_run(run):
            continue  # whoever put it there knows why
        paths = RunPaths(run)
        record, driver = _record(paths), driver_of(paths)
        if driver is not None:
            kept: str | None = "a driver works on it"
        elif place < rules.keep:
            kept = f"one of the {rules.keep} newest" if rules.keep > 1 else "the newest"
        elif _age_s(paths) < (rules.older_than or timedelta()).total_seconds():
            kept = "not old enough"
        elif _never_begun(paths) or (rules.everything and _is_ours(paths)):
            kept = None
        elif record is None:
            kept = "its record cannot be read"
        elif record.completed and not newest_completed:
            kept = "the newest completed run of its step"
        elif _likeness(record) not in seen and _can_be_resumed(paths, record):
            kept = "it can be resumed"
        else:
            kept = None
        state = RUNNING if driver is not None else _state(paths, record)
        if record is not None:
            newest_completed = newest_completed or record.completed
            # A step goes on with the newest run of its fingerprint alone.
            seen.add(_likeness(record))
        place += 1
        yield _verdict(run, record, state, kept)


def _folders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _verdict(folder: Path, record: RunRecord | None, state: str, kept: str | None) -> Verdict:
    return Verdict(
        folder=folder,
        step=folder.parent.name,
        run_id=folder.name if record is None else record.run_id,
        state=state,
        bytes=_size(folder),
        kept=kept,
    )


def _record(paths: RunPaths) -> RunRecord | None:
    try:
        return RunRecord.read(paths)
    except OutputError:
        return None


def _never_begun(paths: RunPaths) -> bool:
    """Return whether the driver was killed before the run began; what it took over is of another run."""
    if paths.record.exists():
        return False
    if not paths.journal.exists():
        return True
    try:
        with Journal(paths.journal) as journal:
            return not list(journal.select(f"SELECT 1 FROM attempts WHERE {schema.OWN} LIMIT 1"))
    except OutputError:
        return False  # what is in it may be worth a repair


def _is_ours(paths: RunPaths) -> bool:
    """Return whether a driver of ours was here, whatever became of the record."""
    return paths.lock.exists() or paths.journal.exists()


def _state(paths: RunPaths, record: RunRecord | None) -> str:
    if record is None:
        return "never begun" if _never_begun(paths) else "unreadable"
    return INTERRUPTED if record.state == RUNNING else record.state


def _likeness(record: RunRecord) -> str:
    """Return a text that runs share of which only the newest is gone on with."""
    return record.fingerprint or record.run_id


def _can_be_resumed(paths: RunPaths, record: RunRecord) -> bool:
    """Return whether somebody could go on with it and would have less to do for it."""
    if record.state == "Completed" or not paths.journal.exists():
        return False
    try:
        with Journal(paths.journal) as journal:
            return next(journal.done(), None) is not None
    except OutputError:
        return True  # what is in it may be worth a repair


def _age_s(paths: RunPaths) -> float:
    """Return how long ago it was last heard of, by the files that a driver writes last."""
    moments = [one.stat().st_mtime for one in (paths.record, paths.lock) if one.exists()]
    return time.time() - max(moments)


def _size(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk, links not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_blocks * 512
            except OSError:
                continue  # it was removed meanwhile
    return total
