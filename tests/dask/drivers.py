"""Runs whose driver is a process of its own, as that of another flow is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap

PROGRAM = """
import json, logging, sys
from pathlib import Path
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step

folder, numbers, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
definition = StepDefinition(
    name="other-step",
    config=ParallelRunConfig("score.py", source_directory=str(folder / "source"), **settings),
    inputs=(FileDataset.from_files(numbers),),
)
result = run_step(
    definition, run_folder=folder / "run", run_id="other", log=logging.getLogger()
)
print(Path(result.append_row_file).read_text(), end="")
"""


@contextlib.contextmanager
def driver(folder, script, numbers, **settings):
    """Another process runs a script over the files in `numbers`; yields it, whose output is the rows.

    It is killed at the end of the block if it is still there.
    """
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "score.py").write_text(textwrap.dedent(script))
    command = [sys.executable, "-c", PROGRAM, folder, numbers, json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
