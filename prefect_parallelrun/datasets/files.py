"""Files to process, each one item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from prefect_parallelrun.datasets import listing
from prefect_parallelrun.datasets.dataset import Dataset, FileItem
from prefect_parallelrun.errors import DatasetError


class FileDataset(Dataset):
    """Files: `run()` gets lists of their paths; as a side input, the script gets the folder."""

    kind: ClassVar[Literal["file", "tabular"]] = "file"

    def __init__(self, paths: tuple[str, ...], *, content: bool) -> None:
        super().__init__()
        self.__dict__["paths"] = paths
        self.__dict__["content"] = content

    paths: tuple[str, ...]
    """Files, folders and globs, absolute."""
    content: bool
    """Whether the files' content, not their times, decides about reuse."""

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
                files keep the names that they have here.
            content: Compare the files' content, instead of size and time, to see whether an earlier
                result still holds; reads every file once more.

        Raises:
            ConfigError: `paths` holds no path, or a parameter that is not supported yet is given.
        """
        local = listing.local_paths(paths, partition_format, storage_options, credentials)
        return cls(local, content=content)

    def list_files(self) -> list[FileItem]:
        """Return the files as they are now, each once, sorted by path.

        Raises:
            DatasetError: a path does not exist, or a folder or glob has no file.
        """
        return listing.files_at(self.paths)

    def to_path(self) -> str:
        """Return the file, or the folder that holds the files."""
        roots = [listing.root_of(path) for path in self.paths]
        return roots[0] if len(roots) == 1 else os.path.commonpath(roots)

    def fingerprint_parts(self, files: Sequence[FileItem]) -> Iterator[str]:
        """Yield each file's path and size, with its time or (`content=True`) a hash of what is in it."""
        yield f"files|content={self.content}"
        yield from file_parts(files, content=self.content)

    def __repr__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        named = f", name={self.name!r}" if self.name else ""
        return f"FileDataset({self.paths[0]!r}{more}{named})"


def file_parts(files: Sequence[FileItem], *, content: bool = False) -> Iterator[str]:
    """Yield what tells each file from an earlier state of it.

    Raises:
        DatasetError: a file whose content is wanted cannot be read.
    """
    for path, size, modified_ns in files:
        yield f"{path}|{size}|{_digest(path) if content else modified_ns}"


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (paths are text throughout)
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
