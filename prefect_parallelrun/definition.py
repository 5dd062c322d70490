"""A step as it will run: every value known, and what can be refused before any worker starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path, PurePath
from typing import Any

from prefect_parallelrun import append_row, checks
from prefect_parallelrun.config import ParallelRunConfig, absolute
from prefect_parallelrun.datasets import Dataset, FileDataset, FileItem, OutputFileDatasetConfig
from prefect_parallelrun.datasets.partitions import check_keys
from prefect_parallelrun.datasets.sizes import files_per_mini_batch
from prefect_parallelrun.errors import ConfigError, refuse
from prefect_parallelrun.node.sources import OUTPUT_FOLDER, SIDE_INPUT
from prefect_parallelrun.options import RunOptions, read_options
from prefect_parallelrun.script_check import check_script

RESERVED_ARGUMENTS = frozenset(
    {
        "mini_batch_size",
        "error_threshold",
        "allowed_failed_count",
        "allowed_failed_percent",
        "output",
        "output_action",
        "logging_level",
        "process_count_per_node",
        "run_invocation_timeout",
        "run_max_try",
        "append_row_file_name",
        "partition_keys",
    }
)
"""Names that Azure's driver puts into `sys.argv` itself (R106)."""

_NOT_YET: dict[str, tuple[Any, ...]] = {
    "speculative_copies": (False,),
}
"""Settings of which only these values work so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDefinition:
    """A step with all values known: no pipeline parameters, futures or earlier results left."""

    name: str
    config: ParallelRunConfig
    inputs: tuple[Dataset, ...]
    side_inputs: tuple[FileDataset, ...] = ()
    arguments: tuple[Any, ...] = ()
    output: OutputFileDatasetConfig | None = None
    """Where the output goes; None: a folder of the run."""
    never_shipped: tuple[Path, ...] = ()
    """Folders that are no part of any source: Prefect's home, run folders."""

    @property
    def options(self) -> RunOptions:
        """What the product itself reads from the arguments; the last one counts, as in argparse."""
        return read_options(self.script_arguments(""))

    @property
    def left_out(self) -> tuple[Path, ...]:
        """All that is left out of the source snapshot, whatever the ignore files say (R30)."""
        folder = self.output_folder
        if folder is None:
            return self.never_shipped  # the output is in the run folder then
        # Where the source is the output folder as well, our file in it is still no source.
        return (*self.never_shipped, folder, folder / self.config.append_row_file_name)

    @property
    def output_folder(self) -> Path | None:
        """The folder on this machine that the user named for the output; None: a folder of the run."""
        if self.output is None or self.output.destination is None:
            return None
        if not self.output.storage.is_local:
            return None  # what comes about in the run's folder is uploaded at the end
        return absolute(str(self.output.destination))

    @property
    def output_place(self) -> str | None:
        """The folder that the user named for the output, or its URL; None: a folder of the run."""
        return None if self.output is None else self.output.destination

    def list_inputs(self) -> list[list[FileItem]]:
        """List the files of each input, afresh; none where `--rank_mini_batch_count` replaces them.

        Raises:
            DatasetError: an input is not there, or is empty.
        """
        if self.options.rank_mini_batch_count is not None:
            return [[] for _ in self.inputs]
        return [dataset.list_files() for dataset in self.inputs]

    @property
    def all_side_inputs(self) -> tuple[FileDataset, ...]:
        """The side inputs of the step, each once; `SIDE_INPUT` numbers them so.

        A FileDataset among the arguments that is no input is a side input, too.
        """
        found = [
            one
            for one in (*self.side_inputs, *self.arguments)
            if isinstance(one, FileDataset) and (one in self.side_inputs or one not in self.inputs)
        ]
        return tuple(dict.fromkeys(found))

    @property
    def placed(self) -> tuple[FileDataset, ...]:
        """Those that each node puts in place itself, whatever it sees."""
        return tuple(one for one in self.all_side_inputs if one.is_staged or one.target_path)

    def node_arguments(self) -> list[str]:
        """Return `script_arguments` for a node, which knows what `SIDE_INPUT` and `OUTPUT_FOLDER` are there."""
        side_inputs = self.all_side_inputs
        return [
            SIDE_INPUT.format(number=side_inputs.index(argument))
            if isinstance(argument, FileDataset) and argument in side_inputs
            else self._argument(argument, OUTPUT_FOLDER)
            for argument in self.arguments
        ]

    def script_arguments(self, output_folder: str) -> list[str]:
        """Return the script's `sys.argv[1:]`: datasets and outputs become their paths (R51).

        That of a side input which each node puts in place itself is `SIDE_INPUT` until then.
        """
        return [self._argument(argument, output_folder) for argument in self.arguments]

    def _argument(self, argument: Any, output_folder: str) -> str:
        if isinstance(argument, FileDataset):
            placed = self.placed
            if argument in placed:
                return SIDE_INPUT.format(number=placed.index(argument))
            if argument.is_staged:
                raise refuse(
                    "arguments",
                    argument,
                    "its files are fetched for one mini-batch after the other, so it has no folder: to have "
                    "all of them on each node, give it in side_inputs too",
                )
            return argument.to_path()
        if isinstance(argument, Dataset):
            raise refuse("arguments", argument, "a table has no path; only a FileDataset has")
        if isinstance(argument, OutputFileDatasetConfig):
            if self.output is None or argument.name != self.output.name:
                raise refuse("arguments", argument, "it must be the output of this same step")
            return output_folder
        return str(argument)

    def validate(self, *, inputs_pending: bool = False) -> None:
        """Refuse what cannot work, before any worker starts.

        Args:
            inputs_pending: some inputs are not known yet, so there may be more than these.

        Raises:
            ConfigError: a parameter has a value that cannot work, or does not work yet.
            EntryScriptError: the entry script cannot be parsed, or defines no `run`.
        """
        check_name(self.name)
        if sys.platform != "linux":
            raise ConfigError(f"this system is {sys.platform}: steps run on Linux only")
        _check_supported(self.config)
        texts = self.script_arguments("output")
        _check_arguments(texts)
        options = read_options(texts)
        self._check_inputs(inputs_pending or options.rank_mini_batch_count is not None)
        for one in self.side_inputs:
            if not isinstance(one, FileDataset):
                raise checks.unfit("side_inputs", one, "a list of FileDatasets")
        for side_input in self.placed:
            _check_target(side_input)
        _check_apart(self.placed)
        check_script(self.config)
        append_row.check(self.config.script_path.parent, self.config.output_format)

    def _check_inputs(self, may_be_empty: bool) -> None:
        for one in self.inputs:
            if not isinstance(one, Dataset):
                raise checks.unfit(
                    "inputs", one, "a list of FileDatasets or TabularDatasets, or results of steps"
                )
            if one.target_path is not None:
                raise refuse(
                    "inputs",
                    one,
                    f"as_{one.delivery}({one.target_path!r}) names a path, which is for side inputs: of an "
                    "input, run() gets the paths; leave it out",
                )
        if not self.inputs and not may_be_empty:
            raise checks.unfit(
                "inputs", [], "at least one dataset (or give --rank_mini_batch_count in arguments)"
            )
        kinds = {one.kind for one in self.inputs}
        if len(kinds) > 1:
            raise checks.unfit(
                "inputs", list(self.inputs), "datasets of one kind: all of files, or all tables"
            )
        for one in self.inputs:
            check_keys(self.config.partition_keys or (), one.partition_keys, one)
        if "file" in kinds:
            files_per_mini_batch(self.config.mini_batch_size)  # refuses a size with a unit


