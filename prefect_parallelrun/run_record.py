"""`run.json`: what a run is, and how far it came, in its run folder; by it an earlier run is found again."""

from __future__ import annotations

from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths

RUNNING = "Running"
"""The state of a run that has not ended, or of which the driver was killed."""


class RunRecord(BaseModel):
    """What a run is, as its driver last wrote it down."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    step: str
    """Name of the step."""
    run_id: str
    """Name of the run; the run folder is called so."""
    fingerprint: str
    """See `reuse.step_fingerprint`; a run with the same one would give the same rows."""
    task_run: str | None = None
    """Prefect's id of the task run that began it."""
    started_at: AwareDatetime
    """UTC, when the run began; not when it was resumed."""
    state: str = RUNNING
    """`Running`, `Completed`, `Completed with 12 failed items`, `Failed`, or `Cancelled`."""
    kind: str | None = None
    """What an item is: `file`, `tabular` or `rank`; None before the run was planned."""
    mini_batches: int | None = None
    """How many the plan has, where that is known without reading the input."""
    items: int | None = None
    """How many the plan has; None for rows."""
    output: str
    """The output folder."""
    append_row_file_name: str | None = None
    """Name of the output file; None for `summary_only`."""
    output_order: str = "input"
    """`input` or `completion`."""

    def write(self, paths: RunPaths) -> None:
        """Write it down in one step: a reader sees the earlier one or this one."""
        temporary = paths.record.with_suffix(".tmp")
        temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")
        temporary.replace(paths.record)

    @classmethod
    def read(cls, paths: RunPaths) -> RunRecord:
        """Return what is written down.

        Raises:
            OutputError: this is no run folder, or its record cannot be read.
        """
        try:
            return cls.model_validate_json(paths.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{paths.root} is no run folder that can be read: {paths.record.name}: {error}"
            ) from error


def find_run(folder: Path, fingerprint: str, *, task_run: str | None = None) -> RunPaths | None:
    """Return the newest run of a fingerprint, whatever its state; None where there is none.

    Args:
        folder: of all runs of one step. The names of run folders hold the beginning of the
            fingerprint, so that thousands of other runs cost nothing but the listing.
        task_run: only the run that this task run of Prefect began.
    """
    for candidate in sorted(folder.glob(f"*-{fingerprint[:8]}-*"), reverse=True):
        paths = RunPaths(candidate)
        try:
            record = RunRecord.read(paths)
        except OutputError:
            continue
        if record.fingerprint == fingerprint and task_run in (None, record.task_run):
            return paths
    return None
