"""Hosts of network namespaces for whole runs: the driver on one, nodes on others, and no disk between them."""

from __future__ import annotations

import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_parallelrun import FileDataset, ParallelRunConfig
from prefect_parallelrun.datasets import OutputFileDatasetConfig
from prefect_parallelrun.definition import StepDefinition
from tests.hosts import network

WAITING = """
import os, time

def wait():
    deadline = time.monotonic() + 60
    while not os.path.exists('{path}'):
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""
"""A module beside each script: its `wait` ends when the test says `go` to the host."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[network.Hosts]:
    """A driver's host and two with a Dask worker each, for all tests of a module: making them takes seconds."""
    with network.made(tmp_path_factory.mktemp("hosts"), 2, tcp=f"{network.TCP_S:g}s") as made:
        made.begin()
        yield made


def step(hosts: network.Hosts, script: str, inputs: Any, **given: Any) -> StepDefinition:
    """Make a step over files that only the driver's host has: `step(hosts, script, inputs, …)`.

    `inputs` is a folder or a dataset; `from waiting import wait` is there for the script. What is given is for the step (`arguments`, `side_inputs`,
    `output`) or its config.
    """
    name = f"step-{uuid.uuid4().hex[:6]}"
    source = hosts.files / name
    source.mkdir()
    (source / "score.py").write_text(textwrap.dedent(script))
    (source / "waiting.py").write_text(WAITING.format(path=hosts.nodes[0].disk / network.GO))
    if isinstance(inputs, Path):
        inputs = FileDataset.from_files(str(inputs)).as_named_input("numbers")
    of_step = {key: given.pop(key) for key in ("arguments", "side_inputs") if key in given}
    output = given.pop(
        "output", OutputFileDatasetConfig(destination=str(hosts.files / f"{name}-output"))
    )
    settings = {
        "compute_target": hosts.scheduler,
        "node_count": len(hosts.nodes),
        "process_count_per_node": 2,
        "mini_batch_size": 2,
        **given,
    }
    return StepDefinition(
        name=name,
        config=ParallelRunConfig("score.py", source_directory=str(source), **settings),
        inputs=(inputs,),
        output=output,
        **of_step,
    )


def filled_by(folder: Path, **given: Any) -> dict[str, Any]:
    """Return what makes a step of which the script itself fills an output folder, given as `--out`."""
    output = OutputFileDatasetConfig(destination=str(folder))
    return {
        "arguments": ("--out", output),
        "output": output,
        "output_action": "summary_only",
        **given,
    }


def numbers(folder: Path, count: int) -> Path:
    """Make a folder of text files, 000.txt and so on, each with its number."""
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:03d}.txt").write_text(str(n))
    return folder
