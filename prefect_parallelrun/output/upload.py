"""From the run's output folder to another storage, in one go at the end; a reader never sees half a file."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from prefect_parallelrun import errors
from prefect_parallelrun.datasets import OutputFileDatasetConfig, transport
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import ConfigError, DatasetError, OutputError, refuse
from prefect_parallelrun.output import content
from prefect_parallelrun_runtime import source_path

_AZURE = frozenset({"abfs", "abfss", "az"})
"""Its names have no backslash: it takes that for a slash."""
_APPEAR_WHOLE = _AZURE | {"s3", "s3a", "gs", "gcs"}
"""Storages in which what is written is there once it is whole, in place of what was there before."""
_AT_ONCE = 8
"""Files that are uploaded at the same time."""

_LOOK_S = 0.2
_PROBE_S = 10.0
"""How long a storage that does not answer is asked again before anything has run."""
_PIECE = 8 << 20
"""Bytes that are read back with one request."""

T = TypeVar("T")

State = list[int | str]
"""Size in bytes, and etag or time of the last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFolder:
    """The folder in another storage that takes the output of a step."""

    url: str
    """Without a slash at its end."""
    storage: Storage

    @classmethod
    def of(cls, output: OutputFileDatasetConfig | None) -> Self | None:
        """Return the remote folder of an output; None for one on this machine, or of the run."""
        if output is None or output.destination is None or output.storage.is_local:
            return None
        return cls(url=output.destination.rstrip("/"), storage=output.storage)

    def url_of(self, name: str) -> str:
        """Return the URL of a file, named as it is below the output folder."""
        return f"{self.url}/{name}"

    def check(self, probe: str) -> None:
        """Prove that files can be written there, before any worker starts.

        Args:
            probe: name of a file that is written there, and removed.

        Raises:
            ConfigError: they cannot, or the credentials block is not there.
        """
        try:
            _Store(self, limit_s=_PROBE_S).try_out(probe)
        except DatasetError as error:
            raise refuse(
                "output", self.url, f"files must be written and removed there; {error}"
            ) from None

    def upload(
        self, folder: Path, names: Iterable[str], look: Callable[[], None]
    ) -> dict[str, State]:
        """Write files of the output folder there, each in one step, and return how they are there.

        What the storage shows to be there with the same content is left as it is.

        Args:
            folder: the output folder on this machine.
            names: of the files, relative to it.
            look: called several times a second; ends it by raising.

        Raises:
            OutputError: a file could not be written, and those before it are there, whole; or something
                else is there now; or a file has a name that the storage cannot keep.
        """
        wanted = list(names)
        try:
            store = _Store(self)
            for name in wanted:
                if not store.can_keep(name):
                    raise OutputError(
                        f"{name!r} cannot be the name of a file in {self.url}: rename it in the script. "
                        f"All of the output is kept in {folder}, and nothing was uploaded"
                    )
            # Of one file there is nothing to go on with, and to list may need more rights than to write.
            before = store.infos(wanted) if len(wanted) > 1 else {}

            def put(name: str) -> None:
                if not (name in before and content.is_shown(before[name], folder / name)):
                    store.put(folder / name, name)

            _each(wanted, put, look)
            after = store.infos(wanted)
            _each(wanted, lambda name: store.check(folder / name, name, after.get(name)), look)
        except (DatasetError, ConfigError) as error:
            raise OutputError(
                f"the output could not be uploaded: {error}. All of it is kept in {folder}; once the "
                "cause is gone, run the step again, and it is only uploaded"
            ) from None
        return _states(after)

    def states(self, names: Iterable[str]) -> dict[str, State]:
        """Return how files are there now; one that is not there is left out.

        Raises:
            ConfigError: the credentials block is not there.
            DatasetError: the storage does not answer.
        """
        return _states(_Store(self).infos(names))


def _states(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, State]:
    items = {name: transport.item(name, info) for name, info in infos.items()}
    return {name: [one.size, one.etag or str(one.modified_ns)] for name, one in items.items()}


