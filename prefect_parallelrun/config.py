"""The settings of a step, checked when they are written down."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from prefect_parallelrun import checks, yaml_document
from prefect_parallelrun.compute_target import DaskComputeTarget
from prefect_parallelrun.environment import Environment
from prefect_parallelrun.errors import ConfigError, refuse
from prefect_parallelrun.pipeline_parameter import PipelineParameter, blamed

YAML_KEY = "parallel_run_config"
"""The one key at the top of a saved configuration, as Azure writes it."""


T = TypeVar("T")
if TYPE_CHECKING:
    # As a run sees it; before `resolved` it may still be a PipelineParameter.
    Changeable = Annotated[T, "or a PipelineParameter"]
else:
    Changeable = T | PipelineParameter

_CHECKS: dict[str, checks.Check] = {
    "entry_script": checks.location,
    "source_directory": checks.optional_location,
    "mini_batch_size": checks.mini_batch_size,
    "partition_keys": checks.names,
    "error_threshold": checks.whole_number(least=-1, optional=True, why=" (-1 tolerates all)"),
    "allowed_failed_count": checks.whole_number(least=-1, optional=True, why=" (-1 tolerates all)"),
    "allowed_failed_percent": checks.real_number(least=0, most=100, optional=True),
    "output_action": checks.choice("append_row", "summary_only"),
    "append_row_file_name": checks.file_name,
    "output_format": checks.choice("text", "csv", "jsonl", "parquet"),
    "output_order": checks.choice("input", "completion"),
    "compute_target": checks.compute_target,
    "node_count": checks.whole_number(least=1),
    "process_count_per_node": checks.whole_number(least=1, optional=True),
    "environment": Environment.of,
    "environment_variables": checks.environment_variables,
    "logging_level": checks.choice("WARNING", "INFO", "DEBUG"),
    "run_invocation_timeout": checks.real_number(above=0, unit=" of seconds"),
    "run_max_try": checks.whole_number(least=1),
    "isolate_failures": checks.flag,
    "speculative_copies": checks.flag,
    "gpus_per_process": checks.gpus_per_process,
    "source_limits": checks.source_limits,
    "description": checks.text,
}

_CHANGEABLE = (
    "mini_batch_size",
    "partition_keys",
    "node_count",
    "process_count_per_node",
    "logging_level",
    "run_invocation_timeout",
    "run_max_try",
)
"""What may be a PipelineParameter (R39)."""

NONE_IS_DEFAULT = (
    "append_row_file_name",
    "logging_level",
    "run_invocation_timeout",
    "run_max_try",
)
"""Where Azure's SDK takes None for "the default", and its users' code passes it."""


_FIELDS_SET = "__pydantic_fields_set__"
"""Where pydantic keeps which settings were given: a set, whose order is another in each process."""


class ParallelRunConfig(BaseModel):
    """How a step runs; frozen, and refused at construction where a value cannot work."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True
    )

    entry_script: str
    """Path of the script that defines `run(mini_batch)`; relative to `source_directory` if given."""
    source_directory: str | None = None
    """Folder that is shipped to every node; without it, the folder of the script."""
    mini_batch_size: Changeable[int | str | None] = None
    """Files per mini-batch (10 if not given), or for tables a size such as `1MB` (the default)."""
    partition_keys: Changeable[tuple[str, ...] | None] = None
    """Columns or path parts whose equal values form one mini-batch; instead of `mini_batch_size`."""
    error_threshold: int | None = None
    """Failed items over the whole input that are tolerated, -1 for all; without it every
    mini-batch is tried, and the run fails at the end if any item failed."""
    allowed_failed_count: int | None = None
    """Failed mini-batches that are tolerated, -1 for all."""
    allowed_failed_percent: int | float | None = None
    """Percentage of failed mini-batches that is tolerated; looked at once all are scheduled."""
    output_action: Literal["append_row", "summary_only"] = "append_row"
    """`append_row`: all that `run()` returns goes into one file; `summary_only`: the script
    stores its own output."""
    append_row_file_name: str = "parallel_run_step.txt"
    """Name of that one file, in the output folder."""
    output_format: Literal["text", "csv", "jsonl", "parquet"] = "text"
    """Format of that one file: lines of text as in Azure, or one that pandas reads as it is."""
    output_order: Literal["input", "completion"] = "input"
    """Order of its rows: that of the input, or that in which mini-batches were done."""
    compute_target: Any = None
    """Where it runs: nothing (an embedded Dask cluster), a scheduler's address, a cluster object, a
    `DaskComputeTarget`, a block of it or its name `dask-compute-target/<name>`, or `task-runner` (the
    cluster of the flow's DaskTaskRunner)."""
    node_count: Changeable[int] = 1
    """Number of nodes: Dask workers that host worker processes."""
    process_count_per_node: Changeable[int | None] = None
    """Worker processes on each node; without it as many as its Dask worker has threads, or one where it has
    GPUs."""
    environment: Environment | None = None
    """The Python environment of the worker processes; without it the one of the node. A path means an
    interpreter, or a virtual environment, that is there on the nodes."""
    environment_variables: dict[str, str] | None = None
    """Set in each worker process before it starts."""
    logging_level: Changeable[Literal["WARNING", "INFO", "DEBUG"]] = "INFO"
    """Level of the product's own logs, and of `EntryScript().logger`."""
    run_invocation_timeout: Changeable[int | float] = 60
    """Seconds that one call of `run()` may take."""
    run_max_try: Changeable[int] = 3
    """Attempts per mini-batch."""
    isolate_failures: bool = False
    """Whether a mini-batch that failed for good is halved until the failing items stand alone."""
    speculative_copies: bool = False
    """Whether the slowest mini-batches get a second copy at the end, on an idle process."""
    gpus_per_process: int | float | None = None
    """GPUs that each worker process sees, alone; of a fraction such as 0.25 four processes share one, and
    0 hides them. Without it each sees one, as long as there are some."""
    source_limits: tuple[int | str, int] = ("300MB", 2000)
    """Largest size and number of files of the source."""
    description: str | None = None
    """For people to read."""

    if TYPE_CHECKING:
        # For editors and type checkers: at run time errors must be ours, not pydantic's or Python's.
        def __init__(
            self,
            entry_script: str | Path,
            *,
            source_directory: str | Path | None = None,
            mini_batch_size: int | str | PipelineParameter | None = None,
            partition_keys: Sequence[str] | PipelineParameter | None = None,
            error_threshold: int | None = None,
            allowed_failed_count: int | None = None,
            allowed_failed_percent: int | float | None = None,
            output_action: str = "append_row",
            append_row_file_name: str | None = "parallel_run_step.txt",
            output_format: str = "text",
            output_order: str = "input",
            compute_target: Any = None,
            node_count: int | PipelineParameter = 1,
            process_count_per_node: int | PipelineParameter | None = None,
            environment: Environment | Mapping[str, Any] | str | Path | None = None,
            environment_variables: Mapping[str, str | int | float] | None = None,
            logging_level: str | PipelineParameter | None = "INFO",
            run_invocation_timeout: int | float | PipelineParameter | None = 60,
            run_max_try: int | PipelineParameter | None = 3,
            isolate_failures: bool = False,
            speculative_copies: bool = False,
            gpus_per_process: int | float | None = None,
            source_limits: Sequence[int | str] = ("300MB", 2000),
            description: str | None = None,
        ) -> None: ...
    else:

        def __init__(self, entry_script: str = ..., **settings: Any) -> None:
            """Check all settings; the first that cannot work raises ConfigError."""
            if entry_script is not ...:
                settings["entry_script"] = entry_script
            complaint = None
            try:
                super().__init__(**settings)
            except ValidationError as error:
                complaint = _as_config_error(error)
            if complaint is not None:
                # Not in the handler: each error would then hold the other, and neither be pickled.
                raise complaint.with_traceback(None)

    @field_validator("*", mode="before")
    @classmethod
    def _check_field(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if name in _CHANGEABLE and isinstance(value, Mapping) and "name" in value:
            value = PipelineParameter.of(value)  # the form that JSON leaves of one
        if not isinstance(value, PipelineParameter):
            return _checked(name, value)
        if name not in _CHANGEABLE:
            raise refuse(
                name, value, "only " + ", ".join(_CHANGEABLE) + " can be PipelineParameters"
            )
        _CHECKS[name](name, value.default_value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        # Of what a flow's parameter gives, the default: `resolved` checks the values.
        size, keys = (
            one.default_value if isinstance(one, PipelineParameter) else one
            for one in (self.mini_batch_size, self.partition_keys)
        )
        if keys is not None and size is not None:
            raise refuse(
                "mini_batch_size",
                size,
                f"partition_keys={keys!r} is given too, and each combination of its "
                "values is one mini-batch: give one of the two",
            )
        if self.output_action == "summary_only" and self.output_format != "text":
            raise refuse(
                "output_format",
                self.output_format,
                "output_action='summary_only' keeps no rows, so that they have no format: leave it "
                "out, or choose output_action='append_row'",
            )
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Return what a pickle holds, the same in every process: Prefect's INPUTS policy hashes it."""
        return {**super().__getstate__(), _FIELDS_SET: sorted(self.model_fields_set)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Take what a pickle holds."""
        super().__setstate__({**state, _FIELDS_SET: set(state[_FIELDS_SET])})

    def resolved(self, parameters: Mapping[str, Any]) -> ParallelRunConfig:
        """Return the config with each PipelineParameter replaced by its value, checked as if
        that had been written directly."""
        chosen = self.pipeline_parameters
        if not chosen:
            return self
        current = {name: getattr(self, name) for name in type(self).model_fields}
        for name, value in chosen:
            with blamed((name, value)):
                current[name] = _checked(name, value.value(parameters))
        with blamed(*chosen):
            return ParallelRunConfig(**current)

    @property
    def pipeline_parameters(self) -> list[tuple[str, PipelineParameter]]:
        """The settings that a flow's parameter gives."""
        settings = [(name, getattr(self, name)) for name in type(self).model_fields]
        return [(name, one) for name, one in settings if isinstance(one, PipelineParameter)]

    def located(self) -> ParallelRunConfig:
        """Return the config with absolute paths, so that a later change of folder changes nothing."""
        folder = self.source_folder
        return self.model_copy(
            update={"source_directory": str(folder), "entry_script": str(self.script_path)}
            if self.source_directory is not None
            else {"entry_script": str(self.script_path)}
        )

    @property
    def script_path(self) -> Path:
        """The entry script, absolute."""
        return absolute(self.entry_script, below=self.source_directory)

    @property
    def source_folder(self) -> Path:
        """The folder that is shipped, absolute."""
        if self.source_directory is None:
            return self.script_path.parent
        return absolute(self.source_directory)

    def save_to_yaml(self, path: str | Path) -> None:
        """Write every setting to a YAML file, from which `load_yaml` makes an equal config.

        Raises:
            ConfigError: the compute target is an object, which YAML cannot say, or has secrets.
        """
        if not isinstance(self.compute_target, str | DaskComputeTarget | None):
            raise refuse(
                "compute_target",
                self.compute_target,
                "a cluster object cannot be saved: give its scheduler_address instead",
            )
        saved: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, PipelineParameter):
                default = value.default_value
                default = list(default) if isinstance(default, tuple) else default
                value = {"pipeline_parameter": {"name": value.name, "default_value": default}}
            elif isinstance(value, Environment | DaskComputeTarget):
                value = value.as_saved()
            saved[name] = list(value) if isinstance(value, tuple) else value
        content = yaml.safe_dump({YAML_KEY: saved}, sort_keys=False)
        Path(path).write_text(content, encoding="utf-8")

    @classmethod
    def load_yaml(cls, path: str | Path) -> ParallelRunConfig:
        """Read a config that `save_to_yaml` wrote, or that was written by hand in that form.

        Raises:
            ConfigError: the file cannot be read, or a setting in it cannot work.
        """
        return cls.from_saved(saved_settings(path))

    @classmethod
    def from_saved(
        cls, settings: Mapping[str, Any], *, below: Path | None = None
    ) -> ParallelRunConfig:
        """Return the config of settings in the form in which `save_to_yaml` writes them.

        Args:
            settings: by their names.
            below: the folder where relative paths of `environment` begin; None: the working directory.

        Raises:
            ConfigError: a setting cannot work.
        """
        given = dict(settings)
        for name in _CHANGEABLE:
            value = given.get(name)
            if isinstance(value, dict) and set(value) == {"pipeline_parameter"}:
                given[name] = PipelineParameter.of(value["pipeline_parameter"])
        if "environment" in given:
            given["environment"] = Environment.of("environment", given["environment"], below=below)
        return cls(**given)


def saved_settings(path: str | Path) -> dict[str, Any]:
    """Return what a file says that `save_to_yaml` wrote, or that was written by hand in that form.

    Raises:
        ConfigError: the file cannot be read, or has no settings.
    """
    place = yaml_document.Place(f"path={str(path)!r}")
    settings = yaml_document.read(Path(path), place).get(YAML_KEY)
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise refuse("path", str(path), f"it must be a YAML file with settings below {YAML_KEY!r}")
    return settings


def _checked(name: str, value: Any) -> Any:
    """Return a setting in the form in which it is kept, or refuse it."""
    if value is None and name in NONE_IS_DEFAULT:
        return ParallelRunConfig.model_fields[name].default
    return _CHECKS[name](name, value)


def absolute(path: str, *, below: str | None = None) -> Path:
    """Return a path in full, with `~` and `..` worked out and links kept as they are named."""
    # Path.resolve would follow links: a linked script would then lie outside its source.
    folder = os.path.expanduser(below or "")  # noqa: PTH111
    return Path(os.path.abspath(os.path.join(folder, os.path.expanduser(path))))  # noqa: PTH100, PTH111, PTH118


def _as_config_error(error: ValidationError) -> ConfigError:
    """Return the first complaint as one of ours: parameter, value, and what would be right."""
    # Of a key that is misspelt, the right one is missing too.
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        return ConfigError(f"{name} is missing: give the path of the script that defines run()")
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, _CHECKS, n=1)
        advice = f"did you mean {close[0]}?" if close else "there are " + ", ".join(_CHECKS)
        return ConfigError(f"{name} is no parameter of ParallelRunConfig: {advice}")
    return refuse(name, first["input"], first["msg"])
