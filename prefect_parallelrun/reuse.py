"""Which earlier runs still hold: by fingerprints of steps, and by how their outputs are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect_parallelrun import append_row, manifest
from prefect_parallelrun.datasets import Dataset, FileDataset, FileItem, sizes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.output import upload

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
            definition.output_place or _OUTPUT,
            append_row.to_csv_keywords(config.script_path.parent),
        ],
        "mini_batch_size": _settled_size(definition),
        "partition_keys": config.partition_keys,
    }
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    _add_contents(digest, definition, listings)
    return digest.hexdigest()


def shows_changes(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> bool:
    """Return whether other data would show in the fingerprint; a query's do not, for one."""
    inputs = zip(definition.inputs, listings, strict=True)
    return all(dataset.shows_changes(files) for dataset, files in inputs) and all(
        dataset.storage.is_local or dataset.shows_changes(dataset.list_files())
        for dataset in _shown_whole(definition)
    )


def contents(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> str:
    """Return a text that is the same where all files that the script can see are as they were."""
    digest = hashlib.blake2b(digest_size=20)
    _add_contents(digest, definition, listings)
    return digest.hexdigest()


def grouping(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> str:
    """Return a text that is the same where mini-batches have the same items under the same numbers.

    For files their paths decide that, whatever is in them; for tables all that a change can touch.
    """
    formats = [one.partition_format for one in definition.inputs if isinstance(one, FileDataset)]
    settings = [_settled_size(definition), definition.config.partition_keys, formats]
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


def is_intact(run_folder: Path, remote: upload.RemoteFolder | None = None) -> bool:
    """Return whether the output of a run is still there as it was at the run's end.

    Args:
        remote: where the output went, if that is another storage. Then its files there must be as they
            were too, and so must those on this machine, which stand for them.
    """
    if remote is not None and uploaded(run_folder, remote) is None:
        return False
    return manifest.is_intact(run_folder)


def uploaded(run_folder: Path, remote: upload.RemoteFolder) -> dict[str, upload.State] | None:
    """Return how the files of a remote output are there; None where they are not as they were."""
    try:
        noted: dict[str, upload.State] = manifest.read(run_folder)["uploaded"]
        return noted if remote.states(noted) == noted else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ParallelRunError):
        return None


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
