"""What the mini-batches of a bundle need, on the node's disk before the supervisor gets the bundle.

The driver keeps more bundles at a node than it has processes, and each waits in a thread of its own: so
the data of the next ones is fetched while `run()` is at others. A bundle waits for all of its data, so it
must not hold much: the agent tells how long that took, and the driver sizes bundles so that fetching one
takes no longer than half a second, or they hold one mini-batch (`policy.BUNDLE_S`). Data is fetched in
the order of the bundles; but one whose data is there does not wait for an earlier one that is stuck.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.node import pieces
from prefect_parallelrun.node.local_names import names_below
from prefect_parallelrun.node.sources import Files, Query
from prefect_parallelrun.node.transfer import Rows, Source, Stopped, Transfers, Unavailable

CACHE_BYTES = 10 * 1000**3
"""Data of bundles on a node's disk, at most; and never more than half of what was free there."""
THREADS = 8
"""Files, or chunks of large ones, of one bundle that are fetched at the same time."""
END_S = 3.0
"""How long the end of a node waits for what is still being fetched; a request that hangs is left behind."""

Job = Callable[[float], int]
"""Fetches something by a deadline (monotonic seconds); returns how many bytes it was."""


class Room:
    """The bytes of a cache, given out in the order of asking.

    What is larger than all of it gets it alone.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._line: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def take(self, size: int) -> None:
        """Wait until there is room.

        Raises:
            Stopped: it is closed.
        """
        me = object()
        with self._changed:
            self._line.append(me)
            self._changed.wait_for(lambda: self._closed or self._is_turn(me, size))
            self._line.remove(me)
            self._changed.notify_all()
            if self._closed:
                raise Stopped
            self._taken += size

    def give_back(self, size: int) -> None:
        """Free what was taken."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_turn(self, me: object, size: int) -> bool:
        return self._line[0] is me and (not self._taken or self._taken + size <= self._size)


@dataclass(slots=True)
class _MiniBatch:
    """A mini-batch while its data is fetched."""

    work: dict[str, Any]
    limit_s: float
    deadline: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    trouble: str = ""

    def run(self, job: Job) -> None:
        """Fetch one thing, unless another one of it is lost already."""
        if self.trouble:
            return
        if not self.deadline:  # it begins with the first; two at once differ by nothing
            self.deadline = time.monotonic() + self.limit_s
        try:
            job(self.deadline)
        except Unavailable as error:
            self.trouble = str(error)
        except OSError as error:
            self.trouble = f"{_shown(self.work)} cannot be kept on the node: {error}"
        except Stopped:
            raise
        except Exception as error:
            # Nobody knows whether a secret is in its text; but a node must not end of it.
            self.trouble = f"{_shown(self.work)} cannot be fetched: {type(error).__name__}"


