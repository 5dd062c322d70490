"""Every file name of a run folder, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUNTIME_FOLDER = Path(__file__).parent / "runtime"
"""The folder on the PYTHONPATH of worker processes."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of one run, below its run folder. Nothing is created by asking."""

    root: Path

    @property
    def record(self) -> Path:
        """JSON: what the run is, and its state; see `run_record`."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """JSON: which driver owns the run folder; its modification time is the driver's heartbeat."""
        return self.root / "lock"

    @property
    def definition(self) -> Path:
        """Pickle: the step's definition, to run it again without the flow."""
        return self.root / "definition.pickle"

    @property
    def journal(self) -> Path:
        """SQLite: every attempt, and where its rows are in the partial file."""
        return self.root / "journal.sqlite"

    @property
    def partial(self) -> Path:
        """Rows of succeeded mini-batches, in order of completion."""
        return self.root / "output.partial"

    @property
    def source(self) -> Path:
        """Zip of the source snapshot."""
        return self.root / "source.zip"

    @property
    def inputs(self) -> Path:
        """Folder for DataFrames given as inputs, written as Parquet."""
        return self.root / "inputs"

    @property
    def output(self) -> Path:
        """The step's output folder where the user named none."""
        return self.root / "output"

    @property
    def token(self) -> Path:
        """A file by which a node sees that it shares this folder with the driver."""
        return self.root / "token"

    @property
    def failed_items(self) -> Path:
        """One JSON record per failed item."""
        return self.root / "failed_items.jsonl"

    @property
    def manifest(self) -> Path:
        """JSON: how the output looked at the end of the run."""
        return self.root / "output_manifest.json"

    @property
    def logs(self) -> Path:
        """The log tree."""
        return self.root / "logs"

    @property
    def driver_log(self) -> Path:
        """The controller's log."""
        return self.logs / "70_driver_log.txt"

    @property
    def job_result(self) -> Path:
        """The result, and on failure the cause and which file to open."""
        return self.logs / "job_result.txt"

    @property
    def error_summary(self) -> Path:
        """Each distinct error of the script, once."""
        return self.logs / "user" / "error.txt"

    def next_node(self) -> int:
        """Return the number of the first node that has no log files here yet."""
        names = [path.stem for path in self.logs.glob("*/*/node*")]
        return max((int(name[4:]) + 1 for name in names if name[4:].isdecimal()), default=0)

    def process_error(self, node: str, process: str) -> str:
        """Return the file with the full stack traces of one worker process."""
        return self.node_files(node)["error"].replace("{process}", process)

    def node_files(self, node: str) -> dict[str, str]:
        """Return the files that one node writes; `{process}` stands for the process name."""
        user = self.logs / "user"
        return {
            "stdout": str(user / "stdout" / node / "{process}.stdout.txt"),
            "stderr": str(user / "stderr" / node / "{process}.stderr.txt"),
            "error": str(user / "error" / node / "{process}.txt"),
            "entry_script_log": str(user / "entry_script_log" / node / "{process}.log.txt"),
            "system_error": str(self.logs / "sys" / "error" / f"{node}.txt"),
        }
