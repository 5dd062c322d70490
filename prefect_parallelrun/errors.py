"""Every error that this package raises on purpose.

ParallelRunError
├── ConfigError (also a ValueError)      a parameter is wrong; raised before any worker starts
├── DatasetError                         an input cannot be listed, typed or read
│   └── NotThere                         there is no such file, folder, bucket or container
├── EntryScriptError                     the entry script cannot be used, or nothing it did succeeded
│   └── InitFailed                       the script's import or init() failed on every node
├── ErrorThresholdExceeded               more failed items or mini-batches than are tolerated
├── NoProgress                           a wait reached its limit
├── ClusterError                         no Dask cluster, no node, or all nodes lost
├── OutputError                          the output cannot be written or published
└── RunCancelled                         somebody stopped the run
"""

from __future__ import annotations

from reprlib import Repr
from typing import Any

_SHORT = Repr()
"""Of what is shown 200 characters of at most, it writes no more than that takes."""
for _limit in ("maxlist", "maxtuple", "maxdict", "maxset", "maxfrozenset", "maxdeque", "maxarray"):
    setattr(_SHORT, _limit, 20)
_SHORT.maxlevel = 4
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 200


class ParallelRunError(Exception):
    """The base of all errors of prefect-parallelrun; its message says what happened and what to do.

    Constructible from its message alone, so that it survives pickling between processes.
    """

    def __init__(
        self,
        message: str = "",
        *,
        run_id: str | None = None,
        logs_directory: str | None = None,
        first_errors: tuple[str, ...] = (),
    ) -> None:
        super().__init__(printable(message or (type(self).__doc__ or "").strip().splitlines()[0]))
        self.run_id = run_id
        """The run that failed, or None when the error came before a run began."""
        self.logs_directory = logs_directory
        """Folder of the run's log tree, or None when the error came before a run began."""
        self.first_errors = tuple(map(printable, first_errors))
        """The script's own errors, each distinct one once, most frequent first."""

    def __repr__(self) -> str:
        # Prefect logs the repr of an exception, with escaped newlines, beside the whole text.
        first, *more = str(self).splitlines() or [""]
        return f"{type(self).__name__}({first + (' …' if more else '')!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self),), self.__dict__)


class ConfigError(ParallelRunError, ValueError):
    """A parameter has a value that cannot work."""


class DatasetError(ParallelRunError):
    """An input cannot be listed, typed or read."""


class NotThere(DatasetError):
    """There is no such file, folder, bucket or container."""


class EntryScriptError(ParallelRunError):
    """The entry script cannot be used."""


class InitFailed(EntryScriptError):
    """The entry script could not be imported, or its init() failed, on every node."""


class ErrorThresholdExceeded(ParallelRunError):
    """More items or mini-batches failed than are tolerated."""


class NoProgress(ParallelRunError):
    """Nothing happened for longer than is allowed."""


class ClusterError(ParallelRunError):
    """The Dask cluster has no node that can do the work."""


class OutputError(ParallelRunError):
    """The output could not be written."""


class RunCancelled(ParallelRunError):
    """The run was stopped before its end."""


def printable(text: str) -> str:
    """Return `text` in a form that UTF-8 can say: a file name that is not UTF-8 holds lone surrogates.

    Prefect would fail to send them to its API, and leave the flow run Running for ever.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def refuse(parameter: str, value: object, expected: str) -> ConfigError:
    """Build the error for a bad parameter: its name, the value, and what would be right."""
    shown = _SHORT.repr(value)
    if len(shown) > 200:
        shown = shown[:200] + "…"
    return ConfigError(f"{parameter}={shown} cannot be used: {expected}")
