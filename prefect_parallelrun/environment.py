"""The Python environment of worker processes: one that is there on the nodes, or one that is built there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefect_parallelrun.errors import ConfigError, refuse

_PATHS = ("-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-f", "--find-links")
"""Options of pip whose values are paths: the nodes have no such files."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Environment:
    """What the worker processes of a step run in, instead of the interpreter of the Dask worker.

    Nothing of ours need be installed in it; it takes Python 3.11 or newer, and pandas and pyarrow where
    the inputs are tables.

    Args:
        python: an interpreter that is there on each node: its path, the folder of a virtual environment,
            or the name of a program such as `python3.12`. With `requirements` it is what their
            environment is made with; without, it is used as it is.
        requirements: what pip is to install, a line each as in a requirements file, or the path of such
            a file, which is read now. Each host builds the environment once, and keeps it by the hash of
            these lines.
        name: for people, in messages.

    Raises:
        ConfigError: neither of the first two is given, or one cannot work.
    """

    python: str | None
    requirements: tuple[str, ...] | None
    name: str | None

    def __init__(
        self,
        *,
        python: str | Path | None = None,
        requirements: Sequence[str] | str | Path | None = None,
        name: str | None = None,
    ) -> None:
        object.__setattr__(self, "python", _interpreter(python))
        object.__setattr__(self, "requirements", _lines(requirements))
        object.__setattr__(self, "name", _name(name))
        if self.python is None and self.requirements is None:
            raise ConfigError("an Environment needs python or requirements: give one of them")

    @classmethod
    def of(cls, name: str, value: Any) -> Self | None:
        """Return what a user's `environment` means: None, one of these, its settings, or a path.

        Raises:
            ConfigError: it means nothing.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(python=value)
        if isinstance(value, Mapping) and set(value) <= {"python", "requirements", "name"}:
            return cls(**value)
        raise refuse(
            name,
            value,
            "it must be an Environment, the path of an interpreter or of a virtual environment on the "
            "nodes, or a mapping such as {'requirements': ['scikit-learn==1.7.2']}",
        )

    def as_saved(self) -> str | dict[str, Any]:
        """Return it as YAML and JSON have it, which `of` takes: the path alone, or a mapping."""
        if self.requirements is None and self.name is None:
            assert self.python is not None
            return self.python
        lines = None if self.requirements is None else list(self.requirements)
        saved = {"python": self.python, "requirements": lines, "name": self.name}
        return {key: value for key, value in saved.items() if value is not None}

    def __str__(self) -> str:
        """Return it in words."""
        if self.name is not None:
            return repr(self.name)
        if self.requirements is None:
            return f"python={self.python!r}"
        first = ", ".join(self.requirements[:3])
        return f"requirements=[{first}{', …' if len(self.requirements) > 3 else ''}]"


def _interpreter(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).strip() if isinstance(value, str | Path) else ""
    if not text or "\0" in text:
        raise refuse(
            "Environment.python",
            value,
            "it must be the path of an interpreter or of a virtual environment, or the name of a program",
        )
    if os.sep not in text or text.startswith("~"):
        return text  # a name, or a home: of the node's
    return os.path.abspath(text)  # noqa: PTH100  (resolve() would leave the virtual environment)


def _lines(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | Path):
        try:
            value = Path(value).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise refuse(
                "Environment.requirements",
                str(value),
                f"the file cannot be read ({error}); requirements themselves are given as a list",
            ) from None
    if not isinstance(value, Sequence) or not all(isinstance(line, str) for line in value):
        raise refuse(
            "Environment.requirements",
            value,
            "it must be a list such as ['scikit-learn==1.7.2'], or the path of a requirements file",
        )
    lines = tuple(
        line.strip() for line in value if line.strip() and not line.strip().startswith("#")
    )
    if not lines:
        raise refuse("Environment.requirements", value, "it holds no requirement")
    for line in lines:
        _check(line)
    return lines


def _check(line: str) -> None:
    option = line.partition("=")[0].split()[0]
    if "\n" in line or "\0" in line:
        raise refuse("Environment.requirements", line, "each requirement is one line")
    if option in _PATHS or line.startswith(("-r", "-c", "-e", "-f")) or line.startswith((".", "/")):
        raise refuse(
            "Environment.requirements",
            line,
            "it names files, which the nodes do not have: write the requirements themselves",
        )
    if "://" in line and "@" in line.partition("://")[2].partition("/")[0]:
        # Not the line: it may hold a password, and it would stand in fingerprints and reports.
        raise ConfigError(
            f"Environment.requirements has a login in the address of {option!r}: leave it out, and give it "
            "to pip on the nodes, in its configuration or PIP_INDEX_URL"
        )


def _name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise refuse("Environment.name", value, "it must be a text for people to read")
    return value
