"""Files to process, each one item."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast
from urllib.parse import urlsplit

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import listing, remote, remote_file
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.datasets.partitions import PartitionFormat, checked_format, parse_format
from prefect_parallelrun.datasets.storage import LOCAL, Storage
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun_runtime import source_path

_CONTENT = "blake2b:"
"""Begins the state of a file that is compared by its content."""


class FileDataset(Dataset):
    """Files: `run()` gets lists of their paths; as a side input, the script gets the folder."""

    kind: ClassVar[Literal["file", "tabular"]] = "file"

    def __init__(
        self,
        paths: tuple[str, ...],
        *,
        storage: Storage = LOCAL,
        content: bool = False,
        partition_format: str | None = None,
    ) -> None:
        super().__init__(storage)
        self.__dict__.update(paths=paths, content=content, partition_format=partition_format)

    paths: tuple[str, ...]
    """Files, folders and globs, absolute, or URLs."""
    content: bool
    """Whether the files' content, not their times, decides about reuse."""
    partition_format: str | None
    """What the end of each path says, as the user wrote it."""

    @classmethod
    def from_files(
        cls,
        paths: listing.PathsArgument,
        *,
        partition_format: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        credentials: object = None,
        content: bool = False,
    ) -> Self:
        """Return the dataset of the files at `paths`; they are looked for when the step runs.

        Args:
            paths: A file; a folder, for all files in it and below, hidden ones too; a glob, for the
                files that it matches (`**` goes any depth; as in a shell, `*` skips hidden files);
                or a list of these. `~` and `file://` are understood. Links are followed, but the
                files keep the names that they have here. Or URLs of any storage that fsspec knows
                (`s3://bucket/folder`, `abfs://container/*.csv`, `https://host/file.csv`; a folder of a
                web server ends in `/` and needs an index page), all of one storage; chains such as
                `zip://*.csv::s3://bucket/x.zip` too. The nodes fetch them ahead of `run()`.
            storage_options: What opens the storage, as fsspec has it; for a chain those of its last
                storage, or by protocol. They may hold secrets: these are neither shown nor kept.
            credentials: Instead, a saved Prefect block that gives them, or `<block type>/<block name>`.
            content: Compare the files' content, instead of size and time, to see whether an earlier
                result still holds; reads every file once more.

        Raises:
            ConfigError: a parameter cannot be used.
        """
        storage, found = listing.located(paths, storage_options, credentials)
        return cls(
            found,
            storage=storage,
            content=content,
            partition_format=checked_format(partition_format),
        )

    def at(self, paths: listing.PathsArgument) -> Self:
        """Return the dataset of other files, and all else as it is here.

        What opens the storage is that of this dataset for one of the same protocol; on the web, for the
        same server, since others are not to get its secrets.

        Raises:
            ConfigError: the paths cannot be used.
        """
        storage, found = located_like(self.storage, self.paths, paths)
        return self._changed(storage=storage, paths=found, version=None)

    @property
    def partitions(self) -> PartitionFormat | None:
        """What the paths of its files say; None where they say nothing."""
        return None if self.partition_format is None else parse_format(self.partition_format)

    def list_files(self) -> list[FileItem]:
        """Return the files as they are now, each once, sorted by path.

        Raises:
            DatasetError: a path does not exist, or a folder or glob has no file.
        """
        return listing.files_at(self.storage, self.paths)

    def narrowed(self, paths: Iterable[str]) -> Self:
        """Return the dataset of some of these files, without a name."""
        return self._changed(paths=tuple(paths), name=None, version=None)

    def to_path(self) -> str:
        """Return the file or URL, or the folder that holds the files."""
        roots = [listing.root_of(path) for path in self.paths]
        if not self.storage.is_local:
            return remote.common_root(roots)
        return roots[0] if len(roots) == 1 else os.path.commonpath(roots)

    def shows_changes(self, files: Sequence[FileItem]) -> bool:
        """Whether a changed file would be seen."""
        return self.content or super().shows_changes(files)

    def fingerprint_parts(self, files: Sequence[FileItem]) -> Iterator[str]:
        """Yield each file's path and size, with its time or (`content=True`) a hash of what is in it."""
        yield f"files|content={self.content}"
        if self.partition_format is not None:
            yield f"partition_format={self.partition_format}"
        yield from file_parts(self.states(files))

    def states(self, files: Sequence[FileItem]) -> Sequence[FileItem]:
        """Return the files; with `content=True` each has a digest of what is in it, which counts instead of its time.

        Raises:
            DatasetError: a file whose content is wanted cannot be read.
        """
        if not self.content or all(file.etag.startswith(_CONTENT) for file in files):
            return files
        digests = mapped(lambda file: _digest(file.path), files, at_once=remote_file.at_once(files))
        return [
            file._replace(etag=f"{_CONTENT}{digest}")
            for file, digest in zip(files, digests, strict=True)
        ]

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        named = f", name={self.name!r}" if self.name else ""
        return f"FileDataset({self.paths[0]!r}{more}{named})"


def located_like(
    storage: Storage, places: Sequence[str], paths: listing.PathsArgument
) -> tuple[Storage, tuple[str, ...]]:
    """Return where other paths are, and they themselves; see `FileDataset.at`.

    Args:
        storage: of the dataset that they replace the paths of.
        places: those paths.
        paths: the others.

    Raises:
        ConfigError: the paths cannot be used.
    """
    other, found = listing.located(paths, None, None)
    if not other.is_local and _opened_alike(found) <= _opened_alike(places):
        return listing.located(paths, storage.options, storage.credentials)
    return other, found


def _opened_alike(urls: Sequence[str]) -> set[tuple[str, str]]:
    """Return the storages that URLs end at: the protocol, and of web servers also which one."""
    ends = [urlsplit(url.rpartition("::")[2]) for url in urls]
    return {(end.scheme, end.netloc if end.scheme in ("http", "https") else "") for end in ends}


def file_parts(files: Iterable[FileItem]) -> Iterator[str]:
    """Yield what tells each file from an earlier state of it."""
    for path, size, modified_ns, etag in files:
        yield f"{path}|{size}|{etag or modified_ns}"


def _digest(path: str) -> str:
    try:
        with source_path.open_file(path) as file:
            return hashlib.file_digest(cast("io.FileIO", file), "blake2b").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error
