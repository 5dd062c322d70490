"""What the nodes of one run fetch to one host, and links to that; the last of them to leave removes both.

Each node holds a lock (flock) on it for as long as it is there. The kernel takes that back from a process
that is killed, so what a run left behind is told from what is in use, and nobody has to count. The lock
says whose it is: a folder or a link that is not marked as ours is never removed, whatever it is called.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect_parallelrun.node.transfer import Stopped, Unavailable

LOOK_S = 0.2
"""How often a lock is asked for that another node has."""

_SUFFIX = "-data"
_LOCK, _WORK, _LINKS = "lock", "work", "links"
_QUICKER = (FileExistsError, FileNotFoundError, NotADirectoryError)
"""What meets a node that makes a link where another one makes or removes the same."""
_TRIES = 10


class HostFolder:
    """The folder of one run on this host, as one of its nodes sees it.

    Args:
        run_id: of the run.
        stopping: says that the node ends.
    """

    def __init__(self, run_id: str, stopping: Callable[[], bool]) -> None:
        self.path = Path(tempfile.gettempdir(), f"parallelrun-{run_id}{_SUFFIX}")
        self._stopping = stopping
        self._held: list[tuple[Path, int]] = []
        self._leaving = threading.Lock()

    def enter(self) -> None:
        """Make the folder, or join those that have it; what killed nodes left, of any run, is removed.

        Raises:
            Stopped: the node ends.
            Unavailable: something else is in its place.
        """
        for other in self.path.parent.glob(f"parallelrun-*{_SUFFIX}"):
            if other != self.path:
                _dissolved(other)
        while not self._held:
            if self._stopping():
                raise Stopped
            self._make()
            try:
                lock = _opened(self.path / _LOCK)
            except FileNotFoundError:
                continue  # whoever was last has just removed it
            if _alone(lock) and _is_current(self.path, lock):
                self._begin(lock)
            self._join(self.path, lock)

    def leave(self) -> None:
        """Let go of the folder; the last node removes it, with the links to it."""
        with self._leaving:
            held, self._held = self._held, []
        for folder, lock in held:
            # Not from shared to exclusive at once: of two that try, neither would be the last.
            fcntl.flock(lock, fcntl.LOCK_UN)
            if _alone(lock) and _is_current(folder, lock):
                _remove(folder)
            os.close(lock)

    @contextmanager
    def working(self, wait: Callable[[], None]) -> Iterator[None]:
        """Be the only node that changes what is in the folder.

        Args:
            wait: called while another one is.

        Raises:
            Stopped: the node ends.
        """
        work = _opened(self.path / _WORK)
        try:
            while not _alone(work):
                if self._stopping():
                    raise Stopped
                wait()
                time.sleep(LOOK_S)
            yield
        finally:
            os.close(work)

    def link(self, path: Path, place: Path) -> None:
        """Have at `path` what is at a place in the folder, until the last node leaves.

        Raises:
            Unavailable: something is there that is not ours, or a link cannot be made.
        """
        for number in range(_TRIES):
            try:
                if not self._is_there(path, place):
                    self._make_link(path, place)
                return
            except OSError as error:
                if number < _TRIES - 1 and isinstance(error, _QUICKER):
                    continue
                raise Unavailable(
                    f"{path} cannot be made a link to the side input: {error}. Give as_mount(path) a path "
                    "that the user of the Dask workers may make"
                ) from None

    def _is_there(self, path: Path, place: Path) -> bool:
        """Say whether `path` leads to the place already; links that dead runs have left are removed.

        Raises:
            Unavailable: a link of another side input is there, or above it.
        """
        if _points_to(path, place):
            return True
        for one in (*reversed(path.parents), path):
            folder = _host_folder_of(one)
            if folder is None or (_knows(folder, one) and _dissolved(folder)):
                continue
            here = folder / place.relative_to(self.path)
            if one == path and folder.name == self.path.name and _points_to(path, here):
                # Of nodes of this run whose TMPDIR is another: it stays until we have left, too.
                self._join(folder, _opened(folder / _LOCK, 0))
                return _points_to(path, here)
            if _host_folder_of(one) != folder:
                raise FileNotFoundError(one)  # its last node has just left
            raise Unavailable(
                f"{one} is a link to {one.readlink()}, of another side input, or of another run that is "
                "under way: give as_mount(path) another path"
            )
        return path.exists() and path.samefile(place)

    def _make_link(self, path: Path, place: Path) -> None:
        if path.is_symlink():
            if _host_folder_of(path) is not None:
                raise FileExistsError(path)  # another node was quicker
            raise Unavailable(
                f"{path} is a link to {path.readlink()}, made by somebody else: give as_mount(path) "
                "another path, or remove it"
            )
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise Unavailable(
                f"{path} is there already, and is no empty folder: give as_mount(path) another path, or "
                "move it away"
            )
        missing = [str(parent) for parent in path.parents if not parent.exists()]
        note = {
            "path": str(path),
            "place": str(place),
            "made": missing,
            "was_folder": path.is_dir(),
        }
        links = self.path / _LINKS
        links.mkdir(exist_ok=True)
        # Written down first: a kill in between leaves nothing that nobody knows of.
        number = sum(1 for _ in links.iterdir())
        (links / f"{number}.json").write_text(json.dumps(note))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rmdir()
        path.symlink_to(place)

    def _make(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        status = self.path.lstat()
        # Everybody may write into the folder for temporary files.
        if self.path.is_symlink() or status.st_uid != os.geteuid():
            raise Unavailable(f"{self.path} is not a folder of this user: remove it")

    def _begin(self, lock: int) -> None:
        """Be the first in the folder: mark it as ours, and remove what dead nodes have left in it.

        Raises:
            Unavailable: it is somebody else's.
        """
        if not _is_marked(self.path, lock) and {one.name for one in self.path.iterdir()} != {_LOCK}:
            os.close(lock)
            raise Unavailable(f"{self.path} holds files of somebody else: move it away")
        os.pwrite(lock, _mark(self.path), 0)
        _empty(self.path)

    def _join(self, folder: Path, lock: int) -> None:
        """Hold a folder by its lock, unless it has been removed meanwhile, or the node ends."""
        if self._shared(lock) and _is_current(folder, lock):
            self._held.append((folder, lock))
        else:
            os.close(lock)

    def _shared(self, lock: int) -> bool:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._stopping():
                    return False
            time.sleep(LOOK_S)


def _opened(path: Path, more: int = os.O_CREAT) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | more, 0o600)


def _alone(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(folder: Path, lock: int) -> bool:
    """Say whether the lock is that of the folder which is there now, not of one that was removed."""
    try:
        return os.path.samestat(os.fstat(lock), (folder / _LOCK).stat())
    except FileNotFoundError:
        return False


def _mark(folder: Path) -> bytes:
    return (
        f"{folder.name} of prefect-parallelrun, removed when no node of the run is left\n".encode()
    )


def _is_marked(folder: Path, lock: int) -> bool:
    mark = _mark(folder)
    return os.pread(lock, len(mark) + 1, 0) == mark


def _remove(folder: Path) -> None:
    _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Remove the links to a folder, and what is in it but for its lock."""
    for note in _notes(folder):
        with contextlib.suppress(OSError):
            _unlink(note)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)


