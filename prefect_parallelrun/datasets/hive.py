"""Folders named for the values of keys, `store=1/brand=x`, as Hive has them (R102)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import path_values

NULL = "__HIVE_DEFAULT_PARTITION__"
"""Stands for a missing value, as everybody writes it."""
MARKER = "_partition_by-"
"""Begins the name of an empty file that tells what a folder is the result of; files of 0 bytes are no
part of a Parquet table."""
UNFINISHED = "-unfinished"
"""Ends that name as long as the folder is being written."""
LONGEST_NAME = 255
"""Bytes of a folder's name."""


@dataclass(frozen=True, slots=True)
class HivePartitions:
    """The folders that `TabularDataset.partition_by` makes, and the values that they stand for."""

    kinds: dict[str, str]
    """Kind of each key by its name: string, int, float, bool, timestamp, date."""

    def folder(self, values: tuple[Any, ...]) -> str:
        """Return the folder, relative, of one value for each key; times as ISO 8601 has them.

        Raises:
            DatasetError: a value is too long for the name of a folder.
        """
        names = []
        for key, value in zip(self.kinds, values, strict=True):
            name = f"{quote(key, safe='')}={_segment(value)}"
            if len(name) > LONGEST_NAME:
                raise DatasetError(
                    f"the value of {key!r} that begins with {str(value)[:40]!r} is too long for the "
                    f"name of a folder, {LONGEST_NAME} bytes: partition by something shorter"
                )
            names.append(name)
        return "/".join(names)

    def values(self, path: str) -> dict[str, Any]:
        """Return the value of each key, as JSON.

        Raises:
            DatasetError: the file is in no such folder, or a value is of another kind.
        """
        names = path.split("/")[-len(self.kinds) - 1 : -1]
        values: dict[str, Any] = {}
        for (key, kind), name in zip(self.kinds.items(), names, strict=False):
            found, equals, text = name.partition("=")
            if equals and unquote(found) == key:
                try:
                    values[key] = None if text == NULL else _value(unquote(text), kind)
                except ValueError:
                    raise DatasetError(
                        f"{path}: {unquote(text)!r} is no {kind}, as {key!r} was when this dataset was "
                        "made: the table was partitioned anew since, with other types; run "
                        "partition_by(…) again for the dataset of what is there"
                    ) from None
        if len(values) < len(self.kinds):
            raise DatasetError(
                f"{path} is no file of partition_by({list(self.kinds)}), which are in folders such "
                f"as {'/'.join(f'{key}=…' for key in self.kinds)}: remove it from there"
            )
        return values


def _segment(value: Any) -> str:
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    text = quote(str(value), safe="")
    # A text may look like what stands for a missing value.
    return text if text != NULL else text.replace("_", "%5F", 1)


def _value(text: str, kind: str) -> Any:
    """Return a value as JSON; ValueError where it is of another kind."""
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    path_values.typed(text, kind)
    return text


def is_part(name: str, keys: Sequence[str]) -> bool:
    """Say whether a file, relative to the folder, is called as `partition_by` would call one."""
    *folders, file = name.split("/")
    found = [unquote(folder.partition("=")[0]) if "=" in folder else None for folder in folders]
    return found == list(keys) and file.startswith("part-") and file.endswith(".parquet")


def digest(sizes: Mapping[str, int]) -> str:
    """Return what changes with the names, relative to the folder, and the sizes of its Parquet files."""
    parts = sorted((name, size) for name, size in sizes.items() if size)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def check_whole(files: Sequence[FileItem], place: str, keys: Sequence[str]) -> None:
    """Refuse a folder whose files are no longer those that were written.

    Args:
        files: All that are there.
        place: The folder, for people.

    Raises:
        DatasetError: one is missing, has changed, or is none of them.
    """
    for file in files:
        root, _, name = file.path.rpartition("/")
        if file.size or not name.startswith(MARKER):
            continue
        sizes = {one.path.removeprefix(f"{root}/"): one.size for one in files}
        if name.endswith(f"-{digest(sizes)}"):
            return
        foreign = [one for one, size in sizes.items() if size and not is_part(one, keys)]
        if foreign:
            raise DatasetError(
                f"{root}/{foreign[0]} is no file of partition_by({list(keys)}): remove it from there"
            )
    raise DatasetError(
        f"{place} no longer has the files that partition_by({list(keys)}) wrote there: some are "
        "missing, or were changed; run it again"
    )


def check_finished(empty_files: Iterable[str]) -> None:
    """Refuse a folder that is not written yet, or was never finished.

    Raises:
        DatasetError: a marker among the files of 0 bytes says so.
    """
    for path in empty_files:
        name = path.rsplit("/", 1)[-1]
        if name.startswith(MARKER) and name.endswith(UNFINISHED):
            raise DatasetError(
                f"{path.removesuffix(name)} is not complete: partition_by(…) is writing there, or was "
                "stopped; run it again"
            )
