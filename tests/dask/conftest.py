"""Whole runs through the driver: a real Dask cluster, real supervisors, real worker processes."""

from __future__ import annotations

import logging
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver.run import run_step
from prefect_parallelrun.result import ParallelRunResult


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A folder of 100 text files, 00.txt to 99.txt, each with its number."""
    return write_numbers(tmp_path / "numbers", 100)


def write_numbers(folder: Path, count: int) -> Path:
    """Make a folder of text files, 00.txt and so on, each with its number."""
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:02d}.txt").write_text(str(n))
    return folder


Runner = Callable[..., ParallelRunResult]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Return a function that runs a script over inputs: `run(script, inputs, arguments=…, **config)`.

    With the `run_folder` of an earlier call it goes on with that run.
    """

    def call(
        script: str,
        inputs: list[Any] | Path,
        *,
        arguments: tuple[Any, ...] = (),
        side_inputs: tuple[Any, ...] = (),
        files: dict[str, str] | None = None,
        output: Path | None = None,
        run_folder: Path | None = None,
        watch: Callable[[], None] | None = None,
        **settings: Any,
    ) -> ParallelRunResult:
        source = tmp_path / f"source-{uuid.uuid4().hex[:6]}"
        source.mkdir()
        (source / "score.py").write_text(textwrap.dedent(script))
        for name, text in (files or {}).items():
            (source / name).write_text(textwrap.dedent(text))
        if isinstance(inputs, Path):
            inputs = [FileDataset.from_files(str(inputs)).as_named_input("numbers")]
        settings = {"process_count_per_node": 2, **settings}
        definition = StepDefinition(
            name="test-step",
            config=ParallelRunConfig("score.py", source_directory=str(source), **settings),
            inputs=tuple(inputs),
            side_inputs=side_inputs,
            arguments=arguments,
            output=OutputFileDatasetConfig(destination=str(output)) if output else None,
        )
        definition.validate()
        folder = run_folder or tmp_path / "runs" / uuid.uuid4().hex[:12]
        return run_step(
            definition,
            run_folder=folder,
            run_id=folder.name,
            log=logging.getLogger("test"),
            watch=watch,
        )

    return call


def lines(result: ParallelRunResult) -> list[str]:
    """Return the rows of an `append_row` output."""
    assert result.append_row_file is not None
    return Path(result.append_row_file).read_text().splitlines()
