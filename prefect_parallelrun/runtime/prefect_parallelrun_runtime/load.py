"""From the description of a mini-batch to what `run()` gets: a list of paths, or a DataFrame."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_parallelrun_runtime import path_values
from prefect_parallelrun_runtime.load_error import LoadError, Unfit
from prefect_parallelrun_runtime.source_path import SourcePath

if TYPE_CHECKING:
    import pandas as pd


class FileList(list[str]):
    """Absolute paths of the files of a mini-batch: a list, as rule R7 has it."""

    task_id: Any = None
    """The mini-batch's identity, which Azure's scripts read (R101)."""


class MiniBatchFiles:
    """The files of one mini-batch, as the `dataset` of its context."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = list(paths)

    def to_path(self) -> list[str]:
        """Return the absolute paths of the files."""
        return list(self._paths)


class MiniBatchTable:
    """The rows of one mini-batch, as the `dataset` of its context."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def to_pandas_dataframe(self) -> pd.DataFrame:
        """Return a copy of the rows."""
        return self._frame.copy()


class Loaded(NamedTuple):
    """What `run()` gets, and what is known of it."""

    data: Any
    """A `FileList`, or a DataFrame."""
    items: int
    """Files, or rows. 0 for a byte range in which no row begins; 1 for a mini-batch without input."""
    dataset: MiniBatchFiles | MiniBatchTable | None
    """The `dataset` of the mini-batch's context; None for a mini-batch without input."""


def needs_reading(work: dict[str, Any]) -> bool:
    """Say whether there is data to read, so that it pays to load ahead in a thread."""
    return "path" in work or "paths" in work


def load(work: dict[str, Any], reader: dict[str, Any]) -> Loaded:
    """Return the data of the mini-batch that `work` describes (see `models.MiniBatch`).

    Args:
        work: What to load.
        reader: How to read the input it is cut from, `Plan.readers`.

    Raises:
        LoadError: the data cannot be read; the message names file, row and column where known.
    """
    if "unavailable" in work:
        raise LoadError(work["unavailable"])
    if "files" in work:
        paths = FileList(work.get("local") or work["files"])
        _check_there(paths)
        return Loaded(paths, len(paths), MiniBatchFiles(paths))
    if "rank" in work:
        return Loaded(FileList(), 1, None)
    frame = _joined(work, reader) if "paths" in work else _frame(work, reader)
    if "part" in work:
        frame = _part(frame, work["part"], work.get("path") or work["paths"][0])
    return Loaded(frame, len(frame), MiniBatchTable(frame))


def _joined(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of several files, in their order; all have the dtypes of the reader."""
    import pandas as pd

    # What there is one of for each file.
    beside = {name: work[name] for name in ("local", "constants", "rows") if name in work}
    frames = [
        _frame({"path": path, **{name: some[place] for name, some in beside.items()}}, reader)
        for place, path in enumerate(work["paths"])
    ]
    if len(frames) == 1:
        return frames[0]
    return pd.concat(frames, ignore_index=isinstance(frames[0].index, pd.RangeIndex))


def _frame(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one file, or of a piece of it."""
    path = work["path"]
    _check_there([work.get("local") or path])
    try:
        frame = _read_table(work, reader)
        if "constants" in work:
            frame = path_values.with_constants(frame, work["constants"], reader)
        return frame
    except Unfit as unfit:
        place = path if unfit.row is None else f"{path}, row {unfit.row + 1:,}"
        if unfit.row is not None and "local" in work and "start" in work:
            # Only these bytes of the file have been fetched: nobody here can count those before.
            place += f" of those that begin at its bytes {work['start']:,} to {work['end'] - 1:,}"
        raise LoadError(f"{place}: {unfit.reason}") from None
    except ImportError as error:
        raise LoadError(
            f"a table needs pandas and pyarrow in the Python of the worker processes, {sys.executable}: {error}"
        ) from None
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: {error}; name the right encoding= for the dataset") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error


def _part(frame: pd.DataFrame, part: list[int], path: str) -> pd.DataFrame:
    """Return the rows [first, stop) of a mini-batch, as if it had no others."""
    import pandas as pd

    first, stop = part
    if not 0 <= first < stop <= len(frame):
        raise LoadError(
            f"{path}: rows {first + 1:,} to {stop:,} of a mini-batch were asked for, and it has "
            f"{len(frame):,} rows now: the file was changed since the step was planned"
        )
    # A copy, since pandas warns who writes into a slice.
    rows = frame.iloc[first:stop].copy()
    return rows.reset_index(drop=True) if isinstance(rows.index, pd.RangeIndex) else rows


def _check_there(paths: list[str]) -> None:
    for path in paths:
        # One that opens itself, in the driver alone, says so when it is opened.
        if not isinstance(path, SourcePath) and not os.path.isfile(path):
            raise LoadError(f"{path} vanished: it was there when the step was planned")


def _read_table(work: dict[str, Any], reader: dict[str, Any]) -> pd.DataFrame:
    # Imported here: a script for files needs none of it, in an interpreter that may lack it all.
    if reader["format"] == "delimited":
        from prefect_parallelrun_runtime import delimited

        return delimited.load(work, reader)
    if reader["format"] == "json_lines":
        from prefect_parallelrun_runtime import json_lines

        return json_lines.load(work, reader)
    from prefect_parallelrun_runtime import row_groups

    return row_groups.load(work, reader)
