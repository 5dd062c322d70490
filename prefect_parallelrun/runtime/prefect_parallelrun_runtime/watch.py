"""Which descriptors are polled, for what, and who handles what is reported of them."""

from __future__ import annotations

import select
from collections.abc import Callable


class Watch:
    """A registry in front of epoll; it calls the kernel only when something changes."""

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll
        self._handlers: dict[int, Callable[[], None]] = {}
        self._masks: dict[int, int] = {}

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Watch a descriptor that becomes readable."""
        self._handlers[fd] = handler
        self._masks[fd] = select.EPOLLIN
        self._poll.register(fd, select.EPOLLIN)

    def change(self, fd: int, mask: int) -> None:
        """Watch a descriptor for something else from now on; one that is not watched stays so."""
        if self._masks.get(fd, mask) != mask:
            self._masks[fd] = mask
            self._poll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """Watch a descriptor no more."""
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._poll.unregister(fd)

    def handle(self, fd: int) -> None:
        """Call the handler of a descriptor that the poll reported."""
        handler = self._handlers.get(fd)
        if handler is not None:  # else it was removed earlier in this round
            handler()
