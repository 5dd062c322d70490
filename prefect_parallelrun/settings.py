"""Where run folders live, as Prefect's settings say, and which of them a person means."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic_settings import SettingsConfigDict

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths

_SHOWN = 5
"""So many runs are named to a person who named none of them."""


class ParallelRunSettings(PrefectBaseSettings):
    """Settings of prefect-parallelrun: `PREFECT_INTEGRATIONS_PARALLELRUN_…` in the environment."""

    model_config: SettingsConfigDict = build_settings_config(("integrations", "parallelrun"))  # type: ignore[misc]

    run_root: Path | None = None
    """Folder of all run folders; without it `parallelrun/runs` in Prefect's home."""


def run_root() -> Path:
    """Return the folder below which every step has a folder of its runs, absolute."""
    chosen = ParallelRunSettings().run_root
    root = chosen if chosen is not None else prefect_home() / "parallelrun" / "runs"
    return _expanded(root)


def step_folder(step: str) -> Path:
    """Return the folder of all runs of a step."""
    return run_root() / step


def prefect_home() -> Path:
    """Return the folder in which Prefect keeps its own files."""
    return Path(get_current_settings().home)


def new_run_id(fingerprint: str) -> str:
    """Return a name that no other run has, that sorts by time, and that names the fingerprint."""
    now = datetime.now(UTC)
    moment = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}"
    return f"{moment}-{fingerprint[:8]}-{secrets.token_hex(2)}"


def run_paths(run: str) -> RunPaths:
    """Return the run folder that a person names.

    Args:
        run: its path; or below the run root its id, the beginning of one, or the name of a step, which
            means the newest run of that step.

    Raises:
        OutputError: there is none, or more than one; the text lists those that come near.
    """
    folder = _expanded(Path(run))
    root = run_root()
    for place in (folder, root / run):  # by step and id, as in our own lists, too
        if is_run(place):
            return RunPaths(place)
    if _is_name(run):
        found = run_folders(root / run)
        if found:
            return RunPaths(found[0])
        named = [one for step in step_folders() if is_run(one := step / run)]
        # The whole of an id is no beginning of others.
        found = named or [one for one in _all_runs() if one.name.startswith(run)]
        if len(found) == 1:
            return RunPaths(found[0])
        if found:
            raise OutputError(f"{run!r} may be any of {len(found)} runs: {_listed(found)}")
    raise OutputError(
        f"{run!r} is no run folder, nor the id of a run or the name of a step with runs below {root}"
        f"{_near(run)}"
    )


def step_folders() -> list[Path]:
    """Return the folders of all steps that ever ran here, by name."""
    with suppress(OSError):
        folders = (one for one in run_root().iterdir() if not one.name.startswith("."))
        return sorted(one for one in folders if one.is_dir())
    return []


def run_folders(step: Path) -> list[Path]:
    """Return the folders of all runs of a step, newest first: their names begin with the time."""
    with suppress(OSError):
        found = [one for one in step.iterdir() if is_run(one)]
        return sorted(found, key=lambda one: one.name, reverse=True)
    return []


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, be it one that has only been begun.

    The names of its files are plain, so one of them alone may well be somebody else's.
    """
    paths = RunPaths(folder)
    return _is_file(paths.token) and (_is_file(paths.record) or _is_file(paths.lock))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # it has no right to look, or the name is too long for a file
        return False


def _expanded(path: Path) -> Path:
    """Return a path, absolute, with `~` spelt out; what looks so and is nobody's home stays."""
    with suppress(RuntimeError):
        path = path.expanduser()
    return path.absolute()


def _is_name(run: str) -> bool:
    return run not in ("", ".", "..") and "/" not in run


def _all_runs() -> list[Path]:
    found = [run for step in step_folders() for run in run_folders(step)]
    return sorted(found, key=lambda one: one.name, reverse=True)


def _near(run: str) -> str:
    """Say what a person may have meant: names that are almost the same, else the newest runs."""
    folders = _all_runs()
    if not folders:
        return ": there are no runs there"
    names = {one.name: one for one in folders} | {one.parent.name: one for one in folders}
    close = difflib.get_close_matches(Path(run).name, names, n=_SHOWN)
    if close:
        return f". Did you mean {' or '.join(close)}?"
    return f". The newest runs: {_listed(folders)}"


def _listed(folders: Sequence[Path]) -> str:
    shown = ", ".join(f"{one.parent.name}/{one.name}" for one in folders[:_SHOWN])
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return shown + more
