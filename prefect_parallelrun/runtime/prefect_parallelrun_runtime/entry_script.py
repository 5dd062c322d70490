"""`EntryScript`: what the product gives to an entry script (rules R56, R67, R68, R72, R73)."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Settings

LOG_FORMAT = "%(asctime)s|%(levelname)s|%(process)d|%(name)s|%(message)s"
"""Of every line of Python logging that a worker process writes; the time is UTC."""


class UtcFormatter(logging.Formatter):
    """Log lines as `2026-01-31 12:00:00,123|INFO|4711|name|message`, in UTC."""

    converter = staticmethod(time.gmtime)


class EntryScript:
    """The entry script's own logger and folders; every call returns the same object.

    Where the script runs outside a worker process (by hand, in a debugger), the logger writes to
    stderr, and the folders are `logs` and `output` in the working directory.
    """

    _instance: EntryScript | None = None
    _log_file: str | None
    _log_dir: str
    _output_dir: str
    _agent_name: str
    _level: str
    _logger: logging.Logger | None

    def __new__(cls) -> EntryScript:
        """Return the one object."""
        if cls._instance is None:
            cls._instance = instance = super().__new__(cls)
            instance._log_file = None
            instance._log_dir = os.path.abspath("logs")
            instance._output_dir = os.environ.get("AZUREML_BI_OUTPUT_PATH") or os.path.abspath(
                "output"
            )
            instance._agent_name = "process000"
            instance._level = "INFO"
            instance._logger = None
        return cls._instance

    @property
    def logger(self) -> logging.Logger:
        """A logger that writes to the process's own file in `log_dir`, from the step's `logging_level` up."""
        if self._logger is None:
            handler: logging.Handler
            if self._log_file is None:
                handler = logging.StreamHandler()
            else:
                try:
                    os.makedirs(os.path.dirname(self._log_file), exist_ok=True)
                    handler = logging.FileHandler(self._log_file, encoding="utf-8")
                except OSError:  # a log that cannot be written must fail no mini-batch
                    handler = logging.StreamHandler()
            handler.setFormatter(UtcFormatter(LOG_FORMAT))
            logger = logging.getLogger("EntryScript")
            logger.addHandler(handler)
            logger.setLevel(self._level)
            logger.propagate = False  # else each warning would be in the stdout file, too
            self._logger = logger
        return self._logger

    @property
    def log_dir(self) -> str:
        """A folder in the run's log tree for files of the script; it exists."""
        os.makedirs(self._log_dir, exist_ok=True)
        return self._log_dir

    @property
    def output_dir(self) -> str:
        """The step's output folder; it exists."""
        os.makedirs(self._output_dir, exist_ok=True)
        return self._output_dir

    @property
    def agent_name(self) -> str:
        """The name of the worker process, such as `process003`."""
        return self._agent_name


def configure(settings: Settings) -> None:
    """Make the one `EntryScript` that of a worker process."""
    script = EntryScript()
    script._log_file = settings["files"]["entry_script_log"].replace(
        "{process}", settings["process"]
    )
    script._log_dir = os.path.dirname(script._log_file)
    script._output_dir = settings["output_folder"]
    script._agent_name = settings["process"]
    script._level = settings["logging_level"]


def configure_here(*, log_dir: str, output_dir: str, level: str) -> None:
    """Make the one `EntryScript` that of a script in a process of the user's own; its logger writes to stderr."""
    script = EntryScript()
    if script._logger is not None:
        script._logger.handlers.clear()  # of an earlier script, and perhaps of another stderr
    script._logger = script._log_file = None
    script._log_dir, script._output_dir = log_dir, output_dir
    script._agent_name, script._level = "process000", level
