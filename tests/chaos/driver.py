"""A program that runs one step as a user's program does, and that may be killed at any moment.

`python -m tests.chaos.driver JOB.json`; run again, it goes on with the same run.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import (
    Dataset,
    FileDataset,
    OutputFileDatasetConfig,
    TabularDataset,
)
from prefect_parallelrun.driver import tending
from prefect_parallelrun.errors import ParallelRunError
from tests.chaos.job import Job, Report

if TYPE_CHECKING:
    from prefect_parallelrun.result import ParallelRunResult

FAILED = 3
"""Exit code after an error of the product's own, which is in the report."""


def main() -> int:
    """Run the job; leave a report."""
    job = Job.read(Path(sys.argv[1]))
    with open(job.stacks, "a") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        assert tending.SILENT_S, "the constant has moved"
        tending.SILENT_S = job.silent_s
        try:
            result = in_flow(job) if job.run_folder is None else by_driver(job)
        except ParallelRunError as error:
            leave(job, Report(error=type(error).__name__, text=str(error)))
            return FAILED
        leave(
            job,
            Report(
                run_folder=result.run_directory,
                output=result.append_row_file or "",
                items=asdict(result.items),
                mini_batches=asdict(result.mini_batches),
            ),
        )
    return 0


def by_driver(job: Job) -> ParallelRunResult:
    """Run the step without Prefect."""
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver.run import run_step

    assert job.run_folder is not None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    definition = StepDefinition(
        name=job.name,
        config=ParallelRunConfig(**job.config),
        inputs=(dataset(job),),
        arguments=tuple(job.arguments),
        output=OutputFileDatasetConfig(destination=job.output),
    )
    definition.validate()
    folder = Path(job.run_folder)
    return run_step(
        definition, run_folder=folder, run_id=folder.name, log=logging.getLogger("chaos")
    )


def in_flow(job: Job) -> ParallelRunResult:
    """Run the step as a user does."""
    from prefect import flow

    from prefect_parallelrun import ParallelRunStep

    @flow
    def chaos() -> ParallelRunResult:
        step = ParallelRunStep(
            job.name,
            ParallelRunConfig(**job.config),
            [dataset(job)],
            arguments=job.arguments,
            output=job.output,
        )
        return step()

    return chaos()


def dataset(job: Job) -> Dataset:
    """Return the input."""
    if job.kind == "file":
        return FileDataset.from_files(job.data)
    return TabularDataset.from_delimited_files(job.data)


def leave(job: Job, report: Report) -> None:
    """Write the report down in one step."""
    temporary = Path(f"{job.result}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(report)))
    temporary.replace(job.result)


if __name__ == "__main__":
    sys.exit(main())
