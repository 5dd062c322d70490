"""The command line: parse, call, exit code; no logic."""

from prefect_parallelrun.cli.app import app, main

__all__ = ["app", "main"]
