"""The program `parallelrun`: its commands, and what its exit codes mean."""

from __future__ import annotations

import json
import os
import signal
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Group

from prefect_parallelrun.errors import ConfigError, ParallelRunError


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
    """Ctrl-C, or `quit` in the debugger; after SIGTERM it is 143, see `stopping.stops_on_sigterm`."""
    NOBODY_READS = 128 + signal.SIGPIPE
    """What reads our output has ended, as `head` does."""


RUN = Group("Run", sort_key=1)
LOOK = Group("Look", sort_key=2)
TIDY = Group("Tidy up", sort_key=3)

app = App(
    name="parallelrun",
    help="""Run parallel-run steps, and look after their runs.

    A step is described in a YAML file, ours or a parallel job of Azure's. A run is named by its folder,
    by its id, or by the name of its step, which means the newest run of that.

    To begin with:

        parallelrun validate step.yaml   # is everything there, and understood?
        parallelrun debug step.yaml      # one mini-batch, for a debugger
        parallelrun run step.yaml        # all of them
        parallelrun errors score-files   # what went wrong in a step's newest run
    """,
    help_epilogue="Exit codes: 0 done, 1 failed, 2 refused, 3 done with failed items, 4 still going on.",
    help_format="markdown",
    version_flags=["--version"],
    group_commands=Group("More", sort_key=4),
    result_action="return_value",
    print_error=True,
    exit_on_error=False,
)
app.register_install_completion_command(
    help="Let the shell complete names of commands and options."
)


def tell(data: Any) -> None:
    """Print for machines: one JSON document on standard output."""
    print(json.dumps(data, indent=2, default=str))


def main() -> NoReturn:
    """Run the command that the program was called with, and exit."""
    # Importing them puts their commands into `app`.
    from prefect_parallelrun.cli import looking, running  # noqa: F401

    _open_streams()
    try:
        code = app(sys.argv[1:]) or Exit.DONE  # None: help was printed
        sys.stdout.flush()
    except CycloptsError:  # it has been printed
        code = Exit.REFUSED
    except ParallelRunError as error:
        code = _explain(error)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        code = _nobody_reads()
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = _nobody_reads()  # that is how rich ends the program then
    except OSError as error:
        code = _unwritten(error)
    sys.exit(code)


def _open_streams() -> None:
    """Open what whoever called us has closed, as in `>&-`: else a file of the run would be standard output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _nobody_reads() -> Exit:
    # Else the interpreter tries to write the rest when it ends, and complains.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.NOBODY_READS


def _unwritten(error: OSError) -> Exit:
    """Say that standard output cannot be written, if it is that; raise the error if not."""
    try:
        print(flush=True)
    except OSError:
        print(f"standard output cannot be written: {error.strerror}", file=sys.stderr)
        _nobody_reads()
        return Exit.FAILED
    raise error


def _explain(error: ParallelRunError) -> Exit:
    """Say what went wrong, and where to look; return whether anything had been started."""
    print(error, file=sys.stderr)
    if error.logs_directory is not None:
        print(f"logs: {error.logs_directory}", file=sys.stderr)
    refused = isinstance(error, ConfigError) or error.run_id is None
    return Exit.REFUSED if refused else Exit.FAILED
