"""A Prefect server as people start it, with its pages, and what tests do with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployments import Project

START_S = 120.0


def pytest_collection_modifyitems(items):
    # Whichever test comes first waits for the server: on a busy machine that alone is a minute.
    for item in items:
        if (
            Path(__file__).parent in item.path.parents
            and item.get_closest_marker("timeout") is None
        ):
            item.add_marker(pytest.mark.timeout(180))


@dataclass(frozen=True)
class Server:
    """A running `prefect server start` on loopback, with SQLite."""

    pages: str
    """URL of its pages."""
    home: Path
    """Prefect's home, of the server and of all that talk to it."""

    @property
    def api(self) -> str:
        return f"{self.pages}/api"

    def environment(self, run_root: Path) -> dict[str, str]:
        """Return the environment of a program that talks to it."""
        return {
            **os.environ,
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            "PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT": str(run_root),
        }


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The server of this session; flows of this process do not use it, unless `here` is asked for."""
    home = tmp_path_factory.mktemp("server-home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Server(f"http://127.0.0.1:{port}", home)
    environment = {
        **found.environment(home / "runs"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Else what happened shows only after five seconds, and every test waits for that.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.5",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "0.5",
    }
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *f"server start --port {port}".split()],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(found, process)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def served(server, tmp_path_factory):
    """Flows that `flow.serve()` serves."""
    found = Project(tmp_path_factory.mktemp("served"), server)
    try:
        found.serve("served")
        yield found
    finally:
        found.end()


@pytest.fixture
def here(server, tmp_path):
    """Let flows of this process use the server, with run folders of the test's own."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_HOME,
        temporary_settings,
    )

    def speak_anew() -> None:
        # Each is one thread of the process and stays with the API that it met first: without this, what
        # happens here would be told to the server of the tests before.
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(at_exit=False)

    speak_anew()
    with (
        pytest.MonkeyPatch.context() as patch,
        # The heartbeat's thread costs each sync flow run a second at its end.
        temporary_settings(
            {
                PREFECT_API_URL: server.api,
                PREFECT_HOME: server.home,
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            }
        ),
    ):
        patch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))
        yield server
    speak_anew()


def _wait_for(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{server.api}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline or process.poll() is not None:
                raise TimeoutError((server.home / "server.log").read_text()) from None
            time.sleep(0.1)
