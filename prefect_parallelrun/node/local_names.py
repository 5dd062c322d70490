"""What files are called on a node: as in their storage, each by a name of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime on the path)
from prefect_parallelrun.node.transfer import Unavailable
from prefect_parallelrun_runtime import source_path

LONGEST = 255
"""Bytes of a name on a disk, at most."""


def names_below(root: str, paths: Sequence[str]) -> list[str]:
    """Return for each file the name that it gets in a folder: its own, with its folders below `root`.

    Where two would be the same file, or one a folder of another, they go into folders by their number.

    Raises:
        Unavailable: a name would lead out of the folder, or no disk can hold it.
    """
    names = [_natural(root, path) for path in paths]
    often = Counter(names)
    folders = {"/".join(parent) for name in often for parent in _parents(name)}
    firsts = {name.partition("/")[0] for name in names}
    found = []
    for number, name in enumerate(names):
        if often[name] > 1 or name in folders:
            apart = str(number)
            while apart in firsts:
                apart += "_"
            name = f"{apart}/{name}"
        found.append(name)
    return found


def _parents(name: str) -> list[list[str]]:
    parts = name.split("/")
    return [parts[:length] for length in range(1, len(parts))]


def _natural(root: str, path: str) -> str:
    """Return a file's name, with its folders if it is below the root."""
    own, above = source_path.chained(path)[1], source_path.chained(root)[1]
    prefix = above if above.endswith("://") else above.rstrip("/") + "/"
    name = own.removeprefix(prefix) if own.startswith(prefix) else own.rpartition("/")[2]
    if own.startswith(("http://", "https://")):
        name = _unquoted(name.partition("?")[0])
    # As a disk has it: `a//x` and `a/./x` are `a/x` there.
    parts = PurePosixPath(name).parts
    if (
        not parts
        or ".." in parts
        or name.startswith("/")
        or "\0" in name
        or any(len(os.fsencode(part)) > LONGEST for part in parts)
    ):
        raise Unavailable(
            f"{path.partition('?')[0]} has a name that no file on a disk can have (no '..', and "
            f"{LONGEST} bytes between two '/' at most): {name!r}. Give it another name there"
        )
    return "/".join(parts)


def _unquoted(name: str) -> str:
    plain = unquote(name)
    return plain if plain.count("/") == name.count("/") else name
