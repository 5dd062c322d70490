"""A step in a YAML file, for the command line: the file's settings as a `ParallelRunStep`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prefect_parallelrun import step_datasets, yaml_document
from prefect_parallelrun.azure_yaml import job as azure_job
from prefect_parallelrun.config import ParallelRunConfig, absolute, saved_settings
from prefect_parallelrun.datasets import Dataset, OutputFileDatasetConfig
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.step import ParallelRunStep
from prefect_parallelrun.yaml_document import Part, Place

_REFERENCE = re.compile(r"(?:(-[^=\s]*)=)?\$\{\{\s*(inputs|outputs)\.([\w-]+)\s*\}\}")


class Output(Part):
    """`output`, where it needs more than a place."""

    name: str = "output"
    """letters, digits, underscores and dashes, by which arguments refer to it"""
    destination: str | None = None
    """a folder, or a URL"""
    storage_options: dict[str, Any] | None = None
    """a mapping of what opens the storage, as fsspec has it"""
    credentials: str | None = None
    """the name of a Prefect block, <block type>/<block name>"""


Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class TaskOptions(Part):
    """`task_options`: of those of Prefect's task, the ones that a file can say."""

    retries: Annotated[int, Field(ge=0)] = 0
    """a whole number of tries after the first"""
    retry_delay_seconds: Seconds | Annotated[list[Seconds], Field(max_length=50)] = 0
    """a number of seconds, or a list of them, one for each retry, 50 at most"""
    retry_jitter_factor: Seconds | None = None
    """a number, 0 or more"""
    timeout_seconds: Seconds | None = None
    """a number of seconds"""
    tags: list[str] = Field(default_factory=list)
    """a list of texts"""
    description: str | None = None
    """a text"""
    version: str | None = None
    """a text"""
    task_run_name: str | None = None
    """a text"""
    log_prints: bool | None = None
    """true or false"""
    refresh_cache: bool | None = None
    """true or false"""
    cache_expiration: Seconds | None = None
    """a number of seconds for which an earlier result holds"""
    persist_result: bool | None = None
    """true or false"""
    result_storage: str | None = None
    """the name of a Prefect block, <block type>/<block name>"""
    result_storage_key: str | None = None
    """a text"""

    def given(self) -> dict[str, Any]:
        """Return what the file says, as Prefect takes it."""
        options = self.model_dump(exclude_unset=True)
        if self.cache_expiration is not None:
            options["cache_expiration"] = timedelta(seconds=self.cache_expiration)
        return options


class Step(Part):
    """The whole file."""

    name: str
    """3 to 32 lower-case letters, digits and dashes"""
    config: str | dict[str, Any]
    """a mapping of the settings of ParallelRunConfig, or the name of a file that has them"""
    inputs: list[Any] = Field(default_factory=list)
    """a list of datasets, each a mapping such as `files: data/*.png`"""
    side_inputs: list[Any] = Field(default_factory=list)
    """a list of datasets of files, each a mapping such as `files: labels`"""
    arguments: list[str | int | float | bool] = Field(default_factory=list)
    """a list of texts and numbers, such as [--labels_dir, "${{inputs.labels}}"]"""
    output: str | dict[str, Any] | None = None
    """a folder, a URL, or a mapping of name, destination, storage_options and credentials"""
    allow_reuse: bool = True
    """true or false"""
    task_options: dict[str, Any] = Field(default_factory=dict)
    """a mapping of options of Prefect's task, such as `retries: 2`"""