class Staging:
    """Fetches the data of a node's bundles, and removes it at their end.

    Args:
        inputs: `Sources.inputs`.
        readers: `Plan.readers`.
        folder: of the node's own; made here if anything is to be fetched.
        transfers: its requests.
        told: called with a bundle's number and the seconds that its data took.
    """

    def __init__(
        self,
        inputs: Sequence[Files | Query | None],
        readers: Sequence[dict[str, Any]],
        folder: Path,
        transfers: Transfers,
        told: Callable[[int, float], None] = lambda number, seconds: None,
    ) -> None:
        self._inputs = inputs
        self._readers = readers
        self._folder = folder
        self._transfers = transfers
        self._told = told
        self._sources = [
            Source(one.storage, one.credentials, transfers) if isinstance(one, Files) else None
            for one in inputs
        ]
        self._pieces = pieces.Pieces()
        if any(inputs):
            shutil.rmtree(folder, ignore_errors=True)  # of a node of this name that was killed
            folder.mkdir(parents=True)
        self._room = Room(min(CACHE_BYTES, _free(folder) // 2))
        self._inside = 0
        self._empty = threading.Condition()

    @contextmanager
    def staged(self, number: int, tasks: bytes) -> Iterator[bytes]:
        """Have the data of a bundle there for as long as the context lasts.

        Args:
            number: of the bundle.
            tasks: JSON list of `messages.Task`; `driver.sources` has put `planned` into their work.

        Yields:
            The tasks, with `local` or `unavailable` in the work of those that were fetched.

        Raises:
            Stopped: the node ends.
        """
        if not any(self._inputs):
            yield tasks
            return
        opened = json.loads(tasks)
        wanted = [task for task in opened if self._input(task) is not None]
        size = sum(task[3]["planned"]["bytes"] for task in wanted)
        folder = self._folder / str(number)
        self._room.take(size)
        with self._empty:
            self._inside += 1
        try:
            began = time.monotonic()
            self._fetch(wanted, folder)
            self._told(number, time.monotonic() - began)
            yield json.dumps(opened, separators=(",", ":")).encode()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._room.give_back(size)
            with self._empty:
                self._inside -= 1
                self._empty.notify_all()

    def stop(self) -> None:
        """Give up what is being fetched, and fetch nothing more."""
        self._transfers.stop()
        self._room.close()

    def close(self) -> None:
        """Wait until no bundle has data here any more, some seconds at most."""
        self.stop()
        with self._empty:
            self._empty.wait_for(lambda: not self._inside, END_S)

    # -- inside ------------------------------------------------------------------------------

    def _input(self, task: list[Any]) -> Files | Query | None:
        return self._inputs[task[2]] if 0 <= task[2] < len(self._inputs) else None

    def _fetch(self, tasks: list[list[Any]], folder: Path) -> None:
        mini_batches = []
        for position, task in enumerate(tasks):
            mini_batches.append(self._begun(task, folder, str(position)))
        jobs = [(one, job) for one in mini_batches for job in one.jobs]
        at_once(partial(one.run, job) for one, job in jobs)
        if self._transfers.stopping:
            raise Stopped
        for one in mini_batches:
            del one.work["planned"]
            if one.trouble:
                one.work.pop("local", None)
                one.work["unavailable"] = one.trouble

    def _begun(self, task: list[Any], folder: Path, name: str) -> _MiniBatch:
        """Settle what a mini-batch needs, and where it is to be."""
        index, work = task[2], task[3]
        mini_batch = _MiniBatch(work, self._transfers.limit_s)
        wanted, reader = self._inputs[index], self._readers[index]
        try:
            folder = made_below(folder.parent, f"{folder.name}/{name}/x").parent
            if isinstance(wanted, Query):
                mini_batch.jobs.append(self._query(wanted, reader, work, folder))
            else:
                assert isinstance(wanted, Files)
                self._files(mini_batch, wanted.root, self._sources[index], reader, folder)
        except (Unavailable, OSError) as error:
            mini_batch.trouble = str(error)
        return mini_batch

    def _query(
        self, query: Query, reader: dict[str, Any], work: dict[str, Any], folder: Path
    ) -> Job:
        from prefect_parallelrun.node import sql_rows  # it needs SQLAlchemy

        target = folder / "rows.parquet"
        work["local"] = str(target)

        def job(deadline: float) -> int:
            def ask() -> None:
                left_s = deadline - time.monotonic()
                sql_rows.fetch(query, reader, work, target, left_s)

            self._transfers.ask(ask, Rows(work["path"]), deadline)
            return target.stat().st_size

        return job

    def _files(
        self,
        mini_batch: _MiniBatch,
        root: str,
        source: Source | None,
        reader: dict[str, Any],
        folder: Path,
    ) -> None:
        assert source is not None
        work = mini_batch.work
        paths = work.get("files") or work.get("paths") or [work["path"]]
        items = [
            FileItem(path, *known)
            for path, known in zip(paths, work["planned"]["files"], strict=True)
        ]
        targets = [made_below(folder, name) for name in names_below(root, paths)]
        if "path" in work:
            work["local"] = str(targets[0])
            if pieces.is_piece(work, reader):
                piece = {**work, "path": paths[0]}
                mini_batch.jobs.append(
                    partial(self._piece, source, items[0], piece, reader, targets[0])
                )
                return
        else:
            work["local"] = [str(target) for target in targets]
        for item, target in zip(items, targets, strict=True):
            mini_batch.jobs.extend(pieces.whole(source, item, target))

    def _piece(
        self,
        source: Source,
        item: FileItem,
        work: dict[str, Any],
        reader: dict[str, Any],
        target: Path,
        deadline: float,
    ) -> int:
        self._pieces.fetch(source, item, work, reader, target, deadline)
        return 0


def at_once(jobs: Iterator[Callable[[], None]]) -> None:
    """Call all, some at the same time, until they have ended or one of them raises."""
    for _ in mapped(lambda job: job(), jobs, at_once=THREADS, joined=True):
        pass


def made_below(folder: Path, name: str) -> Path:
    """Return the place of a file in a folder that is there, with the folders between made.

    The folder itself is not made: it may have been removed, since the node ends.
    """
    *between, last = name.split("/")
    for part in between:
        folder /= part
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102  (that of pathlib hides that it is there)
    return folder / last


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _shown(work: dict[str, Any]) -> str:
    path: str = work.get("path") or (work.get("files") or work["paths"])[0]
    return path.partition("?")[0]
