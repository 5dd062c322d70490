"""What a parameter may be: each function returns the value in the form it is kept in, or refuses it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefect_parallelrun.compute_target import DaskComputeTarget
from prefect_parallelrun.datasets.credentials import name_of
from prefect_parallelrun.datasets.sizes import parse_size
from prefect_parallelrun.errors import ConfigError, refuse

Check = Callable[[str, Any], Any]
"""(name of the parameter, value) -> the value as it is kept."""

FORBIDDEN_IN_FILE_NAMES = '~"#%&*:<>?/\\{}|'
COMPUTE_TARGET_BLOCK = "dask-compute-target/"
"""How the name of a block begins that describes a Dask cluster."""
LONGEST_TIMEOUT_S = 259_200
"""Three days: what Azure allows for its own time limits."""


def unfit(name: str, value: Any, wanted: str) -> ConfigError:
    """Build the error for a value that is not what it must be."""
    return refuse(name, value, f"it must be {wanted}")


def whole_number(
    *, least: int, most: int | None = None, optional: bool = False, why: str = ""
) -> Check:
    """Return a check for an int between `least` and `most`; True and False are no numbers."""
    wanted = (
        f"a whole number from {least} to {most}" if most else f"a whole number, {least} or more"
    )

    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if type(value) is not int or value < least or (most is not None and value > most):
            raise unfit(name, value, wanted + why)
        return value

    return check


def real_number(
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    optional: bool = False,
    unit: str = "",
) -> Check:
    """Return a check for a finite number within the limits given."""
    wanted = f"a number{unit}"
    wanted += f" above {above:g}" if above is not None else f", {least:g} or more"
    wanted += f", at most {most:g}" if most is not None else ""

    def check(name: str, value: Any) -> float | None:
        if value is None and optional:
            return None
        fits = type(value) in (int, float) and math.isfinite(value)
        fits = fits and (above is None or value > above) and (least is None or value >= least)
        if not fits or (most is not None and value > most):
            raise unfit(name, value, wanted)
        return float(value) if isinstance(value, float) else int(value)

    return check


def choice(*allowed: str) -> Check:
    """Return a check for one of the words `allowed`, in any case of letters."""
    by_folded = {word.casefold(): word for word in allowed}

    def check(name: str, value: Any) -> str:
        word = by_folded.get(value.casefold()) if isinstance(value, str) else None
        if word is None:
            raise unfit(name, value, "one of " + ", ".join(repr(word) for word in allowed))
        return word

    return check


def flag(name: str, value: Any) -> bool:
    """Return True or False; nothing else counts as either."""
    if type(value) is not bool:
        raise unfit(name, value, "True or False")
    return value


def text(name: str, value: Any) -> str | None:
    """Return a text, or None."""
    if value is not None and not isinstance(value, str):
        raise unfit(name, value, "a text")
    return value


def location(name: str, value: Any) -> str:
    """Return a path as text, without blanks around it."""
    if not isinstance(value, (str, Path)) or not str(value).strip() or "\0" in str(value):
        raise unfit(name, value, "a path")
    return str(value).strip()


def optional_location(name: str, value: Any) -> str | None:
    """Return a path as text, or None."""
    return None if value is None else location(name, value)


def file_name(name: str, value: Any) -> str:
    """Return the name of a file that lies directly in a folder."""
    wanted = f"the name of a file, without a folder and without any of {FORBIDDEN_IN_FILE_NAMES}"
    if not isinstance(value, str) or value.strip() in ("", ".", ".."):
        raise unfit(name, value, wanted)
    if any(c in FORBIDDEN_IN_FILE_NAMES or ord(c) < 32 for c in value) or len(value.encode()) > 200:
        raise unfit(name, value, wanted + " and at most 200 bytes long")
    return value


def mini_batch_size(name: str, value: Any) -> int | str | None:
    """Return a number of files, or a size in bytes with or without a unit, as it was written."""
    if value is None:
        return None
    if type(value) not in (int, str):
        raise unfit(name, value, "a number of files such as 10, or for tables a size such as '1MB'")
    size: int | str = value
    parse_size(size)
    return size


def names(name: str, value: Any) -> tuple[str, ...] | None:
    """Return some distinct names, at least one, or None; JSON text stands for what it says, as in Azure."""
    if value is None:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise unfit(name, value, "a list of names, or JSON of one") from None
    given = list(value) if isinstance(value, (list, tuple)) else []
    fits = all(isinstance(one, str) and one for one in given) and len(set(given)) == len(given)
    if not given or not fits:
        raise unfit(name, value, "a list of distinct names, such as ['store', 'brand']")
    return tuple(given)


def gpus_per_process(name: str, value: Any) -> float | None:
    """Return None, a number of GPUs, or a fraction of one that several processes share."""
    if value is None:
        return None
    fits = type(value) in (int, float) and (0.01 <= value < 1 or value in range(1025))
    if not fits:
        raise unfit(
            name,
            value,
            "a whole number of GPUs such as 2, or a fraction such as 0.25 (4 processes share one), 0.01 at least",
        )
    return value if 0 < value < 1 else int(value)


def environment_variables(name: str, value: Any) -> dict[str, str] | None:
    """Return names and texts that can be put into a process's environment; numbers become texts."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise unfit(name, value, "a dictionary such as {'OMP_NUM_THREADS': '1'}")
    for key, one in value.items():
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            raise unfit(name, {key: "…"}, "a dictionary whose names are texts without '='")
        if type(one) not in (str, int, float) or "\0" in str(one):
            # The value itself may be a secret: its type is enough to find it.
            kind = type(one).__name__
            raise unfit(f"{name}[{key!r}]", f"<{kind}>", "a text, such as '1'")
    return {key: str(one) for key, one in value.items()}