class _Store:
    """The folder in another storage, opened; files go by their names in it, never as URLs are read."""

    def __init__(self, folder: RemoteFolder, *, limit_s: float | None = None) -> None:
        storage = folder.storage.unlocked()
        self._folder, self._options, self._limit_s = folder, storage.options, limit_s
        self._files: Any = self._tried(lambda: storage.filesystem(folder.url), done="read")
        own = source_path.chained(folder.url)[1]
        self._root = str(self._files._strip_protocol(own)).rstrip("/")
        self._appears_whole = storage.protocol in _APPEAR_WHOLE
        self._is_azure = storage.protocol in _AZURE

    def try_out(self, probe: str) -> None:
        """Write a file, and remove it.

        Raises:
            DatasetError: that cannot be done.
        """
        path = self._path(probe)
        self._make(path)
        self._tried(lambda: self._files.pipe_file(path, b"\n"), probe)
        self._tried(lambda: self._files.rm_file(path), probe)

    def can_keep(self, name: str) -> bool:
        """Return whether a file can have this name there; what is behind `?` may be taken for a version."""
        path = self._path(name)
        if not name.isascii() and errors.printable(name) != name:
            return False
        if any(character < " " for character in name) or (self._is_azure and "\\" in name):
            return False
        if not hasattr(self._files, "split_path"):
            return True
        bucket, key, *_ = self._files.split_path(path)
        return f"{bucket}/{key}" == path

    def infos(self, names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Return what the storage tells of files; one that is not there is left out.

        Raises:
            DatasetError: the storage does not answer.
        """
        wanted = set(names)
        if not wanted:
            return {}
        self._files.invalidate_cache()

        def ask() -> dict[str, Mapping[str, Any]]:
            try:
                if len(wanted) > 1:
                    found: dict[str, Mapping[str, Any]] = self._files.find(self._root, detail=True)
                    return found
                # By itself, since the folder may have many others.
                path = self._path(next(iter(wanted)))
                return {path: self._files.info(path)}
            except FileNotFoundError:
                return {}

        start = f"{self._root.strip('/')}/"
        told = {
            path.strip("/").removeprefix(start): info
            for path, info in self._tried(ask, done="read").items()
            if info["type"] == "file"
        }
        return {name: told[name] for name in told.keys() & wanted}

    def put(self, source: Path, name: str) -> None:
        """Write a file, in one step for its readers.

        Raises:
            DatasetError: it cannot be written.
        """
        path = self._path(name)
        if self._appears_whole:
            self._tried(lambda: self._files.put_file(str(source), path), name)
            return
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.parallelrun-{last}.tmp"
        self._make(path)
        self._tried(lambda: self._files.put_file(str(source), temporary), name)
        self._tried(lambda: self._files.mv(temporary, path), name)

    def check(self, source: Path, name: str, info: Mapping[str, Any] | None) -> None:
        """Refuse what is there now in place of a file that was written: another run may have the same output.

        Args:
            source: the file that was written there.
            info: what the storage tells of the file now; None: it is not there.

        Raises:
            DatasetError: it is not there, or it is another one.
        """
        url = self._folder.url_of(name)
        if info is None:
            raise DatasetError(f"{url} is gone again")
        if not (content.is_shown(info, source) or self._holds(source, name, info)):
            raise DatasetError(
                f"{url} was replaced by something else while it was uploaded: another run, or another "
                "program, writes to this output too. Give each an output of its own"
            )

    def _holds(self, source: Path, name: str, info: Mapping[str, Any]) -> bool:
        """Return whether a file there has the content of one here, by reading it."""
        size, path = source.stat().st_size, self._path(name)
        if info.get("size") != size:
            return False
        with source.open("rb") as file:
            for start in range(0, size, _PIECE):
                piece = file.read(_PIECE)
                read = partial(self._files.cat_file, path, start=start, end=start + len(piece))
                if self._tried(read, name, done="read") != piece:
                    return False
        return True

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make(self, path: str) -> None:
        """Make the folder that a file is to be in, where there are folders."""
        folder = path.rpartition("/")[0]
        if not self._appears_whole:
            self._tried(lambda: self._files.makedirs(folder, exist_ok=True))

    def _tried(
        self, call: Callable[[], T], name: str = "", *, done: Literal["read", "written"] = "written"
    ) -> T:
        url = self._folder.url_of(name) if name else self._folder.url
        return transport.retried(
            call, what=url, options=self._options, limit_s=self._limit_s, done=done
        )


def _each(names: Iterable[str], put: Callable[[str], None], look: Callable[[], None]) -> None:
    """Call `put` for each name, several at the same time, in threads for which nobody has to wait.

    Raises:
        Exception: the first that a call raised, or that `look` did; no further call is made then.
    """
    left, failures = deque(names), deque[Exception]()

    def work() -> None:
        while True:
            try:
                name = left.popleft()
            except IndexError:
                return
            try:
                put(name)
            # It is raised where the caller waits.
            except Exception as error:
                failures.append(error)
                left.clear()

    threads = [threading.Thread(target=work, name="upload", daemon=True) for _ in range(_AT_ONCE)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK_S)
                look()
    finally:
        left.clear()
    if failures:
        raise failures[0]