def load_step(path: str | Path) -> ParallelRunStep:
    """Return the step that a YAML file describes; paths in it are relative to the file's folder.

    Raises:
        ConfigError: the file cannot be read, or says something that cannot work; the text names file,
            key and value.
        DatasetError: a registered dataset is not there.
        EntryScriptError: the entry script cannot work.
    """
    place, file = Place(str(path)), absolute(str(path))
    document = yaml_document.read(file, place)
    if azure_job.is_one(document):
        document = azure_job.as_step(document, file.parent, place)
    step = yaml_document.fitted(Step, document, place)
    config = _config(step.config, file.parent, place.at("config"))
    inputs = _datasets(step.inputs, file.parent, place.at("inputs"))
    side_inputs = _datasets(step.side_inputs, file.parent, place.at("side_inputs"))
    output = _output(step.output, file.parent, place.at("output"))
    arguments = _arguments(
        step.arguments, _by_name([*inputs, *side_inputs], place), output, place.at("arguments")
    )
    task_options = yaml_document.fitted(TaskOptions, step.task_options, place.at("task_options"))
    with place.blamed():
        return ParallelRunStep(
            step.name,
            config,
            inputs,
            output=output,
            side_inputs=side_inputs,
            arguments=arguments,
            allow_reuse=step.allow_reuse,
            task_options=task_options.given(),
        )


def load_config(path: str | Path) -> ParallelRunConfig:
    """Return the settings in a file that `save_to_yaml` wrote; paths are relative to the file's folder.

    Raises:
        ConfigError: the file cannot be read, or a setting in it cannot work.
    """
    file = absolute(str(path))
    with Place(str(path)).blamed():
        settings = saved_settings(file)
        return _below(ParallelRunConfig.from_saved(settings, below=file.parent), file.parent)


def _config(given: str | dict[str, Any], folder: Path, place: Place) -> ParallelRunConfig:
    with place.blamed():
        if isinstance(given, str):
            return load_config(absolute(given, below=str(folder)))
        return _below(ParallelRunConfig.from_saved(given, below=folder), folder)


def _below(config: ParallelRunConfig, folder: Path) -> ParallelRunConfig:
    """Return the settings with the paths in them below a folder."""
    name = "entry_script" if config.source_directory is None else "source_directory"
    return config.model_copy(update={name: str(absolute(getattr(config, name), below=str(folder)))})


def _datasets(given: list[Any], folder: Path, place: Place) -> list[Any]:
    return [step_datasets.made(one, folder, place.at(number)) for number, one in enumerate(given)]


def _output(
    given: str | dict[str, Any] | None, folder: Path, place: Place
) -> OutputFileDatasetConfig:
    document = given if isinstance(given, dict) else {"destination": given}
    output = yaml_document.fitted(Output, document, place)
    destination = output.destination
    if destination is not None and not step_datasets.is_url(destination):
        destination = str(absolute(destination, below=str(folder)))
    with place.blamed():
        return OutputFileDatasetConfig(
            output.name,
            destination,
            storage_options=output.storage_options,
            credentials=output.credentials,
        )


def _by_name(datasets: Iterable[Dataset], place: Place) -> dict[str, Dataset]:
    """Return the datasets that have a name."""
    found: dict[str, Dataset] = {}
    for dataset in datasets:
        if dataset.name is None:
            continue
        if dataset.name in found:
            raise ConfigError(f"{place}: two inputs have the name {dataset.name!r}")
        found[dataset.name] = dataset
    return found


def _arguments(
    given: list[str | int | float | bool],
    datasets: Mapping[str, Dataset],
    output: OutputFileDatasetConfig,
    place: Place,
) -> list[Any]:
    """Return the arguments with what their references stand for."""
    known: dict[str, Mapping[str, Any]] = {"inputs": datasets, "outputs": {output.name: output}}
    found: list[Any] = []
    for number, argument in enumerate(given):
        if not isinstance(argument, str) or "${{" not in argument:
            found.append(argument)
            continue
        match = _REFERENCE.fullmatch(argument.strip())
        if match is None:
            raise place.at(number).refuse(
                argument,
                "a reference stands alone, or after `--option=`: ${{inputs.NAME}} or ${{outputs.NAME}}",
            )
        option, what, name = match.groups()
        if name not in known[what]:
            there = yaml_document.references(what, known[what])
            meant = yaml_document.suggestion(match[0], there)
            raise place.at(number).refuse(argument, f"there is no such name: {meant}")
        found += [known[what][name]] if option is None else [option, known[what][name]]
    return found
