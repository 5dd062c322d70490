"""Files and pieces of tables on the node's disk: what of a remote file is fetched, and to where.

A piece becomes a sparse file, as long as the remote one, with only the bytes in place that the loader
reads: so the loaders know nothing of storages.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.node.transfer import Source, Unavailable
from prefect_parallelrun_runtime import text_files
from prefect_parallelrun_runtime.quotes import RowEnds

CHUNK = 8 << 20
"""Bytes that one request asks for, at most."""
STEP = 1 << 16
"""Bytes of a head, a footer or the rest of a row that are asked for first."""
KEPT = 16
"""Heads and footers that are remembered, of the files read last."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """The last few values; each is made once, however many ask for it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[threading.Lock, list[V]]] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value, made now if it is not there; a failure to make it is not kept."""
        with self._lock:
            lock, value = self._entries.setdefault(key, (threading.Lock(), []))
            self._entries.move_to_end(key)
            while len(self._entries) > KEPT:
                self._entries.popitem(last=False)
        with lock:
            if not value:
                value.append(make())
            return value[0]


class Footer(NamedTuple):
    """The end of a Parquet file."""

    start: int
    data: bytes
    metadata: Any


class Pieces:
    """Fetches what the loader of a table reads of one file; one for all tables of a node."""

    def __init__(self) -> None:
        self._heads: Kept[tuple[FileItem, int | None], bytes] = Kept()
        self._footers: Kept[FileItem, Footer] = Kept()

    def fetch(
        self,
        source: Source,
        item: FileItem,
        work: dict[str, Any],
        reader: dict[str, Any],
        target: Path,
        deadline: float,
    ) -> None:
        """Put the piece of a file that `work` means in a new file.

        Args:
            source: the storage.
            item: the file, as it was planned.
            work: see `models.MiniBatch`; not one that means whole files.
            reader: how the table is read.
            target: the new file; its folder is there.
            deadline: monotonic seconds.

        Raises:
            Unavailable: it cannot be had.
        """
        with target.open("xb") as file:
            if "row_groups" in work:
                self._row_groups(source, item, work["row_groups"], file, deadline)
            elif "rows" in work:
                self._first_rows(source, item, work["rows"], reader, file, deadline)
            else:
                self._range(source, item, work, reader, file, deadline)
        source.check(item, deadline)  # not before: it would tell nothing of the bytes that came

    def _range(
        self,
        source: Source,
        item: FileItem,
        work: dict[str, Any],
        reader: dict[str, Any],
        file: Any,
        deadline: float,
    ) -> None:
        """Fetch the head, the bytes [start - 1, end), and the rest of the last row."""
        head = self._heads.get(
            (item, text_files.row_separator(reader)),
            _lasting(source, item, deadline, lambda: _head(source, item, reader, deadline)),
        )
        _put(file, 0, head)
        start, end = max(work["start"] - 1, 0), work["end"]
        last = b""
        if end > len(head):
            for at, data in _read(source, item, start, end, deadline):
                _put(file, at, data)
                last = data[-1:]
        else:
            last = head[end - 1 : end]
        # Where lines may end within a row, the planner has cut behind one.
        if not reader.get("multi_line"):
            rest = _read(source, item, end, item.size, deadline, growing=True)
            while last != b"\n" and (more := next(rest, None)) is not None:
                _put(file, *more)
                last = b"\n" if b"\n" in more[1] else b""
        file.truncate(item.size)

    def _first_rows(
        self,
        source: Source,
        item: FileItem,
        rows: int,
        reader: dict[str, Any],
        file: Any,
        deadline: float,
    ) -> None:
        """Fetch as much of the beginning as holds so many rows."""
        left = rows + int(reader.get("header", False))
        ends = RowEnds(text_files.row_separator(reader))
        for at, data in _read(source, item, 0, item.size, deadline, growing=True):
            _put(file, at, data)
            left -= len(ends.find(data))
            if left <= 0:
                return

    def _row_groups(
        self, source: Source, item: FileItem, groups: list[int], file: Any, deadline: float
    ) -> None:
        """Fetch the footer and the column chunks of some row groups."""
        footer = self._footers.get(
            item, _lasting(source, item, deadline, lambda: _footer(source, item, deadline))
        )
        for start, end in _spans(footer.metadata, groups):
            for at, data in _read(source, item, start, min(end, footer.start), deadline):
                _put(file, at, data)
        _put(file, footer.start, footer.data)


def _lasting(
    source: Source, item: FileItem, deadline: float, make: Callable[[], V]
) -> Callable[[], V]:
    """Return what makes something of a file that is the same before and after."""

    def made() -> V:
        source.check(item, deadline)  # what was changed may be no Parquet file any more
        value = make()
        source.check(item, deadline)
        return value

    return made


def is_piece(work: dict[str, Any], reader: dict[str, Any]) -> bool:
    """Say whether `work` means a part of a file that can be had without the rest."""
    if "rows" in work:
        # Nobody knows where the first rows of what is compressed end.
        cuttable = reader["format"] in ("delimited", "json_lines")
        return cuttable and text_files.can_cut(work["path"], reader["encoding"])
    return "start" in work or "row_groups" in work


def whole(source: Source, item: FileItem, target: Path) -> Iterator[Callable[[float], int]]:
    """Yield what is to be done, in any order and at the same time, to put a file on the disk.

    Each is given a deadline (monotonic seconds), returns how many bytes it has fetched, and may raise
    `Unavailable`. The last one to end sees to it that the file was not changed meanwhile.
    """
    # Whether a web server gives parts of a file shows only when it is asked.
    undivided = item.size > CHUNK and (item.path.startswith("http") or "::" in item.path)
    starts = [0] if undivided else range(0, max(item.size, 1), CHUNK)
    lock, made = threading.Lock(), threading.Event()
    left = len(starts)

    def prepare(deadline: float) -> None:
        with lock:
            if not made.is_set():
                if item.size > CHUNK:
                    source.check(item, deadline)  # else much would be fetched in vain
                target.touch(exist_ok=False)
                made.set()

    def finish(deadline: float) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            source.check(item, deadline)

    def fetch(start: int, end: int) -> Callable[[float], int]:
        def job(deadline: float) -> int:
            prepare(deadline)
            data = source.read(item.path, start, end, deadline)
            with target.open("r+b") as file:
                _put(file, start, data)
            finish(deadline)
            return len(data)

        return job

    def fetch_all(deadline: float) -> int:
        prepare(deadline)
        if source.has_parts(item, deadline):
            with target.open("r+b") as file:
                for at, data in _read(source, item, 0, item.size, deadline):
                    _put(file, at, data)
        else:
            source.download(item.path, target, deadline)
            source.check_size(item, target)
        finish(deadline)
        return item.size

    for start in starts:
        yield fetch_all if undivided else fetch(start, min(start + CHUNK, item.size))


def _put(file: Any, at: int, data: bytes) -> None:
    file.flush()
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, at)
        view, at = view[written:], at + written


def _read(
    source: Source,
    item: FileItem,
    start: int,
    end: int,
    deadline: float,
    *,
    growing: bool = False,
) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes [start, end) with their place; `growing`: little first, then more and more."""
    size = STEP if growing else CHUNK
    while start < end:
        data = source.read(item.path, start, min(start + size, end), deadline)
        yield start, data
        start += len(data)
        size = min(2 * size, CHUNK)


