"""Where partitions are written: a folder that appears in one step, or a place in another storage."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar
from uuid import uuid4

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import hive, transport
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.hive import MARKER, UNFINISHED
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import DatasetError
from prefect_parallelrun.planning.work_folder import clear, work_folder

_UPLOADS_AT_ONCE = 8

T = TypeVar("T")
NewFile = tuple[str, Callable[[IO[bytes]], None]]
"""Its name, relative to the folder, and what writes it."""


class Order(NamedTuple):
    """What is to be written."""

    request: str
    """The same for the same keys of the same table."""
    content: str
    """The same as long as the table has not changed."""


class Target(ABC):
    """The folder of one `partition_by`; an empty file in it tells what it is the result of."""

    def __init__(self, place: str, keys: Sequence[str], order: Order) -> None:
        self._place, self._keys, self._order = place, keys, order

    @property
    def file_name(self) -> str:
        """The name of the one file of each combination."""
        return "part-0.parquet"

    def holds_result(self) -> bool:
        """Return whether all that is to be written stands there already.

        Raises:
            ConfigError: something else stands there.
        """
        files = self._files()
        if not files:
            return False
        markers = [name for name in files if name.startswith(f"{MARKER}{self._order.request}-")]
        others = [
            name for name in files if name not in markers and not hive.is_part(name, self._keys)
        ]
        if not markers or others:
            raise errors.refuse(
                "target",
                self._place,
                f"it holds other files than the result of this partition_by, {min(others or files)} for "
                "one; give an empty folder, or remove them",
            )
        return markers == [self._marker(files)]

    @abstractmethod
    def workspace(self) -> AbstractContextManager[Path]:
        """Give a folder with room for the table, removed at the end; then nobody here writes to the target.

        Raises:
            OSError: it cannot be made.
        """

    @abstractmethod
    def replace(self, files: Iterable[NewFile]) -> None:
        """Write files in place of all that is there; it is complete when this returns.

        Raises:
            DatasetError: a file cannot be written, in another storage, or somebody else writes there.
            OSError: a file cannot be written, on this machine.
        """

    @abstractmethod
    def _files(self) -> dict[str, int]:
        """Return the files below the folder, relative, with their sizes."""

    def _marker(self, files: Mapping[str, int]) -> str:
        """Return the name of the empty file that stands for these files being all there."""
        return f"{MARKER}{self._order.request}-{self._order.content}-{hive.digest(files)}"


class LocalTarget(Target):
    """A folder of this machine: written beside, and renamed."""

    def __init__(self, place: str, keys: Sequence[str], order: Order) -> None:
        super().__init__(place, keys, order)
        # Where a link leads: the link itself stays.
        self._final = Path(os.path.realpath(place))
        self._work = self._final.parent / f".{self._final.name}.partition_by"
        self._new, self._old = self._work / "new", self._work / "old"

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a folder beside the target, to one call at a time."""
        self._work.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(self._work) as folder:
            self._put_back()  # of a call that was killed
            clear(folder)
            try:
                yield folder
            finally:
                self._put_back()

    def replace(self, files: Iterable[NewFile]) -> None:
        """Write files beside the folder, which then takes their place by being renamed."""
        sizes = {}
        self._new.mkdir()
        for name, write in files:
            path = self._new / name
            path.parent.mkdir(parents=True)
            with path.open("xb") as file:
                write(file)
            sizes[name] = path.stat().st_size
        (self._new / self._marker(sizes)).touch()
        if self._final.exists():
            self._final.rename(self._old)
        self._new.rename(self._final)

    def _put_back(self) -> None:
        """Give the old folder its name back, if it was renamed and the new one was not."""
        if self._old.exists() and not self._final.exists():
            self._old.rename(self._final)

    def _files(self) -> dict[str, int]:
        if self._final.exists() and not self._final.is_dir():
            raise errors.refuse("target", self._place, "it is a file; give a folder")
        return {
            path.relative_to(self._final).as_posix(): path.lstat().st_size
            for path in self._final.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }


