"""Which earlier runs still hold: by fingerprints of steps, and by how their outputs are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from prefect_parallelrun import append_row, manifest
from prefect_parallelrun.datasets import Dataset, FileDataset, FileItem, sizes
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.output import upload
from prefect_parallelrun.run_record import Cuts

FORMAT = 1
"""Counts up whenever the same settings would give other rows than before."""

_INPUT, _SIDE_INPUT = "input", "side input"
_DATA = (_INPUT, _SIDE_INPUT)
_SHORT = 12
"""Bytes of the digest of one part: collisions are no danger there, as nobody chooses what is hashed."""
_OUTPUT = "{output}"
"""Stands for the output folder among the arguments, where it is a folder of the run."""


class Seen(NamedTuple):
    """A dataset that decides the rows: an input, or what every mini-batch can see."""

    name: str
    """`input 0` or `side input 0`, by its place."""
    dataset: Dataset
    files: Sequence[FileItem]
    """See `Dataset.states`."""

    @property
    def is_input(self) -> bool:
        """Whether it is cut into mini-batches."""
        return self.name.startswith(_INPUT)

    @property
    def title(self) -> str:
        """What people know it by: `input 0 (images)`."""
        return f"{self.name} ({self.dataset.name})" if self.dataset.name else self.name


def step_fingerprint(name: str, parts: Mapping[str, str]) -> str:
    """Return a text that is the same exactly for steps that give the same rows in the same place.

    Left out is what cannot change the rows: node_count, process_count_per_node, compute_target,
    logging_level, timeouts, tries, thresholds, description.

    Args:
        name: of the step.
        parts: what `fingerprint_parts` returned.
    """
    return _digest([FORMAT, name, sorted(parts.items())], size=20)


def fingerprint_parts(
    definition: StepDefinition, *, source_sha256: str, seen: Iterable[Seen]
) -> dict[str, str]:
    """Return a short text for each thing that decides the rows, another one when it is another.

    Its keys are `source`, `entry_script`, `arguments`, `environment`, `environment_variables`, `output`,
    `mini_batch_size`, `partition_keys`, and the names of `data`.

    Args:
        source_sha256: of the source snapshot.
        seen: what `data` returned.
    """
    config = definition.config
    settings: dict[str, Any] = {
        "source": source_sha256,
        "entry_script": config.script_path.relative_to(config.source_folder).as_posix(),
        "arguments": definition.script_arguments(_OUTPUT),
        "environment": config.environment and config.environment.made_of(),
        "environment_variables": config.environment_variables or {},
        "output": output_settings(definition),
        "mini_batch_size": _settled_size(definition),
        "partition_keys": config.partition_keys,
    }
    parts = {name: _digest(value) for name, value in settings.items()}
    return parts | _content_parts(seen)


def settings_fingerprint(definition: StepDefinition, parts: Mapping[str, str]) -> str:
    """Return a text that is the same for steps of which mini-batches of the same items have the same rows.

    Args:
        definition: of the step.
        parts: what `fingerprint_parts` returned.
    """
    config, known = definition.config, dict(parts)
    for place, one in enumerate(definition.inputs):
        # Of one among the arguments the script can see every file at any time.
        if not any(argument is one for argument in definition.arguments):
            known.pop(f"{_INPUT} {place}", None)
    del known["output"]
    rows = [
        config.output_action,
        config.output_format,
        append_row.to_csv_keywords(config.script_path.parent),
        # Where the script writes by itself, it makes something else of another place.
        definition.output_place if config.output_action == "summary_only" else None,
    ]
    read = [[one.kind, *one.fingerprint_parts([])] for one in definition.inputs]
    return _digest([FORMAT, definition.name, sorted(known.items()), rows, read], size=20)


def output_settings(definition: StepDefinition) -> list[Any]:
    """Return all that decides where the output goes, and what it looks like."""
    config = definition.config
    return [
        config.output_action,
        config.append_row_file_name,
        config.output_format,
        config.output_order,
        definition.output_place or _OUTPUT,
        append_row.to_csv_keywords(config.script_path.parent),
    ]


def contents(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> str:
    """Return a text that is the same where all files that the script can see are as they were."""
    return contents_of(_content_parts(data(definition, listings)))


def contents_of(parts: Mapping[str, str]) -> str:
    """Return what `contents` would, by what `fingerprint_parts` returned."""
    return _digest(sorted(part for part in parts.items() if part[0].startswith(_DATA)), size=20)


def data(definition: StepDefinition, listings: Sequence[Sequence[FileItem]]) -> Iterator[Seen]:
    """Yield all that the script can see; side inputs are listed now."""
    side_inputs = (one.list_files() for one in _shown_whole(definition))
    files_of_each = chain(listings, side_inputs)
    for (name, dataset), files in zip(datasets(definition).items(), files_of_each, strict=True):
        yield Seen(name, dataset, dataset.states(files))


def datasets(definition: StepDefinition) -> dict[str, Dataset]:
    """Return all that the script can see, by the names of `Seen`."""
    places: list[tuple[str, Iterable[Dataset]]] = [
        (_INPUT, definition.inputs),
        (_SIDE_INPUT, _shown_whole(definition)),
    ]
    return {f"{what} {place}": one for what, some in places for place, one in enumerate(some)}


def grouping(
    definition: StepDefinition, listings: Sequence[Sequence[FileItem]], cuts: Cuts = None
) -> str:
    """Return a text that is the same where mini-batches have the same items under the same numbers.

    For files their paths decide that, whatever is in them; for tables all that a change can touch.

    Args:
        definition: of the step.
        listings: the files of each input.
        cuts: of the run; see `run_record.kept_cuts`.
    """
    formats = [one.partition_format for one in definition.inputs if isinstance(one, FileDataset)]
    settings: list[Any] = [_settled_size(definition), definition.config.partition_keys, formats]
    digest = hashlib.blake2b(digest_size=20)
    settings += [definition.options.rank_mini_batch_count, *([] if cuts is None else [cuts])]
    digest.update(json.dumps(settings).encode())
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


def _content_parts(seen: Iterable[Seen]) -> dict[str, str]:
    parts = {}
    for name, dataset, files in seen:
        digest = hashlib.blake2b(digest_size=_SHORT)
        _add(digest, name, dataset.fingerprint_parts(files))
        parts[name] = digest.hexdigest()
    return parts


def _digest(value: Any, *, size: int = _SHORT) -> str:
    content = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def _add(digest: hashlib.blake2b, title: str, parts: Iterable[str]) -> None:
    digest.update(f"\n{title}\n".encode())
    for part in parts:
        digest.update(part.encode("utf-8", errors="surrogateescape") + b"\0")
