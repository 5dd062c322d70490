"""Who has which bundle: bookkeeping without any process, socket or clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class Bundle:
    """Some mini-batches that one process runs in order; `frame` passes unopened."""

    __slots__ = ("avoid", "frame", "results", "tag")

    def __init__(self, tag: int, frame: bytes, avoid: list[str]) -> None:
        self.tag = tag
        self.frame = frame
        self.avoid = frozenset(avoid)
        self.results = 0
        """Mini-batches whose result has come: those before this position are finished."""


class Bundles:
    """The bundles of a node, and what each of its processes holds: the current one and the next.

    The next one lies with the process already so that its first mini-batch is loaded ahead. It can be
    taken back as long as it was not begun, so that nobody is idle while it waits behind a long one.
    """

    def __init__(self) -> None:
        self._waiting: deque[Bundle] = deque()
        self._held: dict[str, list[Bundle]] = {}
        self._ready: set[str] = set()

    def add(self, bundle: Bundle) -> None:
        """Queue a bundle behind the others."""
        self._waiting.append(bundle)

    def join(self, process: str) -> None:
        """Count on a process that is starting; it gets nothing yet."""
        self._held[process] = []

    def ready(self, process: str) -> None:
        """Let a process take bundles from now on."""
        self._ready.add(process)

    def retire(self, process: str) -> None:
        """Give a process nothing more; it keeps what it has."""
        self._ready.discard(process)

    def leave(self, process: str) -> Bundle | None:
        """Forget a process; its unbegun bundle is first in the queue again.

        Returns:
            The bundle that it was at, or None.
        """
        self._ready.discard(process)
        held = self._held.pop(process)
        self._waiting.extendleft(held[:0:-1])
        return held[0] if held else None

    def current(self, process: str) -> Bundle | None:
        """Return the bundle that the process is at."""
        held = self._held.get(process)
        return held[0] if held else None

    def count_result(self, process: str) -> None:
        """Count one more mini-batch of the current bundle as finished."""
        self._held[process][0].results += 1

    def end(self, process: str, tag: int) -> Bundle | None:
        """Take the ended bundle from the process; return the one that it begins now, if any."""
        held = self._held[process]
        if held and held[0].tag == tag:
            del held[0]
        return held[0] if held else None

    def hand_out_to_idle(self) -> Iterator[tuple[str, Bundle]]:
        """Give processes that have nothing a bundle each, in order of the queue."""
        return self._hand_out(0)

    def hand_out_ahead(self) -> Iterator[tuple[str, Bundle]]:
        """Give processes that are at a bundle their next one."""
        return self._hand_out(1)

    def _hand_out(self, holding: int) -> Iterator[tuple[str, Bundle]]:
        if not self._waiting:
            return
        for process, held in self._held.items():
            if len(held) != holding or process not in self._ready:
                continue
            bundle = next((one for one in self._waiting if self._suits(one, process)), None)
            if bundle is not None:
                self._waiting.remove(bundle)
                held.append(bundle)
                yield process, bundle

    def is_overloaded(self, process: str) -> bool:
        """Return whether it holds a bundle behind the one that it is at."""
        return len(self._held[process]) > 1

    def overloaded(self) -> Iterator[str]:
        """Yield, for each process without work, one that holds an unbegun bundle which it could take."""
        for process in self._idle():
            for holder, held in self._held.items():
                if len(held) == 2 and self._suits(held[1], process):
                    yield holder
                    break

    def take_back(self, holder: str, tag: int) -> Bundle | None:
        """Put an unbegun bundle of the holder at the front of the queue.

        Returns:
            The bundle that the holder begins instead, if it was its current one.
        """
        held = self._held[holder]
        place = next(place for place, bundle in enumerate(held) if bundle.tag == tag)
        self._waiting.appendleft(held.pop(place))
        return held[0] if held and place == 0 else None

    def _idle(self) -> list[str]:
        return [name for name, held in self._held.items() if not held and name in self._ready]

    def holder(self, tag: int) -> str | None:
        """Return the process that has a bundle; None when it waits, or nobody knows of it."""
        for process, held in self._held.items():
            if any(bundle.tag == tag for bundle in held):
                return process
        return None

    def drop(self, tag: int) -> Bundle | None:
        """Take a waiting bundle out of the queue; None when it does not wait."""
        for bundle in self._waiting:
            if bundle.tag == tag:
                self._waiting.remove(bundle)
                return bundle
        return None

    def drop_waiting(self) -> list[Bundle]:
        """Empty the queue; return what was in it."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def _suits(self, bundle: Bundle, process: str) -> bool:
        # A process that is still starting counts as another that could take it.
        return process not in bundle.avoid or self._held.keys() <= bundle.avoid
