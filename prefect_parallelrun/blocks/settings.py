"""The settings of a step as a block, which is edited on Prefect's pages."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, model_validator

from prefect_parallelrun.blocks.look import PROGRAM, STRICT, no_secrets
from prefect_parallelrun.config import NONE_IS_DEFAULT, ParallelRunConfig
from prefect_parallelrun.environment import Environment
from prefect_parallelrun.errors import ConfigError


def _setting(name: str, description: str = "") -> Any:
    """Return a field with default and description of that setting of ParallelRunConfig."""
    field = ParallelRunConfig.model_fields[name]
    description = description or " ".join((field.description or "").split())
    if field.is_required():
        return Field(description=description)
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return Field(default=default, description=description)


def _kept(name: str, value: Any) -> Any:
    """Return a path or an environment as text and a tuple as a list: Prefect keeps JSON."""
    if name == "environment" and isinstance(value, Environment | Mapping | Path):
        environment = Environment.of(name, value)
        assert environment is not None
        saved = environment.as_saved()
        return saved if isinstance(saved, str) else json.dumps(saved)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _environment(text: str | None) -> Any:
    """Return what the text says: a path, or in JSON the settings of an `Environment`."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        # Not the text: it may hold a password by mistake.
        raise ConfigError(f"environment is no JSON: {error}") from None


class ParallelRunConfigBlock(Block):
    """Settings of a parallel-run step, which people change on Prefect's Blocks page.

    They are those of ParallelRunConfig, checked as there. A PipelineParameter is none of them: it is
    given to `to_config`.

    Example:
        Load the settings, and make a step with them:
        ```python
        from prefect_parallelrun import FileDataset, ParallelRunStep
        from prefect_parallelrun.blocks import ParallelRunConfigBlock

        settings = ParallelRunConfigBlock.load("BLOCK_NAME")
        step = ParallelRunStep("score", settings, [FileDataset.from_files("data/*.png")])
        ```
    """

    _block_type_name = "Parallel Run Config"
    _logo_url = PROGRAM
    _documentation_url = HttpUrl(
        "https://learn.microsoft.com/en-us/python/api/azureml-pipeline-steps/"
        "azureml.pipeline.steps.parallelrunconfig"
    )
    _description = (
        "How a parallel-run step runs: entry script, mini-batches, nodes, limits, output."
    )
    # Strict, for what a form sends is typed; else True would be the number 1.
    model_config = ConfigDict(**STRICT, strict=True)

    entry_script: str = _setting("entry_script")
    source_directory: str | None = _setting("source_directory")
    mini_batch_size: int | str | None = _setting("mini_batch_size")
    partition_keys: list[str] | None = _setting("partition_keys")
    error_threshold: int | None = _setting("error_threshold")
    allowed_failed_count: int | None = _setting("allowed_failed_count")
    allowed_failed_percent: float | None = _setting("allowed_failed_percent")
    output_action: Literal["append_row", "summary_only"] = _setting("output_action")
    append_row_file_name: str = _setting("append_row_file_name")
    output_format: Literal["text", "csv", "jsonl", "parquet"] = _setting("output_format")
    output_order: Literal["input", "completion"] = _setting("output_order")
    compute_target: str | None = _setting(
        "compute_target",
        "Where it runs: nothing (an embedded Dask cluster), a scheduler's address, or the name of a "
        "Dask Compute Target block, `dask-compute-target/<name>`.",
    )
    node_count: int = _setting("node_count")
    process_count_per_node: int | None = _setting("process_count_per_node")
    # Never a mapping: the pages have no editor for one that may be None.
    environment: str | None = _setting(
        "environment",
        "The Python environment of the worker processes: nothing (that of the node), the path of an "
        'interpreter or a virtual environment on the nodes, or {"requirements": ["pandas==2.2.3"]} in JSON.',
    )
    environment_variables: SecretDict = Field(
        default_factory=no_secrets,
        description="Set in each worker process before it starts; masked on Prefect's pages.",
    )
    logging_level: Literal["WARNING", "INFO", "DEBUG"] = _setting("logging_level")
    run_invocation_timeout: float = _setting("run_invocation_timeout")
    run_max_try: int = _setting("run_max_try")
    isolate_failures: bool = _setting("isolate_failures")
    speculative_copies: bool = _setting("speculative_copies")
    gpus_per_process: float | None = _setting("gpus_per_process")
    source_limits: list[int | str] = _setting("source_limits")
    # Never None: the pages of Prefect 3.8 mistake the values of a block that is edited for a JSON schema,
    # in which this must be a text.
    description: str = Field(default="", description="For people to read.")

    @model_validator(mode="before")
    @classmethod
    def _take(cls, given: Any) -> Any:
        """Take what ParallelRunConfig takes, too, in the form in which Prefect keeps it."""
        if not isinstance(given, dict):
            return given
        left_out = (*NONE_IS_DEFAULT, "environment_variables", "description")
        return {
            name: _kept(name, value)
            for name, value in given.items()
            if value is not None or name not in left_out
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_config()
        return self

    def to_config(self, **changes: Any) -> ParallelRunConfig:
        """Return the settings as a step takes them.

        Args:
            changes: settings that take the place of the block's; PipelineParameters, for one.

        Raises:
            ConfigError: a setting cannot work.
        """
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ParallelRunConfig.model_fields
        }
        settings["environment_variables"] = self.environment_variables.get_secret_value() or None
        settings["environment"] = _environment(self.environment)
        settings["description"] = self.description or None
        return ParallelRunConfig(**{**settings, **changes})
