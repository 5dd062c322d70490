"""What every node and worker process of a run is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect_parallelrun import append_row
from prefect_parallelrun.checks import unfit
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import policy
from prefect_parallelrun.paths import RUNTIME_FOLDER
from prefect_parallelrun.planning import Plan
from prefect_parallelrun_runtime import messages

SHUTDOWN_TIMEOUT_S = 30.0
KILL_GRACE_S = 0.5
"""Between SIGTERM, which a script may use to clean up, and SIGKILL."""
NICENESS = 5
"""Of worker processes: where scripts take all cores, the Dask worker and the supervisor still answer."""
NICENESS_VARIABLE = "PARALLELRUN_NICENESS"
"""The environment variable of a step that changes it."""
MOST_NICENESS = 19
"""The kernel knows no more."""


def worker_settings(
    definition: StepDefinition, plan: Plan, *, run_id: str, entry_script: str, destination: Path
) -> messages.Settings:
    """Return the settings of a run; what is empty or 0 in them is a node's own to fill in.

    Args:
        definition: of the step.
        plan: of the run.
        run_id: of the run.
        entry_script: path of the script in the source snapshot.
        destination: the output folder.

    Raises:
        ConfigError: an environment variable that is meant for us cannot be read.
    """
    config, environment = definition.config, definition.config.environment
    return messages.Settings(
        protocol=messages.PROTOCOL,
        run_id=run_id,
        step=definition.name,
        node="",
        process_count=config.process_count_per_node or 0,
        gpus=[],
        gpu_count=0,
        gpus_per_process=config.gpus_per_process,
        niceness=_niceness(config.environment_variables or {}),
        python=(environment and environment.python) or "",
        requirements=list((environment and environment.requirements) or ()),
        environment_name=(environment and environment.name) or "",
        environment=dict(config.environment_variables or {}),
        runtime_folder=str(RUNTIME_FOLDER),
        source_folder="",
        source_directory=str(config.source_folder),
        entry_script=entry_script,
        arguments=definition.node_arguments(),
        work_folder="",
        private_folder="",
        output_folder=str(destination),
        files=messages.Files(
            stdout="",
            stderr="",
            error="",
            entry_script_log="",
            process_log="",
            profile="",
            system_error="",
        ),
        logging_level=config.logging_level,
        profiling_module=definition.options.profiling_module or "",
        monitor_interval_s=definition.options.resource_monitor_interval,
        run_timeout_s=config.run_invocation_timeout,
        load_timeout_s=definition.options.task_overhead_timeout,
        init_timeout_s=policy.INIT_TIMEOUTS * config.run_invocation_timeout + policy.INIT_GRACE_S,
        shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        bundle_limit_s=policy.BUNDLE_LIMIT_S,
        kill_grace_s=KILL_GRACE_S,
        init_failures_allowed=0,
        output_action=config.output_action,
        append_row=_append_row(definition),
        output_format=config.output_format,
        inputs=plan.readers,
        process="",
        address="",
    )


def _niceness(environment: Mapping[str, str]) -> int:
    given = environment.get(NICENESS_VARIABLE)
    if given is None:
        return NICENESS
    if given.isdecimal() and int(given) <= MOST_NICENESS:
        return int(given)
    where = f"environment_variables[{NICENESS_VARIABLE!r}]"
    raise unfit(where, given, f"a whole number from 0 to {MOST_NICENESS}")


def _append_row(definition: StepDefinition) -> messages.AppendRow:
    keywords = append_row.to_csv_keywords(definition.config.script_path.parent)
    # A header above every mini-batch is never meant: once, at the top, it is.
    wanted = keywords.pop("header", definition.options.append_row_dataframe_header)
    if isinstance(wanted, list):
        keywords["header"] = wanted  # these names, instead of the columns' own
    return messages.AppendRow(header=bool(wanted), to_csv=keywords)
