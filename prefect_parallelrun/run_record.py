"""`run.json`: what a run is, and how far it came, in its run folder; by it an earlier run is found again."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.datasets.kept_storage import kept
from prefect_parallelrun.datasets.storage import Storage
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.errors import OutputError
from prefect_parallelrun.paths import RunPaths

RUNNING = "Running"
"""The state of a run that has not ended, or of which the driver was killed."""
FAILED = "Failed"
CANCELLED = "Cancelled"
COMPLETED = "Completed"
"""The state of a run in which nothing failed; where something did, more words follow."""

_FILES_PER_LINE = 1000

Cuts = list[list[tuple[int, int]] | None] | None
"""For each input, sizes of mini-batches and how many of each size follow one another; see `planning`."""


class RunRecord(BaseModel):
    """What a run is, as its driver last wrote it down."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    step: str
    """Name of the step."""
    run_id: str
    """Name of the run; the run folder is called so."""
    fingerprint: str
    """See `reuse.step_fingerprint`; a run with the same one would give the same rows. Empty for rows
    of which no step can say so: the script or an input changed between them."""
    parts: dict[str, str] = {}
    """See `reuse.fingerprint_parts`: what the fingerprint is made of, to say later what has changed."""
    settings: str = ""
    """See `reuse.settings_fingerprint`; mini-batches of a run with the same one, with the same items,
    have the same rows."""
    base: str | None = None
    """The run of which mini-batches were taken over when this one began (R202)."""
    completion: str = ""
    """A name that only the completion has which made the output as it is: Prefect's result is stored
    under it. Empty where it never completed."""
    reuse: tuple[str, ...] = ()
    """What was taken over of earlier work, and why not more: one sentence each, of the last sitting that
    was told any."""
    source_sha256: str = ""
    """Of the source snapshot that its rows were made with."""
    grouping: str = ""
    """See `reuse.grouping`; with the same one, mini-batches are numbered as they were."""
    readers: tuple[str, ...] = ()
    """See `identities.of_readers`; with another one, no mini-batch of that input is as it was."""
    contents: str = ""
    """See `reuse.contents`; with the same one, no file that the script can see has changed."""
    task_run: str | None = None
    """Prefect's id of the task run that began it."""
    started_at: AwareDatetime
    """UTC, when the run began; not when it was resumed."""
    rows_since: AwareDatetime | None = None
    """UTC, since when it has its oldest rows: the end of the sitting that made them, in its own run; the
    beginning if that was killed. None before anything ran."""
    state: str = RUNNING
    """`Running`, `Completed`, `Completed with 12 failed items`, `Failed`, or `Cancelled`."""
    kind: str | None = None
    """What an item is: `file`, `tabular` or `rank`; None before the run was planned."""
    mini_batches: int | None = None
    """How many the plan has, where that is known without reading the input."""
    items: int | None = None
    """How many the plan has; None for rows."""
    output: str
    """The output folder."""
    append_row_file_name: str | None = None
    """Name of the output file; None for `summary_only`."""
    output_order: str = "input"
    """`input` or `completion`."""
    output_format: str = "text"
    """`text`, `csv`, `jsonl` or `parquet`."""

    @property
    def completed(self) -> bool:
        """Whether it ended with an output, failed items or not."""
        return self.state.startswith(COMPLETED)

    @property
    def oldest_rows_at(self) -> datetime:
        """UTC, from when its age counts; a record that does not say it counts from the beginning."""
        return self.rows_since or self.started_at

    def has_expired(self, expiration: timedelta | None) -> bool:
        """Return whether its oldest rows are too old, if a result holds for so long."""
        if expiration is None:
            return False
        return datetime.now(UTC) - self.oldest_rows_at >= expiration

    def write(self, paths: RunPaths) -> None:
        """Write it down in one step: a reader sees the earlier one or this one."""
        # In ASCII, since a folder's name may be no text in any encoding.
        content = json.dumps(self.model_dump(mode="json"), indent=1)
        _replace(paths.record, content.encode("ascii"))

    @classmethod
    def read(cls, paths: RunPaths) -> RunRecord:
        """Return what is written down.

        Raises:
            OutputError: this is no run folder, or its record cannot be read.
        """
        try:
            return cls.model_validate(json.loads(paths.record.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and paths.lock.exists():
                raise OutputError(
                    f"run {paths.root.name} has no {paths.record.name}: its driver is still planning, or "
                    "was killed before anything ran; then run the step again, and `parallelrun clean` "
                    "removes the folder"
                ) from error
            raise OutputError(
                f"{paths.root} is no run folder that can be read: {paths.record.name}: {error}"
            ) from error


def keep_definition(paths: RunPaths, definition: StepDefinition) -> None:
    """Write down the step, so that the run can be verified and gone on with without its flow.

    A cluster object cannot be written down: it is left out, and an embedded cluster does its work then.
    So are options by which storages are opened, which may be secrets (R78); names of credentials blocks
    are kept.

    Raises:
        Exception: an input cannot be pickled, or the disk refuses it.
    """
    config = definition.config
    if not isinstance(config.compute_target, str):
        config = config.model_copy(update={"compute_target": None})
    content = io.BytesIO()
    _Keeper(content).dump(replace(definition, config=config))
    # It holds environment variables, which are nobody else's.
    _replace(paths.definition, content.getvalue(), mode=0o600)


class _Keeper(pickle.Pickler):
    """Writes storages down without what may be secret."""

    def reducer_override(self, value: Any) -> Any:
        """Return how a storage is made again; everything else is left to pickle."""
        if not isinstance(value, Storage):
            return NotImplemented
        storage = kept(value)
        return Storage, (storage.protocol, storage.credentials, storage.hidden, storage.left_out)


def kept_definition(paths: RunPaths) -> StepDefinition:
    """Return the step as `keep_definition` wrote it down.

    Raises:
        OutputError: it was not, or this version of prefect-parallelrun cannot read it.
    """
    try:
        definition = pickle.loads(paths.definition.read_bytes())
    # Whatever a pickle of another version may meet.
    except Exception as error:
        raise OutputError(
            f"the step of run {paths.root.name} cannot be read from {paths.definition}: "
            f"{type(error).__name__}: {error}. Run the step itself again"
        ) from error
    assert isinstance(definition, StepDefinition)
    return definition


def keep_listings(paths: RunPaths, listings: Iterable[tuple[str, Sequence[FileItem]]]) -> None:
    """Write down which files there were, so that it can be said later which of them have changed.

    Args:
        paths: of the run.
        listings: name and files of each input and side input.
    """
    temporary = paths.listings.with_suffix(".tmp")
    with temporary.open("w", encoding="ascii") as file:
        for name, files in listings:
            for start in range(0, len(files), _FILES_PER_LINE):
                file.write(json.dumps([name, files[start : start + _FILES_PER_LINE]]) + "\n")
    temporary.replace(paths.listings)


def kept_listing(paths: RunPaths, name: str) -> Iterator[FileItem]:
    """Yield the files of an input or side input as `keep_listings` wrote them down, in that order.

    Raises:
        OSError: they were not written down.
        ValueError: they are damaged.
    """
    with paths.listings.open(encoding="ascii") as lines:
        for line in lines:
            of, files = json.loads(line)
            if of == name:
                yield from (FileItem(*file) for file in files)


def first_files(paths: RunPaths, names: Collection[str]) -> Iterator[tuple[str, list[FileItem]]]:
    """Yield inputs and side inputs with up to 1,000 of their first files each, in the order of the run.

    Args:
        paths: of the run.
        names: of the inputs and side inputs; what follows the last of them is not read.

    Raises:
        OSError: they were not written down.
        ValueError: they are damaged.
    """
    left = set(names)
    seen: bytes | None = None
    with paths.listings.open("rb") as lines:
        for line in lines:
            # There may be thousands of lines of one name: these are passed over as they lie.
            if seen is not None and line.startswith(seen):
                continue
            name, files = json.loads(line)
            seen = json.dumps([name])[:-1].encode("ascii") + b","
            if name in left:
                yield name, [FileItem(*file) for file in files]
                left.remove(name)
            if not left:
                return


def keep_cuts(paths: RunPaths, cuts: Cuts) -> None:
    """Write down how inputs of files are cut, where an earlier run's grouping is kept; None: nothing is."""
    if cuts is None:
        paths.cuts.unlink(missing_ok=True)
    else:
        _replace(paths.cuts, json.dumps(cuts).encode("ascii"))


def kept_cuts(paths: RunPaths) -> Cuts:
    """Return what `keep_cuts` wrote down.

    Raises:
        OutputError: it cannot be read, so nobody knows which items a mini-batch of the run has.
    """
    try:
        cuts = json.loads(paths.cuts.read_text(encoding="ascii"))
        return [one if one is None else [(size, times) for size, times in one] for one in cuts]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"{paths.cuts} cannot be read: {error}. It says which files a mini-batch of run "
            f"{paths.root.name} has: put it back, or start a new run (allow_reuse=False)"
        ) from error


def _replace(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Put a new file in the place of an old one, in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def find_run(folder: Path, fingerprint: str, *, task_run: str | None = None) -> RunPaths | None:
    """Return the newest run of a fingerprint, whatever its state; None where there is none.

    Args:
        folder: of all runs of one step. The names of run folders hold the beginning of the
            fingerprint, so that thousands of other runs cost nothing but the listing.
        task_run: only the run that this task run of Prefect began.
    """
    for candidate in sorted(folder.glob(f"*-{fingerprint[:8]}-*"), reverse=True):
        paths = RunPaths(candidate)
        try:
            record = RunRecord.read(paths)
        except OutputError:
            continue  # not a run folder, or one whose driver was killed before it began
        if record.fingerprint == fingerprint and task_run in (None, record.task_run):
            return paths
    return None
