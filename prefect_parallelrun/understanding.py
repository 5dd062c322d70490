"""What a step file or a saved configuration says, in words, and whether it can work (`validate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_parallelrun import yaml_document
from prefect_parallelrun.config import YAML_KEY, ParallelRunConfig, absolute
from prefect_parallelrun.datasets import Dataset
from prefect_parallelrun.node import snapshot
from prefect_parallelrun.script_check import check_script
from prefect_parallelrun.step_file import load_config, load_step
from prefect_parallelrun.yaml_document import Place


def understood(file: Path) -> dict[str, Any]:
    """Return what a file says, by headings: texts, numbers and lists of texts.

    Values of environment variables are not among it, since they may be secrets.

    Raises:
        ParallelRunError: it cannot work; the text says why.
    """
    if YAML_KEY in yaml_document.read(absolute(str(file)), Place(str(file))):
        config = load_config(file)
        check_script(config)
        return _source(config, ()) | {"settings": _settings(config)}
    step = load_step(file)
    definition, plan = step.definition(), step.plan()
    found: dict[str, Any] = {"step": step.name}
    found |= _source(definition.config, definition.left_out)
    found["inputs"] = [_shown(one) for one in definition.inputs]
    found["side inputs"] = [_shown(one) for one in definition.side_inputs]
    found["mini-batches"] = plan.known_count
    found["items"] = plan.items
    found["bytes"] = plan.size
    found["arguments"] = " ".join(map(str, definition.arguments)) or None
    found["output"] = definition.output_place or "a folder of the run"
    found["reuse"] = "yes" if step.allow_reuse else "no"
    found["settings"] = _settings(definition.config)
    found["notes"] = plan.notes
    return {name: value for name, value in found.items() if value not in (None, [])}


def _source(config: ParallelRunConfig, left_out: tuple[Path, ...]) -> dict[str, Any]:
    source = snapshot.digest(config, leave_out=left_out)
    size = f"{source.files:,} file{'s' * (source.files != 1)} with {source.bytes:,} bytes"
    return {"entry script": str(config.script_path), "source": f"{config.source_folder}: {size}"}


def _settings(config: ParallelRunConfig) -> list[str]:
    """Return the settings that are not as they are by default."""
    found = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in ("entry_script", "source_directory") or value == field.default:
            continue
        if name == "environment_variables":
            value = list(value)
        found.append(f"{name}={value!r}")
    return found


def _shown(dataset: Dataset) -> str:
    way = "" if dataset.delivery == "mount" else ", downloaded"
    at = f", at {dataset.target_path}" if dataset.target_path else ""
    return f"{dataset!r}{way}{at}"
