"""The program `parallelrun`: its commands, and what its exit codes mean."""

from __future__ import annotations

import json
import signal
import sys
from enum import IntEnum
from typing import Any, NoReturn

from cyclopts import App

from prefect_parallelrun.errors import ConfigError, EntryScriptError, ParallelRunError


class Exit(IntEnum):
    """Exit codes; documented in docs/reference/command-line.md."""

    DONE = 0
    FAILED = 1
    """The run failed, or what was checked is not as it should be."""
    REFUSED = 2
    """What was given cannot be used: nothing was started."""
    FAILED_ITEMS = 3
    """The run completed, with failed items."""
    GOING_ON = 4
    """`status`: the run has not ended."""
    INTERRUPTED = 128 + signal.SIGINT


app = App(
    name="parallelrun",
    help="Run parallel-run steps, and look after their runs.",
    version_flags=["--version"],
    result_action="return_value",
)


def tell(data: Any) -> None:
    """Print for machines: one JSON document on standard output."""
    print(json.dumps(data, indent=2, default=str))


def main() -> NoReturn:
    """Run the command that the program was called with, and exit."""
    # Importing them puts their commands into `app`.
    from prefect_parallelrun.cli import looking, running  # noqa: F401

    try:
        code = app(sys.argv[1:])
    except ParallelRunError as error:
        print(error, file=sys.stderr)
        if error.logs_directory is not None:
            print(f"logs: {error.logs_directory}", file=sys.stderr)
        refused = isinstance(error, ConfigError) or (
            isinstance(error, EntryScriptError) and error.run_id is None
        )
        code = Exit.REFUSED if refused else Exit.FAILED
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    sys.exit(code)
