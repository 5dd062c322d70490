"""Where attempts wait that are not the next in the plan: each goes to a node where it has not failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Set

from prefect_parallelrun.driver.bundle import Pending


class Waiting:
    """A queue that stays quick with thousands in it: those that avoid the same nodes stand in one line."""

    def __init__(self) -> None:
        self._lines: dict[frozenset[str], deque[Pending]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put(self, member: Pending) -> None:
        """Add one at the end of its line."""
        self._line(member).append(member)

    def put_first(self, member: Pending) -> None:
        """Add one that goes before those of its line."""
        self._line(member).appendleft(member)

    def take(self, node: str, nodes: Set[str]) -> Pending | None:
        """Remove and return one that may run on `node`, which is one of `nodes`, or return None.

        It may where it has not failed before, and anywhere when it has failed on all that there are.
        """
        for tried, line in self._lines.items():
            if node not in tried or nodes <= tried:
                member = line.popleft()
                if not line:
                    del self._lines[tried]
                return member
        return None

    def _line(self, member: Pending) -> deque[Pending]:
        return self._lines.setdefault(frozenset(node for node, _ in member.avoid), deque())
