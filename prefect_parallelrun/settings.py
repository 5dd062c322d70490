"""Where run folders live, as Prefect's settings say."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic_settings import SettingsConfigDict

from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths


class ParallelRunSettings(PrefectBaseSettings):
    """Settings of prefect-parallelrun: `PREFECT_INTEGRATIONS_PARALLELRUN_…` in the environment."""

    model_config: SettingsConfigDict = build_settings_config(("integrations", "parallelrun"))  # type: ignore[misc]

    run_root: Path | None = None
    """Folder of all run folders; without it `parallelrun/runs` in Prefect's home."""


def run_root() -> Path:
    """Return the folder below which every step has a folder of its runs, absolute."""
    chosen = ParallelRunSettings().run_root
    root = chosen if chosen is not None else prefect_home() / "parallelrun" / "runs"
    return root.expanduser().absolute()


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
    """Return the run folder that a person names: by its path, or by its id below the run root.

    Raises:
        OutputError: there is none, or more than one step has a run of that id.
    """
    folder = Path(run).expanduser().absolute()
    if RunPaths(folder).record.is_file():
        return RunPaths(folder)
    root = run_root()
    found = [one for one in root.glob("*/*") if one.name == run]
    if len(found) != 1:
        many = f"{len(found)} steps have one" if found else "there is none"
        raise OutputError(f"{run!r} is no run folder, nor the id of one run below {root}: {many}")
    return RunPaths(found[0])
