"""`from azureml_user.parallel_run import EntryScript`, as Azure's scripts have it."""

from __future__ import annotations

from prefect_parallelrun_runtime.entry_script import EntryScript

__all__ = ["EntryScript"]