class RemoteTarget(Target):
    """A place in another storage: a marker there says that it is not finished, until all is written.

    There are no locks. Each call has a marker of its own, which it writes before it looks what is there,
    and looks again at the end: of two that write at once, the later one finds what the earlier one left,
    or the earlier one finds the marker of the later, and fails.
    """

    def __init__(self, place: str, keys: Sequence[str], order: Order, storage: Storage) -> None:
        super().__init__(place.rstrip("/"), keys, order)
        opened = storage.unlocked()
        self._options = opened.options
        self._system: Any = self._tried(lambda: opened.filesystem(place), done="read")
        self._root = str(self._system._strip_protocol(self._place)).rstrip("/")

    @property
    def file_name(self) -> str:
        """Another where the table is: so that nothing of two tables is taken for one."""
        return f"part-{self._order.content}.parquet"

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a folder where Python takes one: there is none beside the target on this machine."""
        with tempfile.TemporaryDirectory(prefix="parallelrun-partitions-") as folder:
            yield Path(folder)

    def replace(self, files: Iterable[NewFile]) -> None:
        """Remove the old files and write the others; the last that is written is the marker."""
        own = f"{MARKER}{self._order.request}-{uuid4().hex}{UNFINISHED}"
        self._mark(own)
        before = self._files()
        # Of calls that were stopped; or that still write, and then find this one's.
        begun = {name for name in before if _is_unfinished(name)}
        self._remove(before.keys() - begun)
        with tempfile.TemporaryDirectory(prefix="parallelrun-partitions-") as folder:
            local = _written(files, Path(folder))
            sizes = dict(mapped(self._put, local, at_once=_UPLOADS_AT_ONCE))
        marker = self._marker(sizes)
        self._mark(marker)
        now = self._files()
        markers = {name for name in now if name.startswith(MARKER)}
        parts = {name: size for name, size in now.items() if name not in markers}
        since = {name for name in markers if _is_unfinished(name)} - begun - {own}
        if parts != sizes or since:
            if own not in now:
                # What is there, files of this call among them, would be taken for complete.
                self._mark(own)
            raise DatasetError(
                f"target={self._place!r} is not complete: another partition_by(…) wrote there at the "
                "same time; run this one again when that has ended"
            )
        self._remove(markers - {marker, own})
        self._remove({own})

    def _files(self) -> dict[str, int]:
        self._system.invalidate_cache()
        found: dict[str, Any] = self._tried(self._found, done="read")
        return {
            path.removeprefix(f"{self._root}/"): int(entry["size"])
            for path, entry in found.items()
            if path != self._root
        }

    def _found(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return found

    def _mark(self, name: str) -> None:
        self._tried(lambda: self._in_folder(name, lambda path: self._system.pipe_file(path, b"")))

    def _remove(self, names: Iterable[str]) -> None:
        paths = [f"{self._root}/{name}" for name in names]

        def remove() -> None:
            with suppress(FileNotFoundError):  # another call has removed one
                self._system.rm(paths)

        if paths:
            self._tried(remove)

    def _put(self, written: tuple[Path, str]) -> tuple[str, int]:
        """Write a file, and return its name and size."""
        file, name = written
        size = file.stat().st_size
        self._tried(
            lambda: self._in_folder(name, lambda path: self._system.put_file(str(file), path))
        )
        file.unlink()
        return name, size

    def _in_folder(self, name: str, write: Callable[[str], None]) -> None:
        path = f"{self._root}/{name}"
        try:
            write(path)
        except FileNotFoundError:  # unlike an object store it has folders
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(path)

    def _tried(self, call: Callable[[], T], *, done: Literal["read", "written"] = "written") -> T:
        """Return what a call of the storage gives, tried again where that may help."""
        return transport.retried(call, what=self._place, options=self._options, done=done)


def _written(files: Iterable[NewFile], folder: Path) -> Iterator[tuple[Path, str]]:
    """Write files into a folder of this machine, one at a time; yield where, and their names."""
    for number, (name, write) in enumerate(files):
        path = folder / str(number)
        with path.open("xb") as file:
            write(file)
        yield path, name


def _is_unfinished(name: str) -> bool:
    return name.startswith(MARKER) and name.endswith(UNFINISHED)
