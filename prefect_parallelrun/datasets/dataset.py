"""What all datasets have in common: a name, files, and what decides their reuse."""

from __future__ import annotations

import copy
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import registered
from prefect_parallelrun.datasets.partitions import Partitions
from prefect_parallelrun.datasets.storage import LOCAL, Storage

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class FileItem(NamedTuple):
    """One file of a dataset, as it was when the dataset was listed."""

    path: str
    """Absolute, or a URL."""
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, nanoseconds since the epoch; 0 where the storage does not tell."""
    etag: str = ""
    """What the storage says of the content, so that a change shows; empty where it says nothing."""


class Dataset(ABC):
    """What there is to process; immutable, so that one object may serve several steps.

    Neither pydantic model nor dataclass: Prefect looks into those, at each task call, for futures.
    """

    kind: ClassVar[Literal["file", "tabular"]]
    """Whether its items are files or rows."""

    name: str | None
    """How the step and the script call this input, or None."""
    storage: Storage
    """Where its files are."""
    delivery: Literal["mount", "download"]
    """Whether files that can be read in place are, or are copied to each node like all others."""
    target_path: str | None
    """Where on a node the script is to find it (side inputs only); None: somewhere."""
    version: int | None
    """Which version of a registered dataset it was got as; None if it was not."""

    def __init__(self, storage: Storage = LOCAL) -> None:
        self.__dict__.update(
            name=None, storage=storage, delivery="mount", target_path=None, version=None
        )

    def as_named_input(self, name: str) -> Self:
        """Return this dataset with a name.

        Args:
            name: Letters, digits, underscores and dashes.

        Raises:
            ConfigError: the name holds something else.
        """
        return self._changed(name=checked_name(name))

    def as_mount(self, path: str | os.PathLike[str] | None = None) -> Self:
        """Return this dataset, to be read in place where it can be, and fetched to the nodes where not.

        Args:
            path: For a side input: where the script finds it, on every node.

        Raises:
            ConfigError: `path` is no path.
        """
        return self._changed(delivery="mount", target_path=_target_path("as_mount(path)", path))

    def as_download(self, path: str | os.PathLike[str] | None = None) -> Self:
        """Return this dataset, to be fetched to each node ahead of `run()`, and removed after it.

        Args:
            path: For a side input: where the script finds it, on every node.

        Raises:
            ConfigError: `path` is no path.
        """
        return self._changed(
            delivery="download", target_path=_target_path("as_download(path)", path)
        )

    @property
    def is_staged(self) -> bool:
        """Whether the nodes fetch it, instead of reading it in place."""
        return self.delivery == "download" or not self.storage.is_local

    @property
    def partition_keys(self) -> tuple[str, ...]:
        """Names by whose values it can be cut into mini-batches; empty for none."""
        return () if self.partitions is None else tuple(self.partitions.kinds)

    @property
    def partitions(self) -> Partitions | None:
        """What the paths of its files say; None where they say nothing."""
        return None

    def in_place_of(self, other: Dataset) -> Self:
        """Return this dataset, called and brought to the nodes like another where it says nothing of that."""
        like: dict[str, Any] = {}
        if self.name is None:
            like["name"] = other.name
        if self.target_path is None and self.delivery == "mount":
            like.update(delivery=other.delivery, target_path=other.target_path)
        return self._changed(**like)

    @abstractmethod
    def list_files(self) -> list[FileItem]:
        """Return the files as they are now, each once, sorted by path.

        Raises:
            DatasetError: there is none, or a path does not exist.
        """

    @abstractmethod
    def fingerprint_parts(self, files: Sequence[FileItem]) -> Iterator[str]:
        """Yield all that decides whether an earlier result for this dataset still holds.

        Args:
            files: What `list_files` returned.
        """

    def register(
        self, name: str, create_new_version: bool = False, *, description: str | None = None
    ) -> Self:
        """Keep this dataset in Prefect under a name, and return it with the version that it is (R78).

        What is kept is where the data are and how they are read, not the data. The same dataset
        registered once more is the same version.

        Args:
            name: Lower-case letters, digits and dashes.
            create_new_version: Whether to keep it beside another dataset that has this name.
            description: For people, on Prefect's page of the version; one that is there keeps its own.

        Raises:
            ConfigError: the name cannot be one, or is that of another dataset; the dataset holds a
                secret (`storage_options`, a URL with a password), a path that is not UTF-8, or a
                DataFrame, or is of a class of one's own; or Prefect's API does not answer.
        """
        version = registered.register(
            self, name, create_new_version=create_new_version, description=description
        )
        return self._changed(version=version)

    @classmethod
    def get_by_name(cls, name: str, version: int | Literal["latest"] = "latest") -> Self:
        """Return a dataset that was registered.

        Raises:
            ConfigError: a value cannot be used, or Prefect's API does not answer.
            DatasetError: there is no such dataset or version, or it is one of another kind.
        """
        found = registered.get(name, version)
        if not isinstance(found.dataset, cls):
            raise errors.DatasetError(
                f"version {found.version} of dataset {name!r} is a {type(found.dataset).__name__}, "
                f"so it is no {cls.__name__}: use {type(found.dataset).__name__}.get_by_name"
            )
        return found.dataset._changed(version=found.version)

    @staticmethod
    def versions(name: str) -> list[int]:
        """Return which versions are registered under a name, oldest first; none for an unknown name.

        Raises:
            ConfigError: the name cannot be one, or Prefect's API does not answer.
        """
        return registered.versions(name)

    def states(self, files: Sequence[FileItem]) -> Sequence[FileItem]:
        """Return files with what tells each from an earlier state of it; usually that is what was listed.

        Args:
            files: What `list_files` returned.

        Raises:
            DatasetError: a file whose content decides cannot be read.
        """
        return files

    def shows_changes(self, files: Sequence[FileItem]) -> bool:
        """Return whether a change of the data would show; not where a storage tells nothing of a file.

        Args:
            files: What `list_files` returned.
        """
        return all(file.etag or file.modified_ns for file in files)

    def _changed(self, **changes: Any) -> Self:
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other

    def __setattr__(self, attribute: str, value: object) -> NoReturn:
        raise AttributeError(f"a dataset does not change; {attribute!r} cannot be set")


def checked_name(name: object) -> str:
    """Return `name` if it can be the name of a dataset.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.refuse("name", name, "use letters, digits, underscores and dashes")
    return name


def _target_path(parameter: str, path: object) -> str | None:
    if path is None:
        return None
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text or "://" in text:
        raise errors.refuse(parameter, path, "give a path on the nodes, or leave it out")
    return text
