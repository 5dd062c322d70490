"""The recipes of `docs/how-to/clusters.md`, taken from the page, so that it says what is tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from prefect_parallelrun import ParallelRunConfig

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "clusters.md"


def blocks(section: str, language: str) -> list[str]:
    """Return the code blocks of a section in one language."""
    part = re.search(
        rf"^## {re.escape(section)}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert part is not None, f"the page has no section {section!r}"
    return re.findall(rf"^```{language}\n(.*?)^```", part[1], re.DOTALL | re.MULTILINE)


def config(section: str) -> ParallelRunConfig:
    """Return the config that the first Python block of a section makes."""
    names: dict[str, Any] = {}
    exec(compile(blocks(section, "python")[0], f"{PAGE.name}, {section}", "exec"), names)
    made: ParallelRunConfig = names["config"]
    return made


def saved(section: str) -> dict[str, Any]:
    """Return the settings that the section writes in a step file."""
    documents = [yaml.safe_load(block) for block in blocks(section, "yaml")]
    [settings] = [document["config"] for document in documents if "config" in document]
    return dict(settings)


def arguments(section: str, **instead: Any) -> dict[str, Any]:
    """Return the arguments of a section's cluster class, some replaced by what a test can have."""
    return {**config(section).compute_target.cluster_kwargs, **instead}
