"""Commands that look: plan, status, errors, report, verify, explain; and clean."""

from __future__ import annotations

from prefect_parallelrun.cli.app import Exit, app


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
    return Exit.FAILED if found.findings else Exit.DONE
