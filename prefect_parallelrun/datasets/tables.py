"""Tables to process, each row one item."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun import errors
from prefect_parallelrun.datasets import column_types as types
from prefect_parallelrun.datasets import (
    frames,
    hive,
    listing,
    parquet_tables,
    remote,
    sql_connection,
    sql_tables,
)
from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.datasets.files import file_parts, located_like
from prefect_parallelrun.datasets.partitions import Partitions, checked_format, parse_format
from prefect_parallelrun.datasets.reader_schema import add_constants, schema_of
from prefect_parallelrun.datasets.sql_tables import SqlTable
from prefect_parallelrun.datasets.storage import LOCAL, Storage
from prefect_parallelrun.datasets.table_settings import (
    Reading,
    TableSettings,
    checked_encoding,
    checked_separator,
    settled,
)
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import text_files, typed_tables
from prefect_parallelrun_runtime.load import load
from prefect_parallelrun_runtime.load_error import LoadError

if TYPE_CHECKING:
    import pandas as pd

_PARTITIONING = "prefect_parallelrun.planning.partition_by"
"""Loaded by name, when it is called: to be written anew a table is cut, and cutting knows of tables."""


class TabularDataset(Dataset):
    """A table: `run()` gets DataFrames of its rows. Each column has one dtype, in all of them.

    In delimited text a missing value is what pandas takes for one (nothing, `NA`, `NaN`, `null`, …),
    in columns of text too; integers with gaps become floats; dates become `datetime64[ns]`. Numbers too
    long for int64, and columns of numbers with one written as `007` or `0x1F`, stay text. Category columns are given as the values they stand
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
        storage: Storage = LOCAL,
        frame: pd.DataFrame | None = None,
    ) -> None:
        super().__init__(storage)
        self.__dict__.update(settings=settings, paths=paths, frame=frame)

    settings: TableSettings
    paths: tuple[str, ...]
    """Files, folders and globs, absolute, or URLs; none for a DataFrame. For a query, its database, as
    people may see it."""
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
            column_types: Type by column: int64, float64, string, bool, boolean (bool with gaps),
                datetime64[ns] or [us], and these with `, UTC` for times that name their zone. The other columns' types are found.
            partition_format: As for `FileDataset.from_files`; the values become the last columns, text
                or datetime64[ns].

        Raises:
            ConfigError: a parameter cannot be used.
        """
        storage, found = listing.located(paths, storage_options, credentials)
        for parameter, value in (("header", header), ("support_multi_line", support_multi_line)):
            if not isinstance(value, bool):
                raise errors.refuse(parameter, value, "use True or False")
        settings = TableSettings(
            format="delimited",
            separator=checked_separator(separator),
            header=header,
            encoding=checked_encoding(encoding),
            multi_line=support_multi_line,
            column_types=types.checked(column_types),
            partition_format=checked_format(partition_format),
        )
        return cls(settings, paths=found, storage=storage)

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
            partition_format: As for `from_delimited_files`.

        Raises:
            ConfigError: a parameter cannot be used.
        """
        storage, found = listing.located(paths, storage_options, credentials)
        settings = TableSettings(
            format="json_lines",
            encoding=checked_encoding(encoding),
            column_types=types.checked(column_types),
            partition_format=checked_format(partition_format),
        )
        return cls(settings, paths=found, storage=storage)

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
            partition_format: As for `from_delimited_files`.

        Raises:
            ConfigError: a parameter cannot be used.
        """
        storage, found = listing.located(paths, storage_options, credentials)
        settings = TableSettings(
            format="parquet", partition_format=checked_format(partition_format)
        )
        return cls(settings, paths=found, storage=storage)

    @classmethod
    def from_sql_query(
        cls,
        connection: object,
        query: str,
        *,
        partition_column: str | None = None,
        column_types: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the table of the rows that a database gives for a query (R25).

        The nodes send the query, each mini-batch for itself, in a transaction that only reads; the
        driver never holds the rows. Whether they have changed since an earlier run nobody can see, so
        a completed run is never reused.

        Args:
            connection: A SQLAlchemy URL, `postgresql://user:password@host/database` or
                `sqlite:///file.db`; an engine, for its URL; or a Prefect block, or its name. The
                password is shown nowhere.
            query: One SELECT, or WITH … SELECT; no parameters.
            partition_column: Column of numbers, dates or timestamps. The range of its values is cut
                into mini-batches of equal width, of about `mini_batch_size` in all, and the rows
                without a value in it are one more. None: the query is one mini-batch.
            column_types: As for `from_delimited_files`.

        Raises:
            ConfigError: a parameter cannot be used, or SQLAlchemy or a driver is not installed.
        """
        storage, place = sql_connection.located(connection)
        if partition_column is not None and (
            not isinstance(partition_column, str) or not partition_column
        ):
            raise errors.refuse("partition_column", partition_column, "give a column's name")
        settings = TableSettings(
            format="sql",
            column_types=types.checked(column_types),
            query=sql_tables.checked_query(query),
            partition_column=partition_column,
        )
        return cls(settings, paths=(place,), storage=storage)

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

    def at(self, paths: listing.PathsArgument) -> Self:
        """Return the table in other files, read as this one; see `FileDataset.at`.

        Raises:
            ConfigError: the paths cannot be used, or this table is read in a way that is not for any files.
        """
        if not self.paths or self.sql is not None or self.settings.partitioned is not None:
            raise errors.refuse(
                "paths",
                paths,
                "the dataset in whose place they are is a query, a DataFrame, or what partition_by wrote: "
                "give a mapping that says how the files are read, such as {'delimited': 'data/*.csv'}",
            )
        storage, found = located_like(self.storage, self.paths, paths)
        return self._changed(storage=storage, paths=found, version=None)

    def partition_by(
        self,
        partition_keys: Sequence[str],
        target: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
    ) -> TabularDataset:
        """Write the table anew, so that each combination of the keys' values is a folder of Parquet.

        The folders are called `store=1/brand=x`; what stands there has all columns but the keys. The
        table that is returned has all columns, with the dtypes and in the order of this one, and the
        `partition_keys`. The rows of a combination keep their order; a missing value is a value. The
        table is read range by range, by this process, and never held as a whole; twice its size is
        needed on disk while it is written.

        A reader sees nothing of `target` before all is written. What an earlier call with the same
        keys and the same table wrote there stays if the table's files have not changed since, and is
        replaced otherwise: on this machine by two renames, in other storages by removing the old
        files first, and until the new ones are complete the folder cannot be read. Nor can the table
        that is returned be read when a file of it is missing later. Of calls for one target at the same
        time each waits for the one before on this machine; in other storages the earlier one fails.

        Args:
            partition_keys: Columns of text, numbers, truth values, dates or times.
            target: A folder that is empty, or not there, or the result of the same call; or a URL. Not
                among the files that the table is read from.
            storage_options: What opens the storage of the URL, as fsspec has it.
            credentials: A Prefect block that does.

        Raises:
            ConfigError: a key is no column that can be one, or `target` cannot be used.
            DatasetError: the table cannot be read, or not be written.
        """
        storage, path = remote.located("target", target, storage_options, credentials)
        partition_table = import_module(_PARTITIONING).partition_table
        partitioned = partition_table(self, partition_keys, storage, path)
        settings = TableSettings(format="parquet", partitioned=partitioned)
        return TabularDataset(settings, paths=(path,), storage=storage)

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
        """Return the files as they are now, each once, sorted by path; none for a DataFrame or a query.

        Raises:
            DatasetError: a path does not exist, or a folder or glob has no file.
        """
        if self.frame is not None or self.sql is not None:
            return []
        files = listing.files_at(self.storage, self.paths)
        if self.settings.format == "parquet":
            # As in text tables a file of 0 bytes has no rows; Spark marks with one that it is done.
            hive.check_finished(file.path for file in files if not file.size)
            if self.settings.partitioned is not None:
                hive.check_whole(files, self.paths[0], self.partition_keys)
            return [file for file in files if file.size]
        return files

    @property
    def sql(self) -> SqlTable | None:
        """The query whose rows it has; None for all other tables."""
        if self.settings.format != "sql":
            return None
        return SqlTable(
            storage=self.storage,
            place=self.paths[0],
            query=self.settings.query,
            partition_column=self.settings.partition_column,
            column_types=self.settings.column_types,
        )

    def shows_changes(self, files: Sequence[FileItem]) -> bool:
        """Return whether a change of the data would show; that of a query never does."""
        return self.sql is None and super().shows_changes(files)

    @property
    def partitions(self) -> Partitions | None:
        """What the paths of its files say; None where they say nothing."""
        settings = self.settings
        if settings.partitioned is not None:
            return hive.HivePartitions(settings.partitioned["kinds"])
        return (
            None if settings.partition_format is None else parse_format(settings.partition_format)
        )

    def fingerprint_parts(self, files: Sequence[FileItem]) -> Iterator[str]:
        """Yield how the table is read, and each file's path, size and time, or a hash of the DataFrame."""
        yield f"table|{json.dumps(asdict(self.settings), sort_keys=True)}"
        yield from file_parts(files)
        if self.sql is not None:
            yield self.sql.place
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
        if settings.partitioned is not None:
            return Reading(reader=settings.partitioned["reader"], row_groups={})
        reading = settled(settings, files)
        if settings.partition_format is not None:
            add_constants(reading.reader, parse_format(settings.partition_format))
        return reading

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
                yield {"path": file.path, "rows": rows, **self._constants(file.path)}

    def _constants(self, path: str) -> dict[str, Any]:
        """Return what a mini-batch must know of the columns that only the file's path tells."""
        return {} if self.partitions is None else {"constants": self.partitions.values(path)}

    def to_pandas_dataframe(self) -> pd.DataFrame:
        """Return the whole table, with the dtypes that the mini-batches have.

        Raises:
            DatasetError: a file cannot be read, or a value does not fit its column.
        """
        import pandas as pd

        if self.frame is not None:
            return self.frame.copy()
        if self.sql is not None:
            return self.sql.read(self.settings.limit)
        files = self.list_files()
        reading = self.settle(files)
        works: Iterator[dict[str, Any]] = (
            {"path": file.path, **self._constants(file.path)} for file in files
        )
        if self.settings.limit is not None:
            works = self.first_rows(files, reading)
        try:
            frames = [load(work, reading.reader).data for work in works]
        except LoadError as error:
            raise DatasetError(str(error)) from error
        if not frames:
            none = schema_of(reading.reader).empty_table()
            frames = [typed_tables.to_frame(none, reading.reader.get("objects", []))]
        whole: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return whole

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        place = "DataFrame" if self.frame is not None else f"{self.paths[0]!r}{more}"
        if self.sql is not None:
            place = repr(self.sql.label)
        named = f", name={self.name!r}" if self.name else ""
        return f"TabularDataset({self.settings.format}: {place}{named})"
