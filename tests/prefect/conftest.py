from __future__ import annotations

from pathlib import Path

import pytest

from prefect_parallelrun import FileDataset, ParallelRunConfig, ParallelRunStep

SCRIPT = """
import sys
from pathlib import Path

def run(mini_batch):
    word = sys.argv[2] if len(sys.argv) > 2 else "row"
    return [f"{word} {path.name} {text(path)}" for path in map(Path, mini_batch)]

def text(path):
    return path.read_text().strip().replace("\\n", "|")
"""


@pytest.fixture(autouse=True)
def _prefect(prefect_server, tmp_path, monkeypatch):
    """Every test here runs against the session's server, with run folders of its own."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_PARALLELRUN_RUN_ROOT", str(tmp_path / "runs"))


class Files:
    """A script and three input files, from which steps are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "scripts" / "score.py"
        self.script.parent.mkdir()
        self.script.write_text(SCRIPT)
        self.data = folder / "data"
        self.data.mkdir()
        for name in "abc":
            (self.data / f"{name}.txt").write_text(name.upper())

    def step(self, name="score-files", inputs=None, config=None, **settings):
        settings = {"arguments": ["--word", "row"], **settings}
        return ParallelRunStep(
            name,
            ParallelRunConfig(
                str(self.script),
                **{"mini_batch_size": 2, "process_count_per_node": 1, **(config or {})},
            ),
            [FileDataset.from_files(str(self.data))] if inputs is None else inputs,
            **settings,
        )

    def rows(self, word="row"):
        """What a step over these files gives, in input order."""
        return [f"{word} {p.name} {p.read_text()}" for p in sorted(self.data.iterdir())]

    def runs(self, name="score-files"):
        """The run folders of a step, oldest first."""
        folder = self.folder / "runs" / name
        return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def files(tmp_path):
    """A script and three input files."""
    return Files(tmp_path)


def rows_of(result):
    """The lines of a step's output."""
    return Path(result.append_row_file).read_text().splitlines()


@pytest.fixture
def read_rows():
    """The function that reads a step's output."""
    return rows_of
