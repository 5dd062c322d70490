"""Whole runs through the driver: a real Dask cluster, real supervisors, real worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest

from prefect_parallelrun.result import ParallelRunResult


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """Two Dask workers with one thread each, under nannies, as `dask worker` starts them."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        yield cluster


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
"""What the fixture `run` gives."""


def lines(result: ParallelRunResult) -> list[str]:
    """Return the rows of an `append_row` output."""
    assert result.append_row_file is not None
    return Path(result.append_row_file).read_text().splitlines()
