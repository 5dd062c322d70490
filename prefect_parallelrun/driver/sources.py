"""What the nodes of a run fetch by themselves, and with what; and what they must know of each bundle for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from prefect_parallelrun.datasets import (
    Dataset,
    FileDataset,
    FileItem,
    TabularDataset,
)
from prefect_parallelrun.datasets.hidden import Hidden
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.bundle import Bundle
from prefect_parallelrun.node.sources import Files, Query, SideInput, Sources
from prefect_parallelrun.planning import Plan
from prefect_parallelrun_runtime import messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What nodes fetch, for the driver."""

    sources: Sources
    """For the agents of the nodes alone: there are secrets in it."""
    files: tuple[dict[str, FileItem], ...]
    """For each input its files by path, as they were listed; none of an input that is read in place."""

    @classmethod
    def of(
        cls, definition: StepDefinition, plan: Plan, listings: Sequence[Sequence[FileItem]]
    ) -> Self:
        """Find out what a step's nodes fetch; the secrets for that are asked for now.

        Args:
            definition: of the step.
            plan: of its mini-batches.
            listings: the files of each input.

        Raises:
            ConfigError: a credentials block is not there.
            DatasetError: a side input cannot be listed.
        """
        inputs: list[Files | Query | None] = []
        if plan.kind != "rank":
            inputs.extend(_input(dataset) for dataset in definition.inputs)
        return cls(
            sources=Sources(
                inputs=tuple(inputs), side_inputs=tuple(map(_side_input, definition.placed))
            ),
            files=tuple(
                {file.path: file for file in files} if one is not None else {}
                for one, files in zip(inputs, listings, strict=False)
            ),
        )

    def tasks(self, bundle: Bundle) -> list[messages.Task]:
        """Return what a bundle sends; to the work of what is fetched the agent's part is added.

        That is `planned`: `bytes` to make room for, and size, time and etag of each file.
        """
        tasks = bundle.tasks()
        for task, member in zip(tasks, bundle.members, strict=True):
            place = member.mini_batch.input_index
            if place >= 0 and self.sources.inputs[place] is not None:
                task[3] = self._told(task[3], member.mini_batch.size, self.files[place])
        return tasks

    def _told(self, work: dict[str, Any], size: int, files: dict[str, FileItem]) -> dict[str, Any]:
        paths = work.get("files") or work.get("paths") or [work["path"]]
        known = [files[path][1:] for path in paths] if files else []  # rows of a query are in none
        return {**work, "planned": {"bytes": size, "files": known}}


def _input(dataset: Dataset) -> Files | Query | None:
    if isinstance(dataset, TabularDataset):
        if dataset.frame is not None:
            return None
        if (table := dataset.sql) is not None:
            return Query(database=Hidden({"url": table.url()}), query=table.query)
    if not dataset.is_staged:
        return None
    return Files(
        storage=dataset.storage.unlocked(),
        credentials=dataset.storage.credentials or "",
        # A table's files have no folder that anybody looks for.
        root=dataset.to_path() if isinstance(dataset, FileDataset) else "",
    )


def _side_input(dataset: FileDataset) -> SideInput:
    files: tuple[FileItem, ...] = ()
    if dataset.is_staged:
        # The listing's own paths open themselves, here.
        files = tuple(item._replace(path=str(item.path)) for item in dataset.list_files())
    return SideInput(
        files=files,
        storage=dataset.storage.unlocked(),
        credentials=dataset.storage.credentials or "",
        root=dataset.to_path(),
        copied=dataset.is_staged,
        path=dataset.target_path,
    )
