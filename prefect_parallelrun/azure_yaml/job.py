"""A parallel job in the YAML of Azure's second SDK (R109), said as a step file of ours."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect_parallelrun import yaml_document
from prefect_parallelrun.azure_yaml import mltable
from prefect_parallelrun.azure_yaml.schema import (
    Data,
    Job,
    Resources,
    Retries,
    Task,
    check_path,
    in_full,
)
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.yaml_document import Place

logger = logging.getLogger(__name__)

_REFERENCE = re.compile(r"\$\{\{\s*([\w.-]+?)\s*\}\}")
_SETTINGS = {
    "error_threshold": "error_threshold",
    "allowed_failed_count": "allowed_failed_count",
    "allowed_failed_percent": "allowed_failed_percent",
    "logging_level": "logging_level",
    "process_count_per_node": "process_count_per_node",
    "run_invocation_timeout": "run_invocation_timeout",
    "run_max_try": "run_max_try",
    "mini_batch_size": "mini_batch_size",
}
"""Program arguments that Azure's driver takes for settings, and the settings that they are here."""


def is_one(document: Mapping[str, Any]) -> bool:
    """Return whether a YAML document is a job of Azure's: a parallel one, or a pipeline."""
    schema = str(document.get("$schema", ""))
    return document.get("type") in ("parallel", "pipeline") or "azuremlschemas" in schema


def as_step(document: Mapping[str, Any], folder: Path, place: Place) -> dict[str, Any]:
    """Return what a step file of ours would say.

    Args:
        document: for which `is_one` holds.
        folder: of the file; a path of an `mltable` is looked for there.
        place: of the document.

    Raises:
        ConfigError: it is no job that can run here; the text names the key.
    """
    pipeline: Mapping[str, Any] = {}
    if "jobs" in document:
        pipeline = document
        document, place = _parallel_job(document, place)
    if document.get("type") != "parallel":
        raise place.at("type").refuse(document.get("type"), "of jobs, only parallel runs here")
    document = {**document, "name": document.get("name") or place.keys.rpartition(".")[2] or None}
    job = yaml_document.fitted(Job, _with_parent(document, pipeline, place), place)
    return _Translation(job, folder, place).step()


def _parallel_job(pipeline: Mapping[str, Any], place: Place) -> tuple[dict[str, Any], Place]:
    jobs = pipeline["jobs"] if isinstance(pipeline["jobs"], dict) else {}
    parallel = [
        name
        for name, job in jobs.items()
        if isinstance(job, dict) and job.get("type") == "parallel"
    ]
    if len(parallel) != 1:
        raise ConfigError(
            f"{place.at('jobs')} has {len(parallel)} parallel jobs {parallel}: a step file is for one"
        )
    return jobs[parallel[0]], place.at("jobs").at(parallel[0])


def _with_parent(value: Any, pipeline: Mapping[str, Any], place: Place) -> Any:
    """Return a part of the job with what the pipeline around it gives in the place of `${{parent…}}`."""
    if isinstance(value, dict):
        return {key: _with_parent(one, pipeline, place.at(key)) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_parent(one, pipeline, place.at(n)) for n, one in enumerate(value)]
    match = _REFERENCE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not match[1].startswith("parent."):
        return value
    _, what, name = [*match[1].split(".", 2), ""][:3]
    known = pipeline.get(what) if what in ("inputs", "outputs") else None
    if not isinstance(known, dict) or name not in known:
        raise place.refuse(
            value,
            "only inputs and outputs of the pipeline itself are known here: give a path or a value",
        )
    return known[name]


