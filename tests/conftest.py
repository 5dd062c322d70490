"""What tests of several folders share: whole runs, and one Prefect server for those that need one."""

from __future__ import annotations

import logging
import os
import textwrap
import uuid
from pathlib import Path

import pytest

# Before anything imports Prefect: tests report to nobody.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")


def pytest_configure(config):
    # In an async flow Prefect 3.8 leaves the connection of each sync task's client to the garbage
    # collector. TCP only (family=2): a pair of sockets that we lose is still an error.
    config.addinivalue_line(
        "filterwarnings", r"ignore:unclosed <socket\.socket fd=\d+, family=2:ResourceWarning"
    )


def pytest_collection_modifyitems(items):
    # What the product keeps to on a machine of its own, a machine that is shared may pass now and then. A
    # product that is too slow is so each time; whatever else fails in such a test fails at once.
    again = pytest.mark.flaky(reruns=2, only_rerun=["^AssertionError: took longer"])
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(again)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A Prefect server of this session, with a home of its own."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_HOME,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect-home")
    # The heartbeat's thread costs each sync flow run a second at its end.
    with (
        temporary_settings({PREFECT_HOME: home, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield home


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a script over inputs: `run(script, inputs, arguments=…, **config)`.

    The driver runs in this process, with an embedded Dask cluster. `output` is a path or an
    `OutputFileDatasetConfig`. With the `run_folder` of an earlier call it goes on with that run.
    """
    # Here, for tests that run nothing need neither Dask nor Prefect.
    from prefect_parallelrun.config import ParallelRunConfig
    from prefect_parallelrun.datasets import FileDataset, OutputFileDatasetConfig
    from prefect_parallelrun.definition import StepDefinition
    from prefect_parallelrun.driver.run import run_step

    def call(
        script,
        inputs,
        *,
        arguments=(),
        side_inputs=(),
        files=None,
        output=None,
        run_folder=None,
        watch=None,
        observers=(),
        bases=(),
        **settings,
    ):
        source = tmp_path / f"source-{uuid.uuid4().hex[:6]}"
        source.mkdir()
        (source / "score.py").write_text(textwrap.dedent(script))
        for name, text in (files or {}).items():
            (source / name).write_text(textwrap.dedent(text))
        if isinstance(inputs, Path):
            inputs = [FileDataset.from_files(str(inputs)).as_named_input("numbers")]
        if isinstance(output, Path):
            output = OutputFileDatasetConfig(destination=str(output))
        settings = {"process_count_per_node": 2, **settings}
        definition = StepDefinition(
            name="test-step",
            config=ParallelRunConfig("score.py", source_directory=str(source), **settings),
            inputs=tuple(inputs),
            side_inputs=side_inputs,
            arguments=arguments,
            output=output,
        )
        definition.validate()
        folder = run_folder or tmp_path / "runs" / uuid.uuid4().hex[:12]
        return run_step(
            definition,
            run_folder=folder,
            run_id=folder.name,
            log=logging.getLogger("test"),
            watch=watch,
            observers=observers,
            bases=bases,
        )

    return call
