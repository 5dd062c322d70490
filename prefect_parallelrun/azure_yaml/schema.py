"""The keys of a parallel job in Azure's YAML, and what their values are to be."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.yaml_document import Part, Place


class Retries(Part):
    """`retry_settings`."""

    max_retries: int | str | None = None
    """a whole number: attempts after the first"""
    timeout: int | str | None = None
    """a number of seconds for one run()"""


class Resources(Part):
    """`resources`."""

    instance_count: int | str = 1
    """a whole number of nodes"""
    instance_type: Any = None
    """anything: it means nothing here"""
    docker_args: Any = None
    """anything: it means nothing here"""
    shm_size: Any = None
    """anything: it means nothing here"""
    properties: Any = None
    """anything: it means nothing here"""
    locations: Any = None
    """anything: it means nothing here"""
    max_instance_count: Any = None
    """anything: it means nothing here"""


class Task(Part):
    """`task`."""

    type: str = "run_function"
    """run_function"""
    entry_script: str
    """the path of the script, below code"""
    code: str = "."
    """a folder on this machine"""
    program_arguments: str = ""
    """a text, such as --model ${{inputs.score_model}}"""
    append_row_to: str | None = None
    """an output, such as ${{outputs.job_output_file}}"""
    environment: Any = None
    """anything: it is not used, and a warning says so"""


class Job(Part):
    """A mapping with `type: parallel`."""

    schema_: Any = Field(default=None, alias="$schema")
    """anything: it means nothing here"""
    type: str
    """parallel"""
    name: str | None = None
    """a name for the step"""
    version: Any = None
    """anything: it means nothing here"""
    display_name: Any = None
    """anything: it means nothing here"""
    description: str | None = None
    """a text"""
    tags: Any = None
    """anything: it means nothing here"""
    properties: Any = None
    """anything: it means nothing here"""
    experiment_name: Any = None
    """anything: it means nothing here"""
    compute: Any = None
    """anything: it means nothing here"""
    identity: Any = None
    """anything: it means nothing here"""
    is_deterministic: bool = True
    """true or false"""
    inputs: dict[str, Any] = Field(default_factory=dict)
    """a mapping of names to inputs"""
    outputs: dict[str, Any] = Field(default_factory=dict)
    """a mapping of names to outputs"""
    input_data: str
    """the input to be cut into mini-batches, such as ${{inputs.data}}"""
    mini_batch_size: int | str | None = None
    """a number of files, or for tables a size such as 10kb"""
    partition_keys: list[str] | None = None
    """a list of names"""
    resources: dict[str, Any] = Field(default_factory=dict)
    """a mapping, such as `instance_count: 2`"""
    max_concurrency_per_instance: int | str | None = None
    """a whole number of worker processes"""
    retry_settings: dict[str, Any] = Field(default_factory=dict)
    """a mapping of max_retries and timeout"""
    error_threshold: int | str = -1
    """a whole number of items, -1 or more"""
    mini_batch_error_threshold: int | str | None = None
    """a whole number of mini-batches, -1 or more"""
    logging_level: str = "INFO"
    """WARNING, INFO or DEBUG"""
    environment_variables: dict[str, Any] = Field(default_factory=dict)
    """a mapping of names to texts"""
    task: dict[str, Any]
    """a mapping of code, entry_script, program_arguments, append_row_to"""


class Data(Part):
    """An input or output that is data."""

    path: str | None = None
    """a path on this machine, or a URL"""
    type: str = "uri_folder"
    """uri_folder, uri_file or mltable"""
    mode: str | None = None
    """ro_mount, rw_mount, eval_mount, download, upload, direct or eval_download"""
    name: Any = None
    """anything: it means nothing here"""
    description: Any = None
    """anything: it means nothing here"""


def in_full(given: Any) -> Any:
    """Return an input or output with its keys: a path by itself is one, too."""
    text = isinstance(given, str) and (
        given.startswith(("./", "../", "/", "azureml:")) or "://" in given
    )
    return {"path": given} if text else given


def check_path(path: str | None, place: Place, *, required: bool) -> None:
    """Refuse a place that only Azure's workspaces have."""
    if path is None and required:
        raise ConfigError(f"{place} is missing: a path on this machine, or a URL")
    if path is not None and ("${{" in path or path.startswith("azureml:")):
        raise place.refuse(
            path,
            "assets, datastores and other jobs of a workspace cannot be reached from here: give a path on this "
            "machine, or a URL such as abfs://container/folder",
        )
