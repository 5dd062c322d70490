"""Where a file can be cut whose values may hold newlines: one sequential scan, as far as is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun_runtime import source_path
from prefect_parallelrun_runtime.quotes import QuoteState, toggles

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.quotes import Positions

_BLOCK = 1 << 20


def ranges(file: FileItem, data_start: int, size: int, separator: int) -> Iterator[tuple[int, int]]:
    """Yield byte ranges of whole rows: range k holds the rows that begin in the k-th `size` bytes.

    Ranges in which no row would begin are left out.

    Raises:
        OSError: the file cannot be read.
    """
    first, target = data_start, (data_start // size + 1) * size
    position, state = data_start, QuoteState()
    with source_path.open_file(file.path) as stream:
        stream.seek(data_start)
        while position < file.size and (block := stream.read(_BLOCK)):
            quotes, after = toggles(block, separator, state)
            while target - 1 < position + len(block):
                end = _row_end(block, quotes, state, max(target - 1 - position, 0))
                if end < 0 or position + end >= file.size:
                    break
                yield first, position + end
                first = position + end
                target = (first // size + 1) * size
            position += len(block)
            state = after
    if first < file.size:
        yield first, file.size


def _row_end(block: bytes, quotes: Positions, state: QuoteState, start: int) -> int:
    """Return where the first row that ends at `start` or later ends, or -1."""
    while True:
        newline = block.find(b"\n", start)
        if newline < 0:
            return -1
        passed = int(quotes.searchsorted(newline))
        if (passed + state.inside) % 2 == 0:
            return newline + 1
        if passed == len(quotes):
            return -1
        start = int(quotes[passed])
