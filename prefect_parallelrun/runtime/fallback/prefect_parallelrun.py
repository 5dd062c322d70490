"""Stands in for the package in interpreters that do not have it, so that scripts find `EntryScript`."""

from __future__ import annotations

from prefect_parallelrun_runtime.entry_script import EntryScript

__all__ = ["EntryScript"]
