"""What the product itself reads from a step's `arguments` (R105)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect_parallelrun import checks
from prefect_parallelrun.errors import refuse

_TIMEOUT = checks.real_number(above=0, most=checks.LONGEST_TIMEOUT_S, unit=" of seconds")
_INTERVAL = checks.real_number(least=0, most=checks.LONGEST_TIMEOUT_S, unit=" of seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the product itself reads from a step's `arguments` (R105); the script sees them too."""

    task_overhead_timeout: float = 600.0
    """Seconds to load a mini-batch, and to encode what `run()` returned."""
    first_task_creation_timeout: float = 600.0
    """Seconds without any node to work on before the run fails: at its start, or since the last was lost."""
    progress_update_timeout: float | None = None
    """Seconds without any mini-batch done before the run fails; None: derived from other settings."""
    append_row_dataframe_header: bool = False
    """Whether the output begins with one line of column names."""
    rank_mini_batch_count: int | None = None
    """So many mini-batches without input; None where there is input."""
    resource_monitor_interval: float = 600.0
    """Seconds between two samples of the node's resources; 0 is off."""
    profiling_module: str | None = None
    """`cProfile` or `profile`."""


def read_options(texts: Sequence[str]) -> RunOptions:
    """Return the product's own options among the arguments, `--a b` or `--a=b`."""
    found: dict[str, Any] = {}
    for position, text in enumerate(texts):
        name, equals, value = text.removeprefix("--").partition("=")
        if not text.startswith("--") or name not in _READERS:
            continue
        if not equals:
            following = texts[position + 1 : position + 2]
            if not following or following[0].startswith("--"):
                raise refuse("arguments", text, f"--{name} needs a value")
            value = following[0]
        found[name] = _READERS[name](f"--{name}", value)
    return RunOptions(**found)


def _seconds(name: str, value: str) -> float:
    return float(_TIMEOUT(name, _number(value)))


def _interval(name: str, value: str) -> float:
    return float(_INTERVAL(name, _number(value)))


def _rank_count(name: str, value: str) -> int | None:
    # Azure takes a negative number for 0, which means that the inputs count.
    count = _number(value)
    if type(count) is not int:
        raise checks.unfit(name, value, "a whole number of mini-batches")
    return count if count > 0 else None


def _header(name: str, value: str) -> bool:
    return bool(checks.choice("True", "False")(name, value) == "True")


def _profiler(name: str, value: str) -> str:
    return str(checks.choice("cProfile", "profile")(name, value))


def _number(value: str) -> int | float | str:
    """Return the number that a text says, else the text, for a check to refuse."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


_READERS = {
    "task_overhead_timeout": _seconds,
    "first_task_creation_timeout": _seconds,
    "progress_update_timeout": _seconds,
    "append_row_dataframe_header": _header,
    "rank_mini_batch_count": _rank_count,
    "resource_monitor_interval": _interval,
    "profiling_module": _profiler,
}
