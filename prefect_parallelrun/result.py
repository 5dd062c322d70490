"""What a step gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_serializer, field_validator

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime's folder on the path)
from prefect_parallelrun import manifest
from prefect_parallelrun.errors import DatasetError, NotThere, OutputError
from prefect_parallelrun.models import Counts
from prefect_parallelrun.paths import RunPaths
from prefect_parallelrun_runtime.source_path import for_arrow

if TYPE_CHECKING:
    import pandas

    from prefect_parallelrun.datasets import FileDataset

_UNKEPT = (
    ". A result keeps no storage_options, since they may be secret: where its output needs any, name a "
    "credentials block for it in the step, or read the file yourself"
)
_ITEMS = {"tabular": "rows of tables", "rank": "mini-batches without input"}


class ParallelRunResult(BaseModel):
    """The result of a run that completed: counts and places, small enough to be passed anywhere."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    name: str
    """Name of the step."""
    run_id: str
    """Name of the run; the run folder is called so."""
    run_directory: str
    """The run folder: journal, logs, failed items."""
    output: str
    """The output folder, or its URL; usable as an input of a next step."""
    append_row_file: str | None
    """The one file with all rows, or its URL; None for `summary_only`."""
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
    output_format: str = "text"
    """Format of that file: `text`, `csv`, `jsonl` or `parquet`."""
    output_credentials: str | None = None
    """Name of the credentials block that opens a remote output; None where none was given."""

    @field_validator("name", "output", "output_format", "output_credentials")
    @classmethod
    def _object_of_its_own(cls, text: str | None) -> str | None:
        """Copy what may be a constant of the program: to Prefect, a task that is given the same object takes
        this result."""
        return text and "".join([text[:1], text[1:]])

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

    def to_pandas(self, **keywords: Any) -> pandas.DataFrame:
        """Read the output file, with pandas' reader of its format.

        That is `read_parquet`; `read_json`, by default with every value as it is in the file; `read_csv`,
        for text by default with `sep=" "` and `header=None`. An output without any row is an empty
        DataFrame.

        Args:
            keywords: for that reader.

        Raises:
            OutputError: the step keeps no rows (`summary_only`), or the file is gone or cannot be read.
        """
        import pandas

        if self.append_row_file is None:
            raise OutputError(
                f"step {self.name!r} ran with output_action='summary_only', so there are no rows "
                f"to read; what the script wrote is in {self.output}"
            )
        try:
            ((path, size, *_),) = self._files(self.append_row_file).list_files()
            if not size:
                return pandas.DataFrame()
            frame = _read(self.output_format, for_arrow(path), keywords)
        except (FileNotFoundError, DatasetError) as error:
            gone = isinstance(error, FileNotFoundError | NotThere)
            how = (
                "is gone; run the step again to have it back"
                if gone
                else f"cannot be read: {error}"
            )
            local = "://" not in self.append_row_file
            raise OutputError(
                f"the output file {self.append_row_file} of step {self.name!r} {how}"
                + ("" if local or self.output_credentials else _UNKEPT)
            ) from error
        return cast("pandas.DataFrame", frame)

    def failed_items(self) -> FileDataset | None:
        """Return the files that failed as a dataset, or None where nothing failed.

        Where rows are missing it is not known which files they belong to: then all files of that
        mini-batch are among them. Everything known of each failure is in `failed_items.jsonl` in
        the run folder.

        Raises:
            DatasetError: the items are no files, are of inputs that are read in different ways, or the
                list is gone.
            OutputError: the step that was kept with the run cannot be read.
        """
        if not self.items.failed:
            return None
        from prefect_parallelrun.run_record import kept_definition

        paths = RunPaths(Path(self.run_directory))
        path = paths.failed_items
        files: list[str] = []
        numbers: set[int] = set()
        try:
            with path.open(encoding="ascii") as lines:
                for record in map(json.loads, lines):
                    if record["kind"] != "file":
                        raise DatasetError(
                            f"the failed items of step {self.name!r} are "
                            f"{_ITEMS[record['kind']]}, not files; read about them in {path}"
                        )
                    files += record["candidates"] if record["item"] is None else [record["item"]]
                    numbers.add(record.get("input", 0))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path}, the list of failed items of step {self.name!r}, is gone: the run folder "
                "was removed, or the run was gone on with and they have succeeded since, or it could "
                "not be written: then the log of the run says why, and running the step again tries "
                "them again and writes it"
            ) from error
        inputs = kept_definition(paths).inputs
        found = [cast("FileDataset", inputs[number]).narrowed(files) for number in sorted(numbers)]
        if any(vars(one) != vars(found[0]) for one in found):
            raise DatasetError(
                f"the failed items of step {self.name!r} are of several inputs, which differ in storage, "
                f"partition_format or the like, so they are no one dataset; read about them in {path}"
            )
        return found[0]

    def as_input(self, name: str) -> FileDataset:
        """Return the output, as an input of a next step: the one file, or all files of the folder.

        Of a remote output the run's own copy is taken, while all of it is there as it was. Else it is the
        remote folder, with what other runs have left there.
        """
        return self._files(self.append_row_file or self.output).as_named_input(name)

    def as_folder(self) -> FileDataset:
        """Return the output folder, as a side input of a next step."""
        return self._files(self.output)

    def as_argument(self) -> FileDataset | str:
        """Return the output folder as an argument of a next step's script: its path, or all files of it
        where only the remote output is left."""
        folder = self._copy_of(self.output)
        return folder if "://" not in folder else self.as_folder()

    def _files(self, place: str) -> FileDataset:
        from prefect_parallelrun.datasets import FileDataset

        copy = self._copy_of(place)
        credentials = self.output_credentials if "://" in copy else None
        return FileDataset.from_files(copy, credentials=credentials)

    def _copy_of(self, place: str) -> str:
        """Return the run's own copy of (a file of) a remote output, while it is whole; else `place`."""
        paths = RunPaths(Path(self.run_directory))
        if "://" not in place or not manifest.is_intact(paths.root):
            return place
        return str(paths.output / place.removeprefix(self.output).strip("/"))


def _read(output_format: str, file: Any, keywords: dict[str, Any]) -> Any:
    import pandas

    if output_format == "parquet":
        return pandas.read_parquet(file, **keywords)
    if output_format == "csv":
        return pandas.read_csv(file, **keywords)
    if output_format == "jsonl":
        # Else a text such as "007" becomes a number.
        as_it_is: dict[str, Any] = {"lines": True, "dtype": False, "precise_float": True}
        if pandas.__version__.startswith("2."):
            as_it_is["convert_dates"] = False  # in pandas 3 part of dtype=False
        return pandas.read_json(file, **as_it_is | keywords)
    if "sep" not in keywords and "delimiter" not in keywords:
        keywords["sep"] = " "
    return pandas.read_csv(file, **{"header": None} | keywords)
