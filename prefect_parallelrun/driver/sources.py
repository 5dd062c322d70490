"""What the nodes of a run fetch by themselves, and with what; and what they must know of each bundle for it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect_parallelrun.datasets import (
    Dataset,
    FileDataset,
    FileItem,
    TabularDataset,
)
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.node.sources import Files, InPlace, Query, SideInput, Sources
from prefect_parallelrun.planning import Plan, frame_file
from prefect_parallelrun_runtime import messages


class Fetched:
    """What nodes fetch, for the driver.

    The secrets for that are asked for now.

    Args:
        definition: of the step.
        plan: of its mini-batches.
        listings: the files of each input.
        scratch: folder with the DataFrames that are inputs.

    Raises:
        ConfigError: a credentials block is not there.
        DatasetError: a side input cannot be listed.
    """

    def __init__(
        self,
        definition: StepDefinition,
        plan: Plan,
        listings: Sequence[Sequence[FileItem]],
        scratch: Path,
    ) -> None:
        self._side_inputs = definition.all_side_inputs
        inputs = definition.inputs if plan.kind != "rank" else ()
        self._listings = [
            _frame(scratch, place, dataset) or files
            for place, (dataset, files) in enumerate(zip(inputs, listings, strict=False))
        ]
        self.sources = Sources(
            inputs=tuple(
                _input(dataset, files)
                for dataset, files in zip(inputs, self._listings, strict=True)
            ),
            side_inputs=tuple(map(_side_input, self._side_inputs)),
        )
        """For the agents of the nodes alone: there are secrets in it."""

    @functools.cached_property
    def files(self) -> list[dict[str, FileItem]]:
        """For each input its files by path, as they were listed."""
        # Not before somebody asks: of millions of files that all nodes see nobody does.
        return [{file.path: file for file in files} for files in self._listings]

    def side_input(self, number: int) -> list[FileItem]:
        """Return the files of a side input, by its number in `sources`."""
        return self._side_inputs[number].list_files()

    def tasks(self, bundle: Bundle, unseen: Collection[int] = ()) -> list[messages.Task]:
        """Return what a bundle sends; to the work of what is fetched the agent's part is added.

        That is `planned`: `bytes` to make room for, and size, time and etag of each file.

        Args:
            bundle: for a node.
            unseen: inputs whose files that node cannot read in place.
        """
        tasks = bundle.tasks()
        for task, member in zip(tasks, bundle.members, strict=True):
            place = member.mini_batch.input_index
            if place < 0:
                continue
            source = self.sources.inputs[place]
            if not isinstance(source, InPlace) or place in unseen:
                # Rows of a query are in no file.
                files = {} if isinstance(source, Query) else self.files[place]
                task[3] = _told(task[3], member.mini_batch.size, files)
        return tasks


def _told(work: dict[str, Any], size: int, files: Mapping[str, FileItem]) -> dict[str, Any]:
    paths = work.get("files") or work.get("paths") or [work["path"]]
    known = [files[path][1:] for path in paths] if files else []
    return {**work, "planned": {"bytes": size, "files": known}}


def _frame(scratch: Path, place: int, dataset: Dataset) -> list[FileItem]:
    """Return the file in which a DataFrame is kept; nothing of another input."""
    if not isinstance(dataset, TabularDataset) or dataset.frame is None:
        return []
    return [_item(frame_file(scratch, place, dataset))]


def _item(path: Path) -> FileItem:
    status = path.stat()
    return FileItem(str(path), status.st_size, status.st_mtime_ns)


def _input(dataset: Dataset, files: Sequence[FileItem]) -> Files | Query | InPlace:
    if isinstance(dataset, TabularDataset) and (table := dataset.sql) is not None:
        return Query(database=Hidden({"url": table.url()}), query=table.query)
    # A table's files have no folder that anybody looks for.
    root = dataset.to_path() if isinstance(dataset, FileDataset) else ""
    sample = _sample(files) if dataset.storage.is_local else ()
    if not dataset.is_staged:
        return InPlace(root=root, sample=sample)
    return Files(
        storage=dataset.storage.unlocked(),
        credentials=dataset.storage.credentials or "",
        root=root,
        sample=sample,
    )


def _sample(files: Sequence[FileItem]) -> tuple[FileItem, ...]:
    """Return the first, the last and one between: a node is to look at few."""
    return tuple(files[n] for n in sorted({0, len(files) // 2, len(files) - 1})) if files else ()


def _side_input(dataset: FileDataset) -> SideInput:
    files: tuple[FileItem, ...] = ()
    if dataset.is_staged:
        # The listing's own paths open themselves, here.
        files = tuple(item._replace(path=str(item.path)) for item in dataset.list_files())
    root = dataset.to_path()
    local = dataset.storage.is_local
    sample = _sample(files) if dataset.is_staged else (_item(Path(root)),)
    return SideInput(
        files=files,
        storage=dataset.storage.unlocked(),
        credentials=dataset.storage.credentials or "",
        root=root,
        copied=dataset.is_staged,
        sample=sample if local else (),
        path=dataset.target_path,
    )
