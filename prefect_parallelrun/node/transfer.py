"""What a node asks of storages: few requests at a time, each with a limit, again where that can help."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import transport
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.remote_file import Opened
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun_runtime import source_path
from prefect_parallelrun_runtime.load_error import LoadError

REQUESTS = 16
"""Requests of a node at the same time."""
ANSWER_S = 120.0
"""A request that has brought nothing by then hangs: it is given up and made again."""
TRIES = 8
"""Times that a request is made which fails for reasons that may pass: about a minute."""
PAUSE_S = 0.25
"""Before the second try; doubled before each further one, and up to half of it left out at random."""
LONGEST_PAUSE_S = 20.0
CLOCK_NS = 1_000_000
"""fsspec gives some times as floats, which round them."""
LOOK_S = 0.2
"""How soon a request is given up once the node ends."""

T = TypeVar("T")


class Unavailable(Exception):
    """Data cannot be had; the message says which, why, and what to do, and shows no secret."""


class Stopped(Exception):
    """The node ends: nothing is fetched any more."""


class _Answer(Generic[T]):
    """What a request in a thread of its own comes to; nobody may be left who wants to know."""

    def __init__(self, request: Callable[[], T]) -> None:
        self.there = threading.Event()
        self._request = request
        self._value: list[T] = []
        self._error: BaseException | None = None
        # A daemon: nothing can end a request that hangs, and the process must be able to.
        threading.Thread(target=self._ask, name="parallelrun-fetch", daemon=True).start()

    def _ask(self) -> None:
        try:
            self._value.append(self._request())
        except BaseException as error:
            self._error = error
        self.there.set()

    def take(self) -> T:
        """Return the answer, or raise what the request raised."""
        if self._error is not None:
            raise self._error
        return self._value[0]


class Transfers:
    """The requests of one node.

    Args:
        limit_s: seconds that all tries for one mini-batch may take together.
    """

    def __init__(self, *, limit_s: float) -> None:
        self.limit_s = limit_s
        self._slots = threading.BoundedSemaphore(REQUESTS)
        self._stopping = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether nothing is to be fetched any more."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Give up what is under way, and refuse what comes."""
        self._stopping.set()

    def ask(self, request: Callable[[], T], place: Asked, deadline: float) -> T:
        """Make a request, again while its failures may pass; return its answer.

        Args:
            request: may hang.
            place: what is asked for.
            deadline: monotonic seconds.

        Raises:
            Unavailable: there is no answer, or none that helps.
            Stopped: the node ends.
        """
        began, tries = time.monotonic(), 0
        while True:
            tries += 1
            try:
                return self._once(request, min(deadline, time.monotonic() + place.answer_s))
            except Stopped:
                raise
            except Exception as error:
                pause = min(PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                late = time.monotonic() + pause >= deadline
                if late or tries == TRIES or not place.may_pass(error):
                    took = time.monotonic() - began
                    raise Unavailable(place.trouble(error, tries, took)) from None
            if self._stopping.wait(pause):
                raise Stopped

    def _once(self, request: Callable[[], T], deadline: float) -> T:
        self._wait(lambda: self._slots.acquire(timeout=LOOK_S), deadline, "no request was free")
        try:
            answer = _Answer(request)
            self._wait(lambda: answer.there.wait(LOOK_S), deadline, "there was no answer")
        finally:
            # Also of one that hangs on: the storage, not the node, has run dry then.
            self._slots.release()
        return answer.take()

    def _wait(self, there: Callable[[], bool], limit: float, otherwise: str) -> None:
        began = time.monotonic()
        while True:
            if self._stopping.is_set():
                raise Stopped
            if there():
                return
            if time.monotonic() >= limit:
                raise TimeoutError(f"{otherwise} in {time.monotonic() - began:.0f} seconds")


class Asked(Protocol):
    """What a request is for."""

    @property
    def answer_s(self) -> float:
        """Seconds after which a request that has brought nothing hangs."""

    def may_pass(self, error: BaseException) -> bool:
        """Say whether the same request may succeed later."""

    def trouble(self, error: BaseException, tries: int, took_s: float) -> str:
        """Say why a request failed for good, and what to do."""


class Rows:
    """The rows of a query, as people may read of them."""

    answer_s = math.inf
    """A query may take its time, up to the deadline."""

    def __init__(self, label: str) -> None:
        self._label = label

    def may_pass(self, error: BaseException) -> bool:
        """Say whether the same query may succeed later."""
        return bool(getattr(error, "passing", False))

    def trouble(self, error: BaseException, tries: int, took_s: float) -> str:
        """Say why the rows cannot be had."""
        if isinstance(error, ParallelRunError | LoadError):
            return str(error)
        # Of others nobody knows whether a password is in their text; of ours there is none.
        detail = str(error) if isinstance(error, TimeoutError) else type(error).__name__
        return f"{self._label}: the rows cannot be fetched: {detail}"


class Place:
    """A file in a storage, as people may read of it.

    Args:
        url: of the file.
        storage: of which no secret is shown.
        credentials: name of the block that opens it; empty for none.
    """

    def __init__(self, url: str, storage: Storage, credentials: str = "") -> None:
        self.answer_s = ANSWER_S
        self.shown = transport.scrubbed(url, {})
        self._storage = storage
        self._credentials = credentials

    def may_pass(self, error: BaseException) -> bool:
        """Say whether the same request may succeed later."""
        return transport.is_passing(error)

    def trouble(self, error: BaseException, tries: int, took_s: float) -> str:
        """Say why a request failed for good, and what to do."""
        text = transport.trouble(error, self.shown, self._storage.options, tries, took_s)
        if self._credentials and transport.is_denied(error):
            text += f". They are those of the credentials block {self._credentials!r}"
        return text


class Source:
    """The files of one storage, opened when first asked for.

    Args:
        storage: unlocked.
        credentials: name of the block that opens it; empty for none.
        transfers: of the node.
    """

    def __init__(self, storage: Storage, credentials: str, transfers: Transfers) -> None:
        self._storage = storage
        self._credentials = credentials
        self._transfers = transfers
        self._opening = threading.Lock()
        self._opened: dict[str, Opened] = {}
        """By the archive that files are in, or the host, bucket or account that their URLs name."""

    def place(self, path: str) -> Place:
        """Return how a file is spoken of."""
        return Place(path, self._storage, self._credentials)

    def check(self, item: FileItem, deadline: float) -> None:
        """Refuse a file that is another one than when the step was planned.

        Raises:
            Unavailable: it is, or it is not there.
        """
        place = self.place(item.path)

        def look() -> FileItem:
            opened, inner = self._located(item.path)
            return transport.item(item.path, opened.filesystem.info(inner))

        now = self._transfers.ask(look, place, deadline)
        changes: list[tuple[object, object, str]] = [(now.size, item.size, "size")]
        if now.etag and item.etag:
            changes.append((now.etag, item.etag, "etag"))
        elif (
            now.modified_ns
            and item.modified_ns
            and abs(now.modified_ns - item.modified_ns) > CLOCK_NS
        ):
            changes.append((now.modified_ns, item.modified_ns, "time of change (in nanoseconds)"))
        for found, planned, what in changes:
            if found != planned:
                raise Unavailable(
                    f"{place.shown} was changed since the step was planned: its {what} was {planned} and "
                    f"is {found}. Run the step again"
                )

    def read(self, path: str, start: int, end: int, deadline: float) -> bytes:
        """Return the bytes [start, end) of a file.

        Raises:
            Unavailable: they cannot be had.
        """
        if end <= start:
            return b""
        place = self.place(path)

        def fetch() -> bytes:
            opened, inner = self._located(path)
            data: bytes = opened.filesystem.cat_file(inner, start=start, end=end)
            return data

        data = self._transfers.ask(fetch, place, deadline)
        if len(data) > end - start:
            data = data[start:end]  # of a server that knows no ranges
        if len(data) < end - start:
            raise Unavailable(
                f"{place.shown} was changed since the step was planned: it is shorter now. Run the step again"
            )
        return data

    def has_parts(self, item: FileItem, deadline: float) -> bool:
        """Say whether a file can be read from its middle: not every web server can, and no archive."""

        def look() -> bool:
            opened, inner = self._located(item.path)
            return opened.gives_parts(inner, item.path, item.size)

        return self._transfers.ask(look, self.place(item.path), deadline)

    def download(self, path: str, target: Path, deadline: float) -> None:
        """Put a whole file on the disk with one request.

        Raises:
            Unavailable: it cannot be had.
        """
        place = self.place(path)
        place.answer_s = math.inf  # of all of it; up to the deadline

        def fetch() -> None:
            opened, inner = self._located(path)
            opened.filesystem.get_file(inner, str(target))

        self._transfers.ask(fetch, place, deadline)

    def check_size(self, item: FileItem, target: Path) -> None:
        """Refuse a file that came with another length than it had when the step was planned.

        Raises:
            Unavailable: it did.
        """
        if (size := target.stat().st_size) != item.size:
            raise Unavailable(
                f"{self.place(item.path).shown} has {size:,} bytes, and had {item.size:,} when the step was "
                "planned. Run the step again"
            )

    def _located(self, path: str) -> tuple[Opened, str]:
        """Return the filesystem for a file, and the file's path there."""
        before, own, after = source_path.chained(path)
        # An archive is a filesystem of its own; else a URL may name an account.
        opener = before + (after or own.partition("://")[2].partition("/")[0])
        # One for all threads: fsspec's own cache would make one, with connections, for each of them.
        with self._opening:
            opened = self._opened.get(opener)
            if opened is None:
                filesystem = self._storage.filesystem(path)
                filesystem.invalidate_cache()  # fsspec may have kept one that has listed this before
                opened = self._opened[opener] = Opened(filesystem, self._storage.options)
        return opened, own
