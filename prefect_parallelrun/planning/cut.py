"""One input, cut into mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A mini-batch that has no number yet; its fields are those of `models.MiniBatch`."""

    items: int | None
    size: int
    work: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one input is cut."""

    pieces: Callable[[], Iterator[Piece]]
    """Gives the mini-batches in order, from the start at each call, made as they are taken."""
    count: int | None
    """Number of mini-batches, where arithmetic tells it."""
    items: int | None
    """Number of items; None for rows, which nobody has counted."""
    size: int
    """Bytes of the input."""
    reader: dict[str, Any]
    """What `load` must know of the input; JSON."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it is cut."""