def _head(source: Source, item: FileItem, reader: dict[str, Any], deadline: float) -> bytes:
    """Return the beginning of a text file, with the whole of its first row."""
    head, separator = b"", text_files.row_separator(reader)
    for _, data in _read(source, item, 0, item.size, deadline, growing=True):
        head += data
        if text_files.first_row(head, separator, complete=False):
            break
    return head


def _footer(source: Source, item: FileItem, deadline: float) -> Footer:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = max(item.size - STEP, 0)
    data = source.read(item.path, start, item.size, deadline)
    length = int.from_bytes(data[-8:-4], "little") + 8
    if data[-4:] != b"PAR1" or length > item.size:
        raise Unavailable(f"{source.place(item.path).shown} does not end as a Parquet file does")
    if length > len(data):
        start = item.size - length
        data = source.read(item.path, start, item.size - len(data), deadline) + data
    try:
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + data))
    except (pa.ArrowException, OSError) as error:
        shown = source.place(item.path).shown
        raise Unavailable(f"{shown} has a Parquet footer that cannot be read: {error}") from None
    return Footer(start, data, metadata)


def _spans(metadata: Any, groups: list[int]) -> Iterator[tuple[int, int]]:
    """Yield where the column chunks of row groups are, joined where they touch."""
    found: list[tuple[int, int]] = []
    for group in groups:
        columns = metadata.row_group(group)
        for place in range(columns.num_columns):
            column = columns.column(place)
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            found.append((start, start + column.total_compressed_size))
    start = end = -1
    for following, last in sorted(found):
        if following > end >= 0:
            yield start, end
            start = -1
        start = following if start < 0 else start
        end = max(end, last)
    if end >= 0:
        yield start, end
