"""Which bytes of text files are looked at to settle the types of columns (R111).

Head, tail and evenly spaced blocks of each file, about 16 MB in all; a smaller input is read whole.
Of more than 2,000 files, 2,000 evenly spaced ones; of a file that cannot be read from its middle
(compressed, UTF-16), the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets import remote_file
from prefect_parallelrun.datasets.concurrent import mapped
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun_runtime import text_files
from prefect_parallelrun_runtime.load_error import LoadError, Unfit
from prefect_parallelrun_runtime.quotes import QuoteState, RowEnds, inside_at, toggles

SAMPLE_BYTES = 16 << 20
"""An input smaller than this is looked at whole."""
MAX_FILES = 2_000
_BLOCK = 64 << 10
_SMALLEST_BLOCK = 4 << 10
_LONGEST_ROW = 1 << 20
"""A longer row does not count: one could be as long as the file."""


class Sample(NamedTuple):
    """Rows of one file."""

    path: str
    first: list[str] | None
    """Values of the file's first row, its header where it has one; None for a file without rows, and
    where the format has no header."""
    rows: bytes
    """Whole rows, in UTF-8, without the header."""


def samples(files: Sequence[FileItem], reader: dict[str, Any]) -> Iterator[Sample]:
    """Yield rows of each file that is looked at.

    Args:
        reader: Settings of the reader; `columns` are not needed yet.

    Raises:
        LoadError: the first row of a file cannot be read.
        OSError: a file cannot be read.
    """
    filled = [file for file in files if file.size]
    whole = sum(file.size for file in filled) <= SAMPLE_BYTES
    chosen = spread(filled, MAX_FILES)
    share = SAMPLE_BYTES // len(chosen) if chosen else 0

    def of_file(file: FileItem) -> Sample:
        try:
            return _sample(file, reader, None if whole else share)
        except Unfit as unfit:
            raise LoadError(f"{file.path}: {unfit.reason}") from None
        except UnicodeDecodeError as error:
            raise LoadError(
                f"{file.path}: {error}; name the right encoding= for the dataset"
            ) from None

    yield from mapped(of_file, chosen, at_once=remote_file.at_once(chosen))


def _sample(file: FileItem, reader: dict[str, Any], share: int | None) -> Sample:
    """Return rows of one file, of about `share` bytes; all rows for None."""
    if not text_files.can_cut(file.path, reader["encoding"]):
        return _head_of_stream(file.path, reader, SAMPLE_BYTES if share is None else share)
    if share is None or file.size <= max(share, 3 * _SMALLEST_BLOCK):
        with remote_file.fetched(file.path, [(0, file.size)]):
            first, start = _head(file.path, reader)
            raw = text_files.exact_range(file.path, min(start, file.size), file.size)
    else:
        first, start = _head(file.path, reader)
        ranges = _ranges(file, share, start)
        with remote_file.fetched(file.path, ranges):
            raw = b"".join(_blocks(file, reader, ranges, start))
    return Sample(file.path, first, text_files.as_utf8(raw, reader["encoding"], errors="replace"))


def spread(files: Sequence[FileItem], count: int) -> list[FileItem]:
    """Return at most `count` of the files, evenly spaced, the first and the last among them."""
    if len(files) <= count:
        return list(files)
    return [files[place * (len(files) - 1) // (count - 1)] for place in range(count)]


def _head(path: str, reader: dict[str, Any]) -> tuple[list[str] | None, int]:
    if "separator" in reader:
        head = text_files.read_head(path, reader)
        return head.names, head.start
    return None, text_files.bom_length(path)


def _ranges(file: FileItem, share: int, data_start: int) -> list[tuple[int, int]]:
    count = max(3, share // _BLOCK)
    length = max(share // count, _SMALLEST_BLOCK)
    starts = [
        max(place * (file.size - length) // (count - 1), data_start) for place in range(count)
    ]
    return [(start, min(start + length, file.size)) for start in starts]


def _blocks(
    file: FileItem,
    reader: dict[str, Any],
    ranges: Sequence[tuple[int, int]],
    data_start: int,
) -> Iterator[bytes]:
    quoting = text_files.row_separator(reader)
    for place, (start, end) in enumerate(ranges):
        if quoting is None:
            _, block = text_files.rows_of_range(
                file.path, start, end, data_start, longest=_LONGEST_ROW
            )
        elif place == 0:
            block = _first_rows(file, start, end - start, quoting)
        else:
            block = _likely_rows(
                text_files.exact_range(file.path, start, end), quoting, end == file.size
            )
        yield block if not block or block.endswith(b"\n") else block + b"\n"


def _first_rows(file: FileItem, start: int, length: int, separator: int) -> bytes:
    while True:
        block = text_files.exact_range(file.path, start, min(start + length, file.size))
        ends = RowEnds(separator).find(block)
        if len(ends):
            return block[: int(ends[-1])]
        if start + length >= file.size:
            return block
        if length > _LONGEST_ROW:
            return b""
        length *= 4


def _likely_rows(block: bytes, separator: int, to_the_end: bool) -> bytes:
    """Return the whole rows of a block from the middle of a file whose values may hold newlines.

    Whether it begins inside a quoted value, only all bytes before it could tell. With the wrong
    guess, quotes open and close where none should; so the guess with fewer of those is taken.
    """
    import numpy as np

    newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == 0x0A)
    guesses = [QuoteState(inside=False, may_open=False), QuoteState(inside=True, may_open=False)]
    guess = min(guesses, key=lambda state: _misplaced(block, separator, state))
    positions, _ = toggles(block, separator, guess)
    ends = newlines[~inside_at(newlines, positions, guess)]
    if len(ends) == 0:
        return b""
    return block[int(ends[0]) + 1 : None if to_the_end else int(ends[-1]) + 1]


def _misplaced(block: bytes, separator: int, state: QuoteState) -> int:
    import numpy as np

    array = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(array == 0x22)
    quotes = quotes[(quotes > 0) & (quotes < len(block) - 1)]
    edges = (separator, 0x0A, 0x0D, 0x22)
    first_opens = 0 if not state.inside else 1
    opens, closes = quotes[first_opens::2], quotes[1 - first_opens :: 2]
    wrong = (~np.isin(array[opens - 1], edges)).sum() + (~np.isin(array[closes + 1], edges)).sum()
    return int(wrong)


def _head_of_stream(path: str, reader: dict[str, Any], limit: int) -> Sample:
    pieces: list[bytes] = []
    length = 0
    quoting = text_files.row_separator(reader)
    ends = RowEnds(quoting)
    last_end = 0
    complete = True
    for block in text_files.blocks(path, reader["encoding"], errors="replace"):
        found = ends.find(block)
        if len(found):
            last_end = length + int(found[-1])
        pieces.append(block)
        length += len(block)
        if length >= limit and last_end:
            complete = False
            break
    data = b"".join(pieces)
    rows = data if complete else data[:last_end]
    if "separator" not in reader:
        return Sample(path, None, rows)
    row = text_files.first_row(data, quoting, complete=complete)
    if row is None:
        return Sample(path, None, b"")
    first = text_files.split_values(data[row[0] : row[1]].decode(), reader["separator"])
    return Sample(path, first, rows[row[1] :] if reader["header"] else rows)
