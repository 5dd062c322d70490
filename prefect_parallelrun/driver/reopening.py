"""What must be left of a run's earlier sittings, so that another one may go on from there."""

from __future__ import annotations

import os
from pathlib import Path

from prefect_parallelrun import manifest, reuse
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.output.journal import Journal
from prefect_parallelrun.output.trouble import damaged_journal
from prefect_parallelrun.output.upload import RemoteFolder
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun.planning import Plan
from prefect_parallelrun.run_record import COMPLETED, RUNNING, RunRecord

_FIRST_ATTEMPT = "SELECT min(started_at) FROM attempts WHERE started_at > 0"


class NotResumable(OutputError):
    """The run in this folder cannot be gone on with as the step is now; nothing in it was touched."""


def refuse_losses(paths: RunPaths, earlier: RunRecord) -> None:
    """Refuse a run of which something done is gone that only its script could make again.

    Args:
        paths: of the run.
        earlier: as the last sitting left it.

    Raises:
        OutputError: the journal is gone.
        NotResumable: what the script itself wrote (`summary_only`) is gone, or was changed since.
    """
    if not earlier.grouping:
        return  # no sitting came as far as the journal
    if not paths.journal.exists() or not paths.journal.stat().st_size:
        what = "it is empty" if paths.journal.exists() else "it is gone"
        raise damaged_journal(paths.journal, f"{what}, though the run had begun")
    if earlier.append_row_file_name is not None:
        return  # its rows are in the run folder
    with Journal(paths.journal) as journal:
        if next(journal.done(), None) is None:
            return
        ((first_attempt,),) = journal.select(_FIRST_ATTEMPT)
    lost = manifest.lost_files(paths.root)
    if lost:
        others = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        what = f"is gone or changed: {lost[0]}{others}"
    # After a kill nobody noted what was there in the end.
    elif (lost is None or earlier.state == RUNNING) and _emptied(
        Path(earlier.output), first_attempt or earlier.started_at.timestamp()
    ):
        what = "is gone: there is no file"
    else:
        return
    raise NotResumable(
        f"run {earlier.run_id} cannot be gone on with: what its script wrote into {earlier.output} "
        f"{what}. Put it back, or start a new run (allow_reuse=False)"
    )


def stands(paths: RunPaths, record: RunRecord, remote: RemoteFolder | None) -> bool:
    """Return whether a run has nothing left to do: nothing failed, and its output is as the run left it.

    Args:
        paths: of the run.
        record: as the last sitting left it.
        remote: where the output goes, if that is another storage.
    """
    return record.state == COMPLETED and reuse.is_intact(paths.root, remote)


def refuse_another_plan(earlier: RunRecord, grouping: str, plan: Plan) -> None:
    """Refuse a run whose mini-batches would be others now.

    Raises:
        NotResumable: they would.
    """
    counts = earlier.mini_batches, plan.known_count
    if earlier.grouping not in ("", grouping) or (None not in counts and counts[0] != counts[1]):
        raise NotResumable(
            f"run {earlier.run_id} cannot be gone on with: it was planned with "
            f"{counts[0]} mini-batches, and the step has {counts[1]} now, or others. Start a new run "
            "(allow_reuse=False)"
        )


def _emptied(folder: Path, since: float) -> bool:
    """Return whether a folder has no files, although something came or went in it since a moment.

    A script that writes elsewhere, such as into a database, leaves it empty and as old as it was.
    """
    try:
        changed = folder.stat().st_mtime > since
    except OSError:
        return True
    return changed and not any(names for _, _, names in os.walk(folder))
