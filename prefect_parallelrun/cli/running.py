"""Commands that run something: run, debug, resume, retry-failed, replay, validate."""

from __future__ import annotations

import logging
import sys

from prefect_parallelrun.cli.app import Exit, app


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
    return Exit.DONE