class _Translation:
    """One job on its way into a step file of ours."""

    def __init__(self, job: Job, folder: Path, place: Place) -> None:
        self._job, self._folder, self._place = job, folder, place
        self._task = yaml_document.fitted(Task, job.task, place.at("task"))
        at = place.at("inputs")
        self._data = {
            name: yaml_document.fitted(Data, in_full(one), at.at(name))
            for name, one in job.inputs.items()
            if isinstance(in_full(one), dict)
        }
        self._values = {name: one for name, one in job.inputs.items() if name not in self._data}
        for name, data in self._data.items():
            check_path(data.path, at.at(name).at("path"), required=True)

    def step(self) -> dict[str, Any]:
        """Return the document."""
        main = self._referred(
            self._job.input_data, "inputs", self._data, self._place.at("input_data")
        )
        output, file = self._output()
        given = [name for name in self._data if name != main]
        settings, arguments = self._arguments()
        return {
            "name": self._name(),
            "config": {**self._config(file), **settings},
            "inputs": [self._input(main)],
            "side_inputs": [self._side_input(name) for name in given],
            "arguments": arguments,
            "output": output,
            "allow_reuse": self._job.is_deterministic,
        }

    def _name(self) -> str:
        if not self._job.name:
            raise ConfigError(f"{self._place.at('name')} is missing: a name for the step")
        return re.sub(r"[^-a-z0-9]+", "-", self._job.name.lower()).strip("-")[:32].rstrip("-")

    def _config(self, file: str | None) -> dict[str, Any]:
        job, task = self._job, self._task
        if task.type not in ("run_function", "function"):
            raise self._place.at("task.type").refuse(task.type, "only run_function runs here")
        check_path(task.code, self._place.at("task.code"), required=True)
        if task.environment is not None:
            # Images and conda files are for a container; whether the nodes have the like, nobody can see.
            logger.warning(
                "%s is not used: the worker processes have the Python of the nodes; a step file of ours can "
                "name another one, config.environment",
                self._place.at("task.environment"),
            )
        retries = yaml_document.fitted(
            Retries, job.retry_settings, self._place.at("retry_settings")
        )
        resources = yaml_document.fitted(Resources, job.resources, self._place.at("resources"))
        tries = self._number(retries.max_retries)
        config = {
            "entry_script": task.entry_script,
            "source_directory": task.code,
            "description": job.description,
            "mini_batch_size": None if job.partition_keys else self._value(job.mini_batch_size),
            "partition_keys": job.partition_keys,
            "node_count": self._number(resources.instance_count),
            "process_count_per_node": self._number(job.max_concurrency_per_instance),
            "run_max_try": tries + 1 if isinstance(tries, int) else tries,
            "run_invocation_timeout": self._number(retries.timeout),
            "error_threshold": self._number(job.error_threshold),
            "allowed_failed_count": self._number(job.mini_batch_error_threshold),
            "logging_level": self._value(job.logging_level),
            "environment_variables": {
                name: str(self._value(one)) for name, one in job.environment_variables.items()
            },
            "output_action": "summary_only" if task.append_row_to is None else "append_row",
            "append_row_file_name": file,
        }
        return {name: value for name, value in config.items() if value not in (None, {})}

    def _input(self, name: str) -> dict[str, Any]:
        data = self._data[name]
        if data.type == "mltable" and data.mode in (None, "direct"):
            return {
                "name": name,
                **mltable.as_dataset(data, self._folder, self._place.at("inputs").at(name)),
            }
        return self._side_input(name)

    def _side_input(self, name: str) -> dict[str, Any]:
        data = self._data[name]
        way = "download" if data.mode == "download" else "mount"
        return {"name": name, "files": data.path, way: True}

    def _output(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the output, and the name of the file with the rows where one is given."""
        used = dict.fromkeys(
            name.removeprefix("outputs.")
            for name in _REFERENCE.findall(self._task.program_arguments)
            if name.startswith("outputs.")
        )
        rows = None
        if self._task.append_row_to is not None:
            at = self._place.at("task.append_row_to")
            rows = self._referred(self._task.append_row_to, "outputs", self._job.outputs, at)
            used[rows] = None
        names = list(used) or list(self._job.outputs)[:1]
        if len(names) > 1:
            raise self._place.at("outputs").refuse(names, "a step has one output here")
        if not names:
            return None, None
        (name,) = names
        at = self._place.at("outputs").at(name)
        data = yaml_document.fitted(Data, in_full(self._job.outputs.get(name) or {}), at)
        check_path(data.path, at.at("path"), required=False)
        if data.type != "uri_file" or data.path is None:
            return {"name": name, "destination": data.path}, None
        folder, slash, file = data.path.rpartition("/")
        return {"name": name, "destination": (folder or slash) or "."}, file

    def _arguments(self) -> tuple[dict[str, Any], list[Any]]:
        """Return what the arguments say of settings, and the others."""
        at = self._place.at("task.program_arguments")
        if "$[[" in self._task.program_arguments:
            raise at.refuse("$[[…]]", "optional arguments are not known here: write out what holds")
        text = _REFERENCE.sub(r"${{\1}}", self._task.program_arguments)
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise at.refuse(self._task.program_arguments, f"{error}") from None
        settings: dict[str, Any] = {}
        arguments: list[Any] = []
        while words:
            word = words.pop(0)
            name, equals, value = word.removeprefix("--").partition("=")
            if word.startswith("--") and name in _SETTINGS and (equals or words):
                given = self._text(value if equals else words.pop(0))
                settings[_SETTINGS[name]] = (
                    given if name == "mini_batch_size" else self._number(given)
                )
            else:
                arguments.append(self._text(word))
        return settings, arguments

    def _text(self, word: str) -> str:
        """Return an argument with the values of inputs that are no data."""

        def value(match: re.Match[str]) -> str:
            what, _, name = match[1].partition(".")
            return (
                str(self._values[name]) if what == "inputs" and name in self._values else match[0]
            )

        return _REFERENCE.sub(value, word)

    def _value(self, given: Any) -> Any:
        """Return what a setting says, which may be an input that is no data."""
        match = _REFERENCE.fullmatch(given.strip()) if isinstance(given, str) else None
        if match is None:
            return given
        name = match[1].removeprefix("inputs.")
        if name not in self._values:
            there = yaml_document.references("inputs", self._values)
            meant = yaml_document.suggestion(given, there)
            raise self._place.refuse(given, f"there is no such value: {meant}")
        return self._values[name]

    def _number(self, given: Any) -> Any:
        """Return the number that a setting says, else what it says, for the setting's own check."""
        given = self._value(given)
        if not isinstance(given, str):
            return given
        for kind in (int, float):
            try:
                return kind(given)
            except ValueError:
                continue
        return given

    def _referred(self, text: str, what: str, known: Mapping[str, Any], place: Place) -> str:
        """Return the name of the input or output that `${{inputs.x}}` refers to."""
        match = _REFERENCE.fullmatch(text.strip())
        name = match[1].removeprefix(f"{what}.") if match is not None else ""
        if name not in known:
            meant = yaml_document.suggestion(text, yaml_document.references(what, known))
            raise place.refuse(text, f"there is no such data: {meant}")
        return name
