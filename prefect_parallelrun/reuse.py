"""Which earlier runs still hold: fingerprints of steps, and manifests of outputs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect_parallelrun import append_row
from prefect_parallelrun.datasets import Dataset, FileDataset, FileItem, sizes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.paths import RunPaths

FORMAT = 1
"""Counts up whenever the same settings would give other rows than before."""

_OUTPUT = "{output}"
"""Stands for the output folder among the arguments, where it is a folder of the run."""


def step_fingerprint(
    definition: StepDefinition,
    *,
    source_sha256: str,
    listings: Sequence[Sequence[FileItem]],
) -> str:
    """Return a text that is the same exactly for steps that give the same rows in the same place.

    Left out is what cannot change the rows: node_count, process_count_per_node, compute_target,
    logging_level, timeouts, tries, thresholds, description.

    Args:
        source_sha256: of the source snapshot.
        listings: the files of each input, in the order of the inputs.
    """
    config = definition.config
    settings: dict[str, Any] = {
        "format": FORMAT,
        "name": definition.name,
        "source": source_sha256,
        "entry_script": config.script_path.relative_to(config.source_folder).as_posix(),
        "arguments": definition.script_arguments(_OUTPUT),
        "environment": config.environment,
        "environment_variables": config.environment_variables or {},
        "output": [
            config.output_action,
            config.append_row_file_name,
            config.output_format,
            config.output_order,
            str(definition.output_folder or _OUTPUT),
            append_row.to_csv_keywords(config.script_path.parent),
        ],
        "mini_batch_size": _settled_size(definition),
        "partition_keys": config.partition_keys,
    }
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    _add_contents(digest, definition, listings)
    return digest.hexdigest()


def contents(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> str:
    """Return a text that is the same where all files that the script can see are as they were."""
    digest = hashlib.blake2b(digest_size=20)
    _add_contents(digest, definition, listings)
    return digest.hexdigest()


def grouping(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> str:
    """Return a text that is the same where mini-batches have the same items under the same numbers.

    For files their paths decide that, whatever is in them; for tables all that a change can touch.
    """
    settings = [_settled_size(definition), definition.config.partition_keys]
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps([*settings, definition.options.rank_mini_batch_count]).encode())
    for dataset, files in zip(definition.inputs, listings, strict=True):
        parts = (
            (file.path for file in files)
            if dataset.kind == "file"
            else dataset.fingerprint_parts(files)
        )
        _add(digest, dataset.kind, parts)
    return digest.hexdigest()


def write_manifest(run_folder: Path, output: Path, file: Path | None) -> None:
    """Note how the output looks at the end of a sitting, for `is_intact` and `lost_files`.

    Args:
        output: the output folder.
        file: the `append_row` file; None for `summary_only`, where all of the folder counts.
    """
    files = {file.name: _state(file)} if file is not None else dict(_states(output))
    manifest = {"output": str(output.absolute()), "whole": file is None, "files": files}
    path = RunPaths(run_folder).manifest
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(manifest), encoding="utf-8", errors="surrogateescape")
    temporary.replace(path)


def is_intact(run_folder: Path) -> bool:
    """Return whether the output of a run is still there as it was at the run's end."""
    try:
        manifest = _manifest(run_folder)
        output, noted = Path(manifest["output"]), manifest["files"]
        if manifest["whole"]:
            return bool(output.is_dir() and dict(_states(output)) == noted)
        return not _others(output, noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def lost_files(run_folder: Path) -> list[str] | None:
    """Return which files of the output are gone or changed since they were noted; None: none ever were."""
    try:
        manifest = _manifest(run_folder)
        return _others(Path(manifest["output"]), manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _manifest(run_folder: Path) -> Any:
    content = RunPaths(run_folder).manifest.read_text("utf-8", errors="surrogateescape")
    return json.loads(content)


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


def _settled_size(definition: StepDefinition) -> list[int]:
    """Return the mini-batch size for each input, as a number: "10" is 10, and nothing the default."""
    size = definition.config.mini_batch_size
    return [
        sizes.files_per_mini_batch(size) if one.kind == "file" else sizes.bytes_per_mini_batch(size)
        for one in definition.inputs
    ]


def _shown_whole(definition: StepDefinition) -> Iterator[FileDataset]:
    """Yield the datasets that every mini-batch can see: side inputs, and paths among arguments."""
    yield from definition.side_inputs
    for argument in definition.arguments:
        known: tuple[Dataset, ...] = (*definition.side_inputs, *definition.inputs)
        if isinstance(argument, FileDataset) and not any(argument is one for one in known):
            yield argument


def _add_contents(
    digest: hashlib.blake2b,
    definition: StepDefinition,
    listings: Sequence[Sequence[FileItem]],
) -> None:
    for dataset, files in zip(definition.inputs, listings, strict=True):
        _add(digest, "input", dataset.fingerprint_parts(files))
    for dataset in _shown_whole(definition):
        _add(digest, "side input", dataset.fingerprint_parts(dataset.list_files()))


def _add(digest: hashlib.blake2b, title: str, parts: Iterable[str]) -> None:
    digest.update(f"\n{title}\n".encode())
    for part in parts:
        digest.update(part.encode("utf-8", errors="surrogateescape") + b"\0")


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
