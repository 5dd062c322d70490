"""One Prefect server for all tests that need one; the others never import Prefect."""

from __future__ import annotations

import os

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
