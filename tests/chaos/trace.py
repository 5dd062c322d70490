"""What the entry script itself wrote down: who ran which items, where, when, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Item = str | int
"""A file's name, or a row's key."""


@dataclass(slots=True, kw_only=True)
class Execution:
    """One call of `run()`. Times are of the machine's monotonic clock, in seconds."""

    items: tuple[Item, ...]
    index: int
    """Of the mini-batch, as the product numbers it."""
    token: str
    """Of the worker process."""
    pid: int
    supervisor: int
    """Process id of its supervisor; one per node and sitting."""
    worker: int
    """Process id of the Dask worker."""
    began: float
    ended: float | None = None
    """None: it was cut off."""
    how: str = ""
    """`end`, or what the script did to itself: `raise`, `bad_exit`, `exit`, `sys_exit`, `hang`, `hang_in_c`."""

    @property
    def succeeded(self) -> bool:
        """Whether `run()` returned its rows."""
        return self.how == "end"


class Trace:
    """The trace of one run, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._open: dict[tuple[str, int], Execution] = {}
        self.executions: list[Execution] = []
        self.latest: dict[int, Execution] = {}
        """By process id."""
        self.done: set[Item] = set()
        """Items of which the rows were returned."""

    def read(self) -> None:
        """Take in what was added."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        key = (line.pop("token"), line.pop("number"))
        at, what = line.pop("at"), line.pop("do")
        if what == "start":
            items = tuple(line.pop("items"))
            execution = Execution(items=items, token=key[0], began=at, **line)
            self._open[key] = execution
            self.executions.append(execution)
            self.latest[execution.pid] = execution
            return
        execution = self._open.pop(key)
        execution.ended, execution.how = at, what
        if execution.succeeded:
            self.done.update(execution.items)
