"""What a step gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_serializer

from prefect_parallelrun.errors import DatasetError, OutputError
from prefect_parallelrun.models import Counts
from prefect_parallelrun.paths import RunPaths

if TYPE_CHECKING:
    import pandas

    from prefect_parallelrun.datasets import FileDataset

_ITEMS = {"tabular": "rows of tables", "rank": "mini-batches without input"}


class ParallelRunResult(BaseModel):
    """The result of a run that completed: counts and places, small enough to be passed anywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Name of the step."""
    run_id: str
    """Name of the run; the run folder is called so."""
    run_directory: str
    """The run folder: journal, logs, failed items."""
    output: str
    """The output folder; usable as an input of a next step."""
    append_row_file: str | None
    """The one file with all rows; None for `summary_only`."""
    mini_batches: Counts
    """Mini-batches by outcome; reused ones are part of those that succeeded."""
    items: Counts
    """Items by outcome; reused ones are part of those that succeeded."""
    attempts: int
    """Attempts of mini-batches, of all of them together."""
    reused: bool = False
    """Whether nothing had to run. The stored form always reads back so: whoever gets it, got an
    earlier result."""
    started_at: AwareDatetime
    """UTC."""
    ended_at: AwareDatetime
    """UTC."""
    logs_directory: str
    """Folder of the log tree."""
    report: str | None = None
    """The report, where one was written."""

    @field_serializer("reused", when_used="json")
    def _stored_is_reused(self, _: bool) -> bool:
        return True

    @property
    def state(self) -> str:
        """How the run ended: `Completed`, or `Completed with 12 failed items`."""
        if self.items.failed:
            plural = "s" if self.items.failed > 1 else ""
            return f"Completed with {self.items.failed:,} failed item{plural}"
        if self.mini_batches.failed:  # one that could not be loaded may have no items counted
            plural = "es" if self.mini_batches.failed > 1 else ""
            return f"Completed with {self.mini_batches.failed:,} failed mini-batch{plural}"
        return "Completed"

    def to_pandas(self, **read_csv_keywords: Any) -> pandas.DataFrame:
        """Read the output file with `pandas.read_csv`, by default `sep=" "` and `header=None`.

        An output without any row is an empty DataFrame.

        Raises:
            OutputError: the step keeps no rows (`summary_only`), or the file is gone.
        """
        import pandas

        if self.append_row_file is None:
            raise OutputError(
                f"step {self.name!r} ran with output_action='summary_only', so there are no rows "
                f"to read; what the script wrote is in {self.output}"
            )
        if "sep" not in read_csv_keywords and "delimiter" not in read_csv_keywords:
            read_csv_keywords["sep"] = " "
        keywords = {"header": None} | read_csv_keywords
        try:
            if not Path(self.append_row_file).stat().st_size:
                return pandas.DataFrame()
            frame = pandas.read_csv(self.append_row_file, **keywords)
        except FileNotFoundError as error:
            raise OutputError(
                f"the output file {self.append_row_file} of step {self.name!r} is gone; run the "
                "step again to have it back"
            ) from error
        return cast("pandas.DataFrame", frame)

    def failed_items(self) -> FileDataset | None:
        """Return the files that failed as a dataset, or None where nothing failed.

        Where rows are missing it is not known which files they belong to: then all files of that
        mini-batch are among them. Everything known of each failure is in `failed_items.jsonl` in
        the run folder.

        Raises:
            DatasetError: the items are no files, or the list is gone.
        """
        if not self.items.failed:
            return None
        from prefect_parallelrun.datasets import FileDataset

        path = RunPaths(Path(self.run_directory)).failed_items
        files: list[str] = []
        try:
            with path.open(encoding="ascii") as lines:
                for record in map(json.loads, lines):
                    if record["kind"] != "file":
                        raise DatasetError(
                            f"the failed items of step {self.name!r} are "
                            f"{_ITEMS[record['kind']]}, not files; read about them in {path}"
                        )
                    files += record["candidates"] if record["item"] is None else [record["item"]]
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}, the list of failed items of step {self.name!r}, is gone: the run folder "
                "was removed, or the run was gone on with and they have succeeded since"
            ) from error
        return FileDataset.from_files(files)

    def as_input(self, name: str) -> FileDataset:
        """Return the output, as an input of a next step: the one file, or all files of the folder."""
        from prefect_parallelrun.datasets import FileDataset

        return FileDataset.from_files(self.append_row_file or self.output).as_named_input(name)
