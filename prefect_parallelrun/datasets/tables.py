"""Tables to process, each row one item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.datasets import column_types as types
from prefect_parallelrun.datasets import frames, listing, parquet_tables, text_tables
from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.datasets.files import file_parts
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import text_files
from prefect_parallelrun_runtime.load import load
from prefect_parallelrun_runtime.load_error import LoadError, Unfit

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["delimited", "json_lines", "parquet", "frame"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """How a table is to be read, as the user said."""

    format: Format
    separator: str = ","
    header: bool = True
    encoding: str = "utf-8"
    multi_line: bool = False
    column_types: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    """Only so many rows, the first; None for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the worker processes read the table: settled once for all mini-batches."""

    reader: dict[str, Any]
    """JSON, for `prefect_parallelrun_runtime.load`."""
    row_groups: dict[str, parquet_tables.RowGroups]
    """For Parquet, by path: what was seen in the footers that were looked at."""


class TabularDataset(Dataset):
    """A table: `run()` gets DataFrames of its rows. Each column has one dtype, in all of them.

    In delimited text a missing value is what pandas takes for one (nothing, `NA`, `NaN`, `null`, …),
    in columns of text too; integers with gaps become floats; dates become `datetime64[ns]`. Numbers too
    long for int64, or written as `0x1F`, stay text. Category columns are given as the values they stand
    for, since the categories would differ from mini-batch to mini-batch. The types come from a sample of the whole table. A value further on that
    does not fit fails its mini-batch, with an error that names file, row and column: set
    `column_types` then.
    """

    kind: ClassVar[Literal["file", "tabular"]] = "tabular"

    def __init__(
        self,
        settings: TableSettings,
        *,
        paths: tuple[str, ...] = (),
        frame: pd.DataFrame | None = None,
    ) -> None:
        super().__init__()
        self.__dict__.update(settings=settings, paths=paths, frame=frame)

    settings: TableSettings
    paths: tuple[str, ...]
    """Files, folders and globs, absolute; none for a DataFrame."""
    frame: pd.DataFrame | None
    """The DataFrame that the table was made from, if it was."""

    @classmethod
    def from_delimited_files(
        cls,
        paths: listing.PathsArgument,
        *,
        separator: str = ",",
        header: bool = True,
        encoding: str = "utf8",
        support_multi_line: bool = False,
        column_types: Mapping[str, Any] | None = None,
        partition_format: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
    ) -> Self:
        """Return the table in CSV files and their kin.

        Args:
            paths: As for `FileDataset.from_files`.
            separator: The character between values.
            header: Whether the first row of each file names its columns (the same in every file, in any
                order). False: they are called `Column1`, `Column2`, ….
            encoding: Of the text. A file whose lines cannot be told without decoding it (UTF-16), and a
                compressed one (.gz, .bz2, .xz, .zst), is one mini-batch.
            support_multi_line: Whether quoted values may hold line ends. Then the files are read once
                while mini-batches are made.
            column_types: Type by column: int64, float64, string, bool, datetime64[ns] or [us], and these
                with `, UTC` for times that name their zone. The other columns' types are found.

        Raises:
            ConfigError: a parameter cannot be used, or is not supported yet.
        """
        local = listing.local_paths(paths, partition_format, storage_options, credentials)
        for parameter, value in (("header", header), ("support_multi_line", support_multi_line)):
            if not isinstance(value, bool):
                raise errors.refuse(parameter, value, "use True or False")
        settings = TableSettings(
            format="delimited",
            separator=_known_separator(separator),
            header=header,
            encoding=_known_encoding(encoding),
            multi_line=support_multi_line,
            column_types=types.checked(column_types),
        )
        return cls(settings, paths=local)

    @classmethod
    def from_json_lines_files(
        cls,
        paths: listing.PathsArgument,
        *,
        encoding: str = "utf8",
        column_types: Mapping[str, Any] | None = None,
        partition_format: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
    ) -> Self:
        """Return the table in files of JSON lines: one object to a line, its keys the columns.

        A key that a line lacks is a missing value. Lists and objects as values are given to the
        script as Python has them. Where numbers and text share a column, all is text.

        Args:
            paths: As for `FileDataset.from_files`.
            encoding: As for `from_delimited_files`.
            column_types: As for `from_delimited_files`; it may also name keys that are very rare.

        Raises:
            ConfigError: a parameter cannot be used, or is not supported yet.
        """
        local = listing.local_paths(paths, partition_format, storage_options, credentials)
        settings = TableSettings(
            format="json_lines",
            encoding=_known_encoding(encoding),
            column_types=types.checked(column_types),
        )
        return cls(settings, paths=local)

    @classmethod
    def from_parquet_files(
        cls,
        paths: listing.PathsArgument,
        *,
        partition_format: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
    ) -> Self:
        """Return the table in Parquet files; they are cut between row groups.

        Integers with gaps become floats; one that a float cannot hold fails its mini-batch. Written
        from pandas' dtype `Int64` they stay what they are. Dictionary columns (categories) are given
        as their values.

        Args:
            paths: As for `FileDataset.from_files`; files of 0 bytes, such as Spark's `_SUCCESS`, are
                left out.

        Raises:
            ConfigError: a parameter cannot be used, or is not supported yet.
        """
        local = listing.local_paths(paths, partition_format, storage_options, credentials)
        return cls(TableSettings(format="parquet"), paths=local)

    @classmethod
    def from_pandas_dataframe(cls, dataframe: pd.DataFrame) -> Self:
        """Return the table in a DataFrame, as it is now; its index is left out.

        A category column is given to the script as the values that it stands for.

        Raises:
            ConfigError: it is no DataFrame.
        """
        import pandas as pd

        if not isinstance(dataframe, pd.DataFrame):
            raise errors.refuse("dataframe", dataframe, "give a pandas DataFrame")
        frame = frames.without_categories(dataframe.reset_index(drop=True))
        return cls(TableSettings(format="frame"), frame=frame)

    def take(self, n: int) -> Self:
        """Return the table of the first `n` rows: one mini-batch, or one per file it goes over.

        Raises:
            ConfigError: `n` is no whole number of at least 1.
        """
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise errors.refuse("n", n, "give a number of rows, at least 1")
        if self.frame is not None:
            return self._changed(frame=self.frame.head(n))
        limit = n if self.settings.limit is None else min(n, self.settings.limit)
        given = {name: getattr(self.settings, name) for name in TableSettings.__slots__}
        return self._changed(settings=TableSettings(**{**given, "limit": limit}))

    def list_files(self) -> list[FileItem]:
        """Return the files as they are now, each once, sorted by path; none for a DataFrame.

        Raises:
            DatasetError: a path does not exist, or a folder or glob has no file.
        """
        files = listing.files_at(self.paths) if self.frame is None else []
        if self.settings.format == "parquet":
            # As in text tables a file of 0 bytes has no rows; Spark marks with one that it is done.
            return [file for file in files if file.size]
        return files

    def fingerprint_parts(self, files: Sequence[FileItem]) -> Iterator[str]:
        """Yield how the table is read, and each file's path, size and time, or a hash of the DataFrame."""
        yield f"table|{json.dumps(asdict(self.settings), sort_keys=True)}"
        yield from file_parts(files)
        if self.frame is not None:
            yield frames.digest_of(self.frame)

    def settle(self, files: Sequence[FileItem]) -> Reading:
        """Return how to read the files: names and types of the columns are settled here, once.

        Args:
            files: What `list_files` returned (for a DataFrame, the file it was written to).

        Raises:
            DatasetError: the files cannot be read, or differ in their columns.
        """
        settings = self.settings
        if settings.format in ("parquet", "frame"):
            reader, row_groups = parquet_tables.settle_parquet(files)
            return Reading(reader=reader, row_groups=row_groups)
        if settings.format == "json_lines":
            described: dict[str, Any] = {"encoding": settings.encoding}
            settle = text_tables.settle_json_lines
        else:
            described = {
                "separator": settings.separator,
                "header": settings.header,
                "encoding": settings.encoding,
                "multi_line": settings.multi_line,
            }
            settle = text_tables.settle_delimited
        try:
            return Reading(reader=settle(files, described, settings.column_types), row_groups={})
        except (LoadError, Unfit, OSError) as error:
            raise DatasetError(f"the columns' types cannot be settled: {error}") from error

    def first_rows(self, files: Sequence[FileItem], reading: Reading) -> Iterator[dict[str, Any]]:
        """Yield what to load for the rows that `take` left, file by file.

        Raises:
            DatasetError: a file cannot be read.
        """
        left = self.settings.limit or 0
        for file in files:
            if not left:
                return
            if self.settings.format == "parquet":
                known = reading.row_groups.get(file.path)
                rows = sum((known or parquet_tables.row_groups_of(file)).rows)
            else:
                try:
                    rows = text_files.count_rows(file.path, reading.reader, left)
                except (LoadError, OSError) as error:
                    raise DatasetError(f"{file.path} cannot be read: {error}") from error
            rows = min(rows, left)
            left -= rows
            if rows:
                yield {"path": file.path, "rows": rows}

    def to_pandas_dataframe(self) -> pd.DataFrame:
        """Return the whole table, with the dtypes that the mini-batches have.

        Raises:
            DatasetError: a file cannot be read, or a value does not fit its column.
        """
        import pandas as pd

        if self.frame is not None:
            return self.frame.copy()
        files = self.list_files()
        reading = self.settle(files)
        works: Iterator[dict[str, Any]] = ({"path": file.path} for file in files)
        if self.settings.limit is not None:
            works = self.first_rows(files, reading)
        try:
            frames = [load(work, reading.reader).data for work in works]
        except LoadError as error:
            raise DatasetError(str(error)) from error
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        place = "DataFrame" if self.frame is not None else f"{self.paths[0]!r}{more}"
        named = f", name={self.name!r}" if self.name else ""
        return f"TabularDataset({self.settings.format}: {place}{named})"


def _known_separator(separator: object) -> str:
    plain = isinstance(separator, str) and separator.isascii() and separator not in '"\r\n\0'
    if not isinstance(separator, str) or not plain or len(separator) != 1:
        raise errors.refuse("separator", separator, "use one ASCII character, no quote or line end")
    return separator


def _known_encoding(encoding: object) -> str:
    if isinstance(encoding, str):
        try:
            text_files.is_bytewise(encoding)
        except (LookupError, ValueError):
            pass
        else:
            return encoding
    raise errors.refuse(
        "encoding", encoding, "use a name that Python knows, such as 'utf8' or 'latin-1'"
    )