def check_name(name: object) -> None:
    """Refuse a step's name that breaks R46."""
    fits = isinstance(name, str) and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    if not fits or not 3 <= len(str(name)) <= 32:
        raise checks.unfit(
            "name",
            name,
            "3 to 32 lower-case letters, digits and dashes, beginning with a letter and not "
            "ending with a dash",
        )


def _check_target(side_input: FileDataset) -> None:
    """Refuse a place for a side input that would be nowhere, or out of the node's folder."""
    path = side_input.target_path
    if path is not None and (".." in PurePath(path).parts or not PurePath(path).name):
        raise refuse(
            f"as_{side_input.delivery}(path)",
            path,
            "give an absolute path, or one below the node's own folder, without '..'",
        )


def _check_apart(side_inputs: Sequence[FileDataset]) -> None:
    """Refuse a side input at the path of another one, or inside it: that one may be the user's own folder."""
    wanted = [one for one in side_inputs if one.target_path is not None]
    for one, other in permutations(wanted, 2):
        if PurePath(one.target_path or "").is_relative_to(other.target_path or ""):
            raise refuse(
                f"as_{one.delivery}(path)",
                one.target_path,
                f"another side input is to be at {other.target_path}: give paths of which none is, or is "
                "within, another",
            )


def _check_supported(config: ParallelRunConfig) -> None:
    """Refuse settings that are understood but do nothing yet."""
    for name, working in _NOT_YET.items():
        value = getattr(config, name)
        if value not in working:
            raise refuse(name, value, f"it is not supported yet: leave it at {working[0]!r}")


def _check_arguments(texts: Sequence[str]) -> None:
    """Refuse arguments that argparse, or the product's own reading of them, would get wrong (R106)."""
    if texts and not texts[0].startswith("-"):
        raise refuse("arguments", texts[0], "the first one must begin with '-', such as '--model'")
    for text in texts:
        name = text.removeprefix("--").split("=", 1)[0]
        if text.startswith("--") and name in RESERVED_ARGUMENTS:
            raise refuse(
                "arguments",
                text,
                f"--{name} is reserved, since it is a setting of the step: choose another name",
            )
