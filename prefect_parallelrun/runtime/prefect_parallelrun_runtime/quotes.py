"""Where rows of delimited text end: newlines outside quotes, found at the speed of memory.

A quote opens a value only where a value begins; `5" pipe` holds a literal one. This is how pandas
and Arrow read, so a row here is a row there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

_QUOTE = 0x22
_NEWLINE = 0x0A
_RETURN = 0x0D


class QuoteState(NamedTuple):
    """What must be known of the bytes before a block."""

    inside: bool = False
    """Whether a quoted value is open."""
    may_open: bool = True
    """Whether a quote as the next byte would open a value (or go on with the one just closed)."""


def toggles(block: bytes, separator: int, state: QuoteState) -> tuple[Positions, QuoteState]:
    """Return the positions of the quotes that open or close a value, and the state after `block`."""
    import numpy as np

    if not block:
        return np.empty(0, np.int64), state
    array = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(array == _QUOTE)
    if len(quotes) and not _all_toggle(array, quotes, separator, state):
        quotes = _toggles_one_by_one(block, quotes, separator, state)
    inside = state.inside ^ bool(len(quotes) % 2)
    last = block[-1]
    closes_at_end = len(quotes) > 0 and int(quotes[-1]) == len(block) - 1
    may_open = last in (separator, _NEWLINE, _RETURN) or closes_at_end
    return quotes, QuoteState(inside, may_open)


def _all_toggle(array: Any, quotes: Positions, separator: int, state: QuoteState) -> bool:
    """Say whether each quote flips the state: then counting them is all there is to do.

    It is so when every quote that would open a value stands where one may: after a separator or a
    line end, or right after a closing quote (a doubled quote is a close and a reopening).
    """
    import numpy as np

    opens = quotes[1 if state.inside else 0 :: 2]
    if len(opens) and opens[0] == 0:
        if not state.may_open:
            return False
        opens = opens[1:]
    before = array[opens - 1]
    return bool(np.isin(before, (separator, _NEWLINE, _RETURN, _QUOTE)).all())


def _toggles_one_by_one(
    block: bytes, quotes: Positions, separator: int, state: QuoteState
) -> Positions:
    import numpy as np

    found: list[int] = []
    inside = state.inside
    closed_at = -1 if state.may_open else -2
    for position in quotes.tolist():
        if inside:
            inside = False
            closed_at = position
        elif position - 1 == closed_at or (
            position > 0 and block[position - 1] in (separator, _NEWLINE, _RETURN)
        ):
            inside = True
        else:
            continue
        found.append(position)
    return np.array(found, np.int64)


class RowEnds:
    """Finds the ends of rows, block by block; empty lines are no rows.

    Args:
        separator: The byte between values, where a quoted value may hold newlines; None where every
            newline ends a row.
    """

    def __init__(self, separator: int | None) -> None:
        self._separator = separator
        self._state = QuoteState()
        self.unfinished = False
        """Whether a row has begun that no newline has ended yet."""

    def find(self, block: bytes) -> Positions:
        """Return the position, within `block`, just after each row that ends there."""
        import numpy as np

        if not block:
            return np.empty(0, np.int64)
        array = np.frombuffer(block, np.uint8)
        newlines = np.flatnonzero(array == _NEWLINE)
        if self._separator is not None:
            before = self._state
            positions, self._state = toggles(block, self._separator, before)
            if len(positions) or before.inside:
                newlines = newlines[~inside_at(newlines, positions, before)]
        if not len(newlines):
            self.unfinished = self.unfinished or bool(block.strip(b"\r"))
            return newlines
        starts = np.concatenate(([0], newlines[:-1] + 1))
        lengths = newlines - starts
        empty = (lengths == 0) | ((lengths == 1) & (array[starts] == _RETURN))
        empty[0] = not self.unfinished and not block[: newlines[0]].strip(b"\r")
        self.unfinished = bool(block[newlines[-1] + 1 :].strip(b"\r"))
        ends: Positions = newlines[~empty] + 1
        return ends


def inside_at(places: Positions, positions: Positions, before: QuoteState) -> npt.NDArray[np.bool_]:
    """Return for each of `places` whether it is inside a quoted value."""
    import numpy as np

    result: npt.NDArray[np.bool_] = np.searchsorted(positions, places) % 2 != int(before.inside)
    return result
