"""The Python environment of worker processes: one that is there on the nodes, or one that is built there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prefect_parallelrun.datasets import kept_storage
from prefect_parallelrun.errors import ConfigError, refuse

_PATH_OPTION = re.compile(
    r"(?:--(?:requirement|constraint|editable|find-links)(?:[=\s]|$)|-[rcef])\s*(.*)"
)
"""An option of pip whose value is a path or a URL, and that value."""
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tgz")
_URL = re.compile(r"[\w+.-]+://[^\s\"']+")
_LOGIN = re.compile(r"([\w+.-]+)://([^/?#\s]*|[^/?#\s:@]*:(?!\d+(?:[/?#]|$))\S*)@")
"""A scheme and a login, also one with a `/` in its password, where that is no port and a path."""
_NO_SECRET = re.compile(r"(?:[^:]*:)?\$\{[A-Z0-9_]+\}:?")
"""A login that pip takes from a variable of the node: `${TOKEN}`, `${TOKEN}:`, `me:${TOKEN}`."""
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True, kw_only=True, init=False)
class Environment:
    """What the worker processes of a step run in, instead of the interpreter of the Dask worker.

    Nothing of ours need be installed in it; it takes Python 3.11 or newer, and pandas and pyarrow where
    the inputs are tables.

    Args:
        python: an interpreter that is there on each node: its path, the folder of a virtual or a conda
            environment, or the name of a program such as `python3.12`. A text without a slash is a name
            unless it begins with a dot; a relative path begins at the working directory, in a step file
            at the file's folder; `~` is the home on the node. With `requirements` it is what their
            environment is made with; without, it is used as it is.
        requirements: what pip is to install, a line each as in a requirements file, or the path of such
            a file, which is read now. Each host builds the environment once, and keeps it by the hash of
            these lines.
        name: for people, in messages; it decides nothing.

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
    def of(cls, name: str, value: Any, *, below: Path | None = None) -> Self | None:
        """Return what a user's `environment` means: None, one of these, its settings, or a path.

        Args:
            name: of the setting, for errors.
            value: what it was given.
            below: the folder where relative paths begin; None: the working directory.

        Raises:
            ConfigError: it means nothing.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(python=_below(value, below))
        if isinstance(value, Mapping) and set(value) <= {"python", "requirements", "name"}:
            given = dict(value)
            given["python"] = _below(given.get("python"), below)
            lines = given.get("requirements")
            if isinstance(lines, str | Path) and "://" not in str(lines):
                # A path also without a slash, unlike `python`.
                given["requirements"] = _below(Path(lines), below)
            return cls(**given)
        # Not the value: among requirements there may be an address with a password.
        shown = sorted(map(str, value)) if isinstance(value, Mapping) else _kind(value)
        raise refuse(
            name,
            shown,
            "it must be an Environment, the path of an interpreter or of a virtual environment on the "
            "nodes, or a mapping such as {'requirements': ['scikit-learn==1.7.2']}, of python, "
            "requirements and name",
        )

    def made_of(self) -> dict[str, Any]:
        """Return all that decides what a script finds there."""
        lines = None if self.requirements is None else list(self.requirements)
        return {"python": self.python, "requirements": lines}

    def changes(self, before: Environment) -> list[str]:
        """Return what is another in it than in an earlier one, a text each."""
        found = []
        if before.python != self.python:
            was, now = (
                "not given" if one.python is None else repr(one.python) for one in (before, self)
            )
            found.append(f"python was {was}, and is {now}")
        old, new = before.requirements or (), self.requirements or ()
        found += [f"{line} (new)" for line in new if line not in old]
        found += [f"{line} (gone)" for line in old if line not in new]
        return found or ["the order of its requirements"]

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


def _below(value: Any, folder: Path | None) -> Any:
    """Return a path as it is below a folder, where it is a relative one; anything else as it is."""
    if folder is None or not isinstance(value, str | Path) or not _is_path(value):
        return value
    return value if str(value).startswith("~") else str(folder / value)


def _is_path(python: str | Path) -> bool:
    text = str(python)
    return isinstance(python, Path) or os.sep in text or text.startswith(".")


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
    if text.startswith("~") or not (isinstance(value, Path) or _is_path(text)):
        return text  # a home of the node's, or a name
    return os.path.abspath(text)  # noqa: PTH100  (resolve() would leave the virtual environment)


def _lines(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | Path):
        try:
            value = Path(value).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            # The address of an index, by mistake, may hold a password.
            shown = "…" if "://" in str(value) else str(value)
            raise refuse(
                "Environment.requirements",
                shown,
                f"the file cannot be read ({why}); requirements themselves are given as a list",
            ) from None
    if not isinstance(value, Sequence) or not all(isinstance(line, str) for line in value):
        raise refuse(
            "Environment.requirements",
            _kind(value),
            "it must be a list of texts such as ['scikit-learn==1.7.2'], or the path of a requirements file",
        )
    if any("\n" in line or "\0" in line for line in value):
        raise ConfigError("Environment.requirements has a line break within a requirement")
    lines = tuple(_joined(value))
    if not lines:
        raise refuse("Environment.requirements", list(lines), "it holds no requirement")
    for line in lines:
        _check(line)
    return lines


def _joined(given: Sequence[str]) -> list[str]:
    """Return the lines without comments, and in one what a backslash joins, as pip reads them."""
    lines: list[str] = []
    begun = ""
    for text in given:
        line = _COMMENT.sub("", text).strip()
        if line.endswith("\\"):
            begun += f"{line[:-1].rstrip()} "
            continue
        if whole := f"{begun}{line}".strip():
            lines.append(whole)
        begun = ""
    return [*lines, begun.strip()] if begun.strip() else lines


def _check(line: str) -> None:
    first = _LOGIN.sub(r"\1://***@", line.split()[0].partition("=")[0].partition("?")[0])
    # Not the line, in these two: it holds a secret, and this text stands in logs and reports.
    for scheme, login in _LOGIN.findall(line):
        is_name = scheme.endswith("ssh") and ":" not in login
        if not is_name and not _NO_SECRET.fullmatch(login):
            raise ConfigError(
                f"Environment.requirements has a login in the address of {first!r}: write it as "
                "${NAME}, a variable of the Dask workers, or give it to pip there, in its configuration "
                "or PIP_INDEX_URL"
            )
    for url in _URL.findall(line):
        if kept_storage.unsigned("Environment.requirements", url, {})[1]:
            raise ConfigError(
                f"Environment.requirements has a signature or another secret in the address of {first!r}: "
                "leave it out, and let pip log in on the nodes, by its configuration or PIP_INDEX_URL"
            )
    option = _PATH_OPTION.match(line)
    word = line.split()[0] if option is None else option[1]
    is_file = option is not None or "/" in word or word.startswith((".", "~"))
    if "://" not in word and (is_file or word.endswith(_ARCHIVES)):
        raise refuse(
            "Environment.requirements",
            line,
            "it names a file, which the nodes do not have: write the requirements themselves, or a URL "
            "(file:///… is a file of the nodes)",
        )


def _kind(value: object) -> str:
    return f"<{type(value).__name__}>"


def _name(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise refuse("Environment.name", value, "it must be a text for people to read")
    return value
