"""A Prefect server of the harness's own: a temporary one would die with the driver, or outlive it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 120.0


class PrefectServer:
    """Started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, run_root: Path) -> dict[str, str]:
        """Return what a driver needs in its environment; start the server if that is to be done."""
        url = self._start() if self._process is None else self._url
        return {
            **self._own(),
            "PREFECT_API_URL": url,
            "PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT": str(run_root),
        }

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # -- inside ------------------------------------------------------------------------------

    def _own(self) -> dict[str, str]:
        return {
            "PREFECT_HOME": str(self._folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "DO_NOT_TRACK": "1",
        }

    def _start(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}/api"
        log = (self._folder / "prefect.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *f"server start --no-ui --port {port}".split()],
                env={**os.environ, **self._own()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=2):
                    return self._url
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise TimeoutError(f"no Prefect server; its log: {log.name}") from None
                time.sleep(0.1)