def compute_target(name: str, value: Any) -> Any:
    """Return None, a scheduler's address, the word "task-runner", a Dask cluster object, the description of
    one, or the name of a block that holds that."""
    if isinstance(value, Mapping):
        return _described(name, value)
    if isinstance(value, DaskComputeTarget):
        return value
    if value is None or value == "task-runner" or hasattr(value, "scheduler_address"):
        return value
    text = value.strip() if isinstance(value, str) else name_of(value) or ""
    if "@" in text:  # not the value: it may be a password
        raise ConfigError(f"{name} has a login, of which Dask knows none: leave it out")
    if "://" in text or text.removeprefix(COMPUTE_TARGET_BLOCK) not in ("", text):
        return text
    raise unfit(
        name,
        value,
        "None (a cluster of this process's own), the address of a Dask scheduler such as "
        "'tcp://10.0.0.4:8786', a Dask cluster object, a DaskComputeTarget, a DaskComputeTargetBlock that "
        f"was saved, or its name, '{COMPUTE_TARGET_BLOCK}<name>', or 'task-runner' (the cluster of the "
        "flow's DaskTaskRunner)",
    )


def _described(name: str, value: Mapping[str, Any]) -> DaskComputeTarget:
    known = [one.name for one in fields(DaskComputeTarget)]
    if odd := [key for key in value if key not in known]:
        raise ConfigError(f"{name} has {odd[0]!r}: there are " + ", ".join(known))
    return DaskComputeTarget(**value)


def source_limits(name: str, value: Any) -> tuple[int | str, int]:
    """Return the largest size of the source, in bytes or with a unit, and its largest number of files."""
    wanted = "a size and a number of files, such as ('300MB', 2000)"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise unfit(name, value, wanted)
    size, files = value
    if type(size) not in (int, str) or type(files) is not int or files < 1:
        raise unfit(name, value, wanted)
    try:
        parse_size(size)
    except ValueError:
        raise unfit(name, value, wanted) from None
    return (size, files)
