"""A mini-batch in parts: how it is cut until the failing items stand alone, and what becomes of it (R203)."""

from __future__ import annotations

from dataclasses import dataclass

Part = tuple[int, int]
"""Some items of a mini-batch: the first, and the one after the last, from 0."""


@dataclass(slots=True)
class Split:
    """A mini-batch of which the parts are settled one by one."""

    open: int
    """Parts that are not settled."""
    succeeded: bool = False
    """Whether any of its items has succeeded: then, in the end, so has the mini-batch."""


def cut(first: int, stop: int, *, single: bool) -> list[Part]:
    """Return the parts into which a failed part of two items or more is cut: halves.

    `single`: the item between the halves stands alone, and comes first. As long as nothing has
    succeeded such items show with few calls whether any item ever will: in large parts that all fail
    there may just be a bad item each.
    """
    middle = (first + stop) // 2
    if single and stop - first > 2:
        return [(middle, middle + 1), (first, middle), (middle + 1, stop)]
    return [(first, middle), (middle, stop)]
