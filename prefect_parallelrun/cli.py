"""The command line: parse, call, exit code; no logic."""

from __future__ import annotations

import logging
import signal
import sys
from typing import NoReturn

from cyclopts import App

from prefect_parallelrun.errors import ParallelRunError

app = App(
    name="parallelrun",
    help="Look after the runs of parallel-run steps.",
    version_flags=["--version"],
)


@app.command
def verify(run: str, /) -> int:
    """Check a run: every item accounted for, every row of the output in its place.

    Parameters
    ----------
    run
        The run folder, or the run's id.
    """
    from prefect_parallelrun import settings
    from prefect_parallelrun.report.verify import verify as check

    found = check(settings.run_paths(run))
    for finding in found.findings:
        print(finding)
    print(found.closing)
    return 1 if found.findings else 0


@app.command
def retry_failed(run: str, /) -> int:
    """Run again what failed in a run, with the script as it is now, into the same output.

    Parameters
    ----------
    run
        The run folder, or the run's id.
    """
    from prefect_parallelrun import settings, stopping
    from prefect_parallelrun.driver.retry_failed import retry_failed as retry
    from prefect_parallelrun.report.progress import TerminalBar

    paths = settings.run_paths(run)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with stopping.stops_on_sigterm(), TerminalBar(paths.root.parent.name) as bar:
        result = retry(paths, log=logging.getLogger("prefect_parallelrun"), on_progress=bar.show)
    print(f"{result.state}; output: {result.append_row_file or result.output}")
    print(f"logs: {result.logs_directory}")
    return 0


def main() -> NoReturn:
    """Run the command that the program was called with, and exit."""
    try:
        code = app(sys.argv[1:], result_action="return_value")
    except ParallelRunError as error:
        print(error, file=sys.stderr)
        if error.logs_directory is not None:
            print(f"logs: {error.logs_directory}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    sys.exit(code)
