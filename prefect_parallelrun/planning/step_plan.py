"""The plan of a step: one way to it for runs, dry runs and debugging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.planning.plan import Plan, make_plan
from prefect_parallelrun.planning.regroup import Sizes


def plan_step(
    definition: StepDefinition,
    *,
    scratch: Path,
    listings: Sequence[Sequence[FileItem]] | None = None,
    cuts: Sequence[Sizes | None] | None = None,
) -> Plan:
    """Return how a step's inputs are cut.

    Args:
        definition: of the step.
        scratch: folder for DataFrames, made where there are any.
        listings: what `definition.list_inputs()` returned, where it has been called already.
        cuts: of a run that is there already, `run_record.kept_cuts`.

    Raises:
        DatasetError: an input cannot be read.
    """
    return make_plan(
        definition.inputs,
        definition.list_inputs() if listings is None else listings,
        mini_batch_size=definition.config.mini_batch_size,
        partition_keys=definition.config.partition_keys,
        scratch=scratch,
        rank_mini_batch_count=definition.options.rank_mini_batch_count,
        cuts=cuts,
    )
