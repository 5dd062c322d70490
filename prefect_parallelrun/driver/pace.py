"""How fast mini-batches are settled."""

from __future__ import annotations

from collections import deque

SPAN_S = 60.0
"""What the rate is of."""
MARK_S = 1.0
"""How closely that is kept in mind."""
ENOUGH = 10
"""Where fewer mini-batches were settled, the rate is of a longer time."""
ROUNDS = 2
"""So is it where fewer were settled than all processes do in so many rounds: they may end together."""


class Pace:
    """How many are settled per second, lately; a node that starts or a long break is soon forgotten."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def begin(self, now: float, settled: int) -> bool:
        """Start the clock with the first mini-batch of the sitting; return whether it was that."""
        if self._marks:
            return False
        self._marks.append((now, settled))
        return True

    def note(self, now: float, settled: int, *, processes: int) -> None:
        """Take in how many are settled now."""
        marks = self._marks
        if not marks or settled == marks[-1][1] or now - marks[-1][0] < MARK_S:
            return
        marks.append((now, settled))
        enough = max(ENOUGH, ROUNDS * processes)
        while len(marks) > 2 and now - marks[1][0] >= SPAN_S and settled - marks[1][1] >= enough:
            marks.popleft()

    def rate(self, now: float, settled: int) -> float:
        """Return how many were settled per second; 0 where none was."""
        if not self._marks or now <= self._marks[0][0]:
            return 0.0
        since, before = self._marks[0]
        return max(0, settled - before) / (now - since)
