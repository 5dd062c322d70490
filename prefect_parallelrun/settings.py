"""Where run folders live, as Prefect's settings say."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.settings.base import PrefectBaseSettings, build_settings_config
from pydantic_settings import SettingsConfigDict


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


def prefect_home() -> Path:
    """Return the folder in which Prefect keeps its own files."""
    return Path(get_current_settings().home)


def new_run_id() -> str:
    """Return a name that no other run has, and that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
