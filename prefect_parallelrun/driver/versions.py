"""Whether a Dask worker has this package, in this version: it is asked before it becomes a node."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
import textwrap
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from prefect_parallelrun.version import __version__

PACKAGE = "prefect-parallelrun"
MODULE = "prefect_parallelrun"
OLDEST_PYTHON = (3, 11)
"""That this package can be installed in."""
AGAIN_S = 30.0
"""How long it is believed that a Dask worker cannot be a node: somebody may mend it meanwhile."""
ASKED_AT_ONCE = 50
"""Of a cluster of thousands, not all need to be asked for a run of a few nodes."""
PATIENCE_S = 1.0
"""So long all are waited for, that there is a choice among them; they answer in milliseconds, or are busy."""
SLOW_S = 15.0
"""A Dask worker that has not answered by then is named in the log; it is a node once it answers."""
TELL_AT_FAILURE = 2
"""It is told why a Dask worker cannot be asked when that has failed so often."""
SHOWN = 5
"""Dask workers that are named, of those that have the same trouble."""

Ask = Callable[[str], Awaitable[dict[str, str]]]
"""Gets `look`'s answer from the Dask worker at an address."""
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Lets work go on beside, until the run is over at the latest."""


def look(package: str, load: str) -> dict[str, str]:
    """Return what a Dask worker has; it runs there, sent as text: nothing of ours may be there to call.

    Only what each Python has for long may be in it, and an answer is no object of ours.

    Args:
        package: its version is looked up; what is loaded already counts, whatever was installed since.
        load: the module of it that is to be loaded, too; empty for none.
    """
    import importlib
    import platform
    import socket
    import sys

    there = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "version": "",
        "missing": "",
        "error": "",
    }
    importlib.invalidate_caches()  # it may have been installed since the Dask worker began
    try:
        found = importlib.import_module(package)
        there["version"] = str(getattr(found, "__version__", "of an unknown version"))
        if load:
            importlib.import_module(load)
    except Exception as error:
        there["missing"] = str(getattr(error, "name", None) or "")
        there["error"] = f"{type(error).__name__}: {error}"
    return there


def question(*, load: str = "") -> tuple[Any, ...]:
    """Return a function and its arguments, to be called on a Dask worker; it answers as `look` does.

    All of it is the standard library's, and the code is text: as an object it would be for one version of
    Python alone. It runs in a thread, for to load a module takes a while.
    """
    source = textwrap.dedent(inspect.getsource(look))
    call = f"there['look']({MODULE!r}, {load!r})"
    annotations = "from __future__ import annotations\n"
    text = f"(lambda there: exec({annotations + source!r}, there) or {call})({{}})"
    return asyncio.to_thread, eval, text


def trouble(there: dict[str, str]) -> str:
    """Return why a Dask worker cannot be a node, and what to do; empty if it can.

    Args:
        there: the answer to `question`.
    """
    wanted = __version__
    python = f"Python {there['python']}, {there['executable']}"
    install = (
        f'Run pip install "{PACKAGE}=={wanted}" in the environment of the Dask workers, and start them '
        "again"
    )
    if not there["version"]:
        if there["missing"] != MODULE:
            return f"{PACKAGE} cannot be loaded there ({python}): {there['error']}. {install}"
        oldest = ".".join(map(str, OLDEST_PYTHON))
        if tuple(map(int, there["python"].split(".")[:2])) < OLDEST_PYTHON:
            return (
                f"there is no {PACKAGE} ({python}), which needs Python {oldest} or later. Give the Dask "
                f'workers an environment with that and "{PACKAGE}=={wanted}"'
            )
        return f"there is no {PACKAGE} ({python}). {install}"
    if there["version"] != wanted:
        return (
            f"there is {PACKAGE} {there['version']} ({python}), and {wanted} where the flow runs. "
            f"{install}, or install their version where the flow runs"
        )
    if there["error"]:
        return f"{PACKAGE} {wanted} is there, but cannot be loaded ({python}): {there['error']}. {install}"
    return ""


class Fitness:
    """Knows which Dask workers can be nodes; all that it does goes on beside, on the client's event loop.

    Args:
        ask: reaches them.
        spawn: carries the questions.
        changed: is set when all have answered.
        log: of the run.
    """

    def __init__(
        self, ask: Ask, spawn: Spawn, *, changed: asyncio.Event, log: logging.Logger
    ) -> None:
        self._ask = ask
        self._spawn = spawn
        self._changed = changed
        self._log = log
        self._fit: set[str] = set()
        self._any_fit = False
        """Whether any was, also of those that are forgotten."""
        self._unfit: dict[str, tuple[str, str, float]] = {}
        """By address: its host, what is wrong, and when it said so (seconds of the loop's clock)."""
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked_at = -math.inf
        """When one was last asked for the first time (seconds of the loop's clock)."""
        self._tried: set[str] = set()
        """Addresses that were asked."""
        self._failed: Counter[str] = Counter()
        """How often one could not be asked, by address."""
        self._told: set[str] = set()
        """Addresses of which the log says what is wrong."""

    @property
    def is_asking(self) -> bool:
        """Whether a Dask worker has not answered yet, which may thus be fit."""
        return bool(self._asking)

    def fit(self, free: Sequence[str], wanted: int) -> list[str]:
        """Return which of some Dask workers can be nodes, as far as it is known by now, and ask others.

        Args:
            free: their addresses; what is known of others is forgotten, for they may come again, changed.
            wanted: how many are needed.
        """
        self._forget_all_but(set(free))
        loop = asyncio.get_running_loop()
        now = loop.time()
        if len(self._fit) < wanted:
            unknown = [address for address in free if not self._is_known(address, now)]
            room = max(ASKED_AT_ONCE, 2 * wanted) - len(self._asking)
            # Any of them: from the first in order each run would choose among the same.
            for address in random.sample(unknown, max(0, min(room, len(unknown)))):
                self._asking[address] = self._spawn(self._find_out(address))
                if address not in self._tried:  # who cannot be reached is not waited for again
                    self._tried.add(address)
                    self._asked_at = now
                    asking = self._asking[address]
                    loop.call_later(SLOW_S, self._tell_of_slow, address, asking)
        if self._asking and now < self._asked_at + PATIENCE_S:
            return []
        self._tell()
        return [address for address in free if address in self._fit]

    def is_unfit(self, address: str) -> bool:
        """Return whether a Dask worker was found to be none that can be a node."""
        return address in self._unfit

    def why(self, addresses: Iterable[str]) -> str:
        """Return which of some Dask workers cannot be nodes, and why; empty if it is of none known."""
        by_trouble: defaultdict[str, list[str]] = defaultdict(list)
        for address in addresses:
            if address in self._unfit:
                host, wrong, _ = self._unfit[address]
                by_trouble[wrong].append(f"{address} on {host}")
        return "; ".join(f"{_some(named)}: {wrong}" for wrong, named in by_trouble.items())

    def _forget_all_but(self, there: set[str]) -> None:
        for gone in self._asking.keys() - there:
            self._asking.pop(gone).cancel()
        for gone in self._unfit.keys() - there:
            del self._unfit[gone]
        for gone in self._failed.keys() - there:
            del self._failed[gone]
        self._fit &= there
        self._told &= there
        self._tried &= there

    def _is_known(self, address: str, now: float) -> bool:
        """Return whether it need not be asked, or is being asked."""
        unfit = self._unfit.get(address)
        is_unfit = unfit is not None and now < unfit[2] + AGAIN_S
        return is_unfit or address in self._fit or address in self._asking

    async def _find_out(self, address: str) -> None:
        try:
            there = await self._ask(address)
        except Exception as error:  # it is asked again, if it is still there
            self._failed[address] += 1
            # One that just ends cannot be asked either; at the second time it is still there.
            level = logging.WARNING if self._failed[address] == TELL_AT_FAILURE else logging.DEBUG
            told = "%s is no node yet: its Dask worker cannot be asked what it has: %s: %s"
            self._log.log(level, told, address, type(error).__name__, error)
            del self._asking[address]
            return
        del self._asking[address]
        if wrong := trouble(there):
            now = asyncio.get_running_loop().time()
            self._unfit[address] = there["host"], wrong, now
        else:
            self._unfit.pop(address, None)
            self._fit.add(address)
            self._any_fit = True
        if not self._asking:
            self._changed.set()

    def _tell_of_slow(self, address: str, asking: asyncio.Task[None]) -> None:
        if not asking.done():
            told = "%s is no node yet: its Dask worker has not answered for %g s"
            self._log.warning(told, address, SLOW_S)

    def _tell(self) -> None:
        """Say once of each Dask worker what is wrong with it; where none is fit, the run's error does."""
        if self._any_fit and (new := self._unfit.keys() - self._told):
            self._told |= new
            self._log.warning(
                "Some Dask workers cannot be nodes, and the run goes on without: %s",
                self.why(sorted(new)),
            )


def _some(named: list[str]) -> str:
    more = len(named) - SHOWN
    return ", ".join(named[:SHOWN]) + (f" and {more} more" if more > 0 else "")
