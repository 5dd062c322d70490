"""What all datasets have in common: a name, files, and what decides their reuse."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self

from prefect_parallelrun import errors

_NAME = re.compile(r"[A-Za-z0-9_-]+")


class FileItem(NamedTuple):
    """One file of a dataset, as it was when the dataset was listed."""

    path: str
    """Absolute."""
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last change, nanoseconds since the epoch."""


class Dataset(ABC):
    """What there is to process; immutable, so that one object may serve several steps.

    Neither pydantic model nor dataclass: Prefect looks into those, at each task call, for futures.
    """

    kind: ClassVar[Literal["file", "tabular"]]
    """Whether its items are files or rows."""

    name: str | None
    """How the step and the script call this input, or None."""

    def __init__(self) -> None:
        self.__dict__["name"] = None

    def as_named_input(self, name: str) -> Self:
        """Return this dataset with a name.

        Args:
            name: Letters, digits, underscores and dashes.

        Raises:
            ConfigError: the name holds something else.
        """
        return self._changed(name=checked_name(name))

    def as_mount(self, path: str | None = None) -> Self:
        """Return this dataset, to be read in place: local files always are.

        Raises:
            ConfigError: `path` is given, which is not supported yet.
        """
        return self._in_place("as_mount", path)

    def as_download(self, path: str | None = None) -> Self:
        """Return this dataset, to be at hand on each node: local files always are.

        Raises:
            ConfigError: `path` is given, which is not supported yet.
        """
        return self._in_place("as_download", path)

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

    def _in_place(self, method: str, path: str | None) -> Self:
        if path is not None:
            raise errors.refuse(
                f"{method}(path)", path, "a path of one's own is not supported yet; leave it out"
            )
        return self._changed()

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


def refuse_later(**parameters: object) -> None:
    """Refuse each parameter that has a value but does not work yet.

    Raises:
        ConfigError: one of them is not None.
    """
    for parameter, value in parameters.items():
        if value is not None:
            # Never the value itself: it may be a secret.
            raise errors.ConfigError(
                f"{parameter} is not supported yet: only local files without it; leave it out"
            )
