"""The parameters of the flow run that calls a step, in place of its PipelineParameters (R39)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from prefect_parallelrun import step_datasets
from prefect_parallelrun.datasets import Dataset, FileDataset, TabularDataset
from prefect_parallelrun.errors import refuse
from prefect_parallelrun.pipeline_parameter import PipelineParameter, blamed
from prefect_parallelrun.result import ParallelRunResult
from prefect_parallelrun.yaml_document import Place


def of_this_flow_run() -> Mapping[str, Any]:
    """Return the parameters of the flow run that this is in, as Prefect validated them; in a subflow, its own.

    Outside of flows there are none.
    """
    flow_run = FlowRunContext.get()
    return flow_run.parameters or {} if flow_run is not None else {}


def chosen(where: str, value: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the value of a pipeline parameter; everything else as it is.

    Where the default is a dataset of files, the flow's parameter may be what a person can type: other paths,
    or a dataset as a step file writes it.

    Args:
        where: the parameter of the step that it stands in.
        value: what stands there.
        parameters: of the flow run.

    Raises:
        ConfigError: the flow's parameter cannot be used, or the default is no dataset where one must be.
    """
    if not isinstance(value, PipelineParameter):
        return value
    given, default = value.value(parameters), value.default_value
    if where != "arguments" and not isinstance(default, Dataset | ParallelRunResult):
        raise refuse(
            where, value, f"PipelineParameter {value.name!r} needs a dataset as default_value"
        )
    if not isinstance(default, FileDataset | TabularDataset):
        return given
    if isinstance(given, Dataset | ParallelRunResult):
        return given
    if not isinstance(given, Mapping):
        with blamed((where, value)):
            return default.at(given)
    place = Place(f"the flow's parameter {value.name!r}, for {where}")
    return step_datasets.made(dict(given), Path.cwd(), place).in_place_of(default)