def _notes(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what was written down of each link to a folder, the last first."""
    for note in sorted((folder / _LINKS).glob("*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            yield json.loads(note.read_text())


def _unlink(note: dict[str, Any]) -> None:
    path, place = Path(note["path"]), Path(note["place"])
    if not _points_to(path, place):
        return
    path.unlink()
    if note["was_folder"]:
        path.mkdir()
        return
    with contextlib.suppress(OSError):  # somebody has put something there
        for parent in note["made"]:
            Path(parent).rmdir()


def _knows(folder: Path, link: Path) -> bool:
    """Say whether a link is one that was written down in the folder it leads into."""
    target = str(link.readlink())
    return any((note["path"], note["place"]) == (str(link), target) for note in _notes(folder))


def _dissolved(folder: Path) -> bool:
    """Remove the folder of a run of which no node lives; return whether it was such."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return False
        lock = _opened(folder / _LOCK, 0)
    except OSError:
        return False
    try:
        if not (_alone(lock) and _is_current(folder, lock) and _is_marked(folder, lock)):
            return False
        _remove(folder)
        return True
    except OSError:  # not a file
        return False
    finally:
        os.close(lock)


def _points_to(path: Path, place: Path) -> bool:
    return path.is_symlink() and path.readlink() == place


def _host_folder_of(path: Path) -> Path | None:
    """Return the folder of a run that a link leads into; None where it is none, or leads elsewhere."""
    if not path.is_symlink():
        return None
    for place in path.readlink().parents:
        if place.name.startswith("parallelrun-") and place.name.endswith(_SUFFIX):
            with contextlib.suppress(OSError):
                lock = _opened(place / _LOCK, 0)
                try:
                    return place if _is_marked(place, lock) else None
                finally:
                    os.close(lock)
    return None
