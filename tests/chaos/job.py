"""What one driver program is to run: written by the harness, read by `driver.py`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run; the same for each sitting of it."""

    name: str
    kind: str
    """`file` or `table`."""
    data: str
    """Folder of the input files."""
    config: dict[str, Any]
    """Settings of ParallelRunConfig."""
    arguments: list[str]
    run_folder: str | None
    """None: the step runs in a real Prefect flow, which chooses the run folder."""
    output: str
    result: str
    """JSON file in which the driver says how it ended."""
    stacks: str
    """File for the stacks of all threads, at SIGUSR1."""
    silent_s: float
    """Seconds after which a silent node is lost."""

    def write(self, path: Path) -> None:
        """Write it down for `driver.py`."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read it back."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How one sitting ended, in its driver's own words; nothing where it was killed."""

    error: str | None = None
    """Class of the error that `run_step`, or the flow, raised."""
    text: str = ""
    run_folder: str = ""
    output: str = ""
    """The output file."""
    items: dict[str, int] = field(default_factory=dict)
    mini_batches: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Report | None:
        """Return what the driver said, if it came to that."""
        return cls(**json.loads(path.read_text())) if path.exists() else None
