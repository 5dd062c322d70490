"""`output_manifest.json`: what the output of a run came to, in its run folder; shows later what has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect_parallelrun.paths import RunPaths


def write(
    run_folder: Path,
    output: Path,
    file: Path | None,
    *,
    uploaded: Mapping[str, list[int | str]] | None = None,
) -> None:
    """Note how the output looks at the end of a sitting.

    Args:
        output: the output folder.
        file: the `append_row` file; None for `summary_only`, where all of the folder counts.
        uploaded: for a remote output, how its files are there.
    """
    files = {file.name: _state(file)} if file is not None else dict(_states(output))
    manifest = {"output": str(output.absolute()), "whole": file is None, "files": files}
    if uploaded is not None:
        manifest["uploaded"] = uploaded
    path = RunPaths(run_folder).manifest
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(manifest), encoding="utf-8", errors="surrogateescape")
    temporary.replace(path)


def read(run_folder: Path) -> Any:
    """Return what was noted.

    Raises:
        OSError: nothing was, or it cannot be read.
        ValueError: it is damaged.
    """
    content = RunPaths(run_folder).manifest.read_text("utf-8", errors="surrogateescape")
    return json.loads(content)


def is_intact(run_folder: Path) -> bool:
    """Return whether the output on this machine is there as it was noted."""
    try:
        manifest = read(run_folder)
        output, noted = Path(manifest["output"]), manifest["files"]
        if manifest["whole"]:
            return bool(output.is_dir() and dict(_states(output)) == noted)
        return not _others(output, noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def lost_files(run_folder: Path) -> list[str] | None:
    """Return which files of the output are gone or changed since they were noted; None: none ever were."""
    try:
        manifest = read(run_folder)
        return _others(Path(manifest["output"]), manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _others(output: Path, noted: Mapping[str, list[int]]) -> list[str]:
    """Return the noted files that are not there as they were."""
    others = []
    for name, state in noted.items():
        try:
            same = _state(output / name) == state
        except OSError:
            same = False
        if not same:
            others.append(name)
    return others


def _states(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield (relative path, state) of every file below a folder."""
    for parent, _folders, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            yield str(path.relative_to(folder)), _state(path)


def _state(path: Path) -> list[int]:
    """Return size and modification time of a file."""
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns]
